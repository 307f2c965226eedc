"""The laws of accepting and deduplicating events."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.logic import events as logic
from jobs.logic.events import Event

AT = datetime(2024, 3, 1, 12, tzinfo=UTC)
GOOD = {
    "user_id": "u",
    "item_id": "i",
    "event_time": "2024-03-01T12:00:00Z",
    "event_type": "impression",
    "request_id": "r",
    "position": "0",
}


def event(**changed: object) -> Event:
    return Event(
        **{"user_id": "u", "item_id": "i", "event_time": AT, "event_type": "click", "request_id": "r"} | changed
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"user_id": None}, "null_user_id"),
        ({"user_id": " "}, "null_user_id"),
        ({"item_id": ""}, "null_item_id"),
        ({"request_id": "\t"}, "null_request_id"),
        ({"event_type": "view"}, "unknown_event_type"),
        ({"event_type": "Click"}, "unknown_event_type"),
        ({"event_type": None}, "unknown_event_type"),
        ({"event_time": ""}, "null_event_time"),
        ({"event_time": "2024-03-01 12:00"}, "naive_event_time"),
        ({"event_time": AT.replace(tzinfo=None)}, "naive_event_time"),
        ({"event_time": "2024-02-30T12:00:00Z"}, "bad_event_time"),
        ({"event_time": "1709294400"}, "bad_event_time"),
        ({"event_time": "2024-03-01T24:00:00Z"}, "bad_event_time"),
        ({"event_time": "1899-12-31T23:59:59.999999Z"}, "bad_event_time"),
        ({"event_time": "1900-01-01T00:00:00Z"}, None),
        ({"event_time": "2199-12-31T23:59:59.999999Z"}, None),
        ({"event_time": datetime(2200, 1, 1, tzinfo=UTC)}, "bad_event_time"),
        ({"event_time": datetime(9999, 12, 31, tzinfo=UTC)}, "bad_event_time"),
        ({"bad_encoding": True, "user_id": None}, "bad_encoding"),
        ({"request_id": "r\0"}, "bad_row"),
        ({"position": "-1"}, "bad_position"),
        ({"position": "1.5"}, "bad_position"),
        ({"position": -2}, "bad_position"),
        ({"position": None}, "null_position"),
        ({"position": float("nan")}, "null_position"),
        ({"position": None, "event_type": "click"}, None),
        ({"position": "x", "event_type": "click"}, "bad_position"),
    ],
)
def test_a_row_is_rejected_for_its_first_fault(changed: dict[str, object], reason: str | None) -> None:
    assert logic.reject_reason(GOOD | changed) == reason


@pytest.mark.parametrize("text", ["2024-03-01T14:30:00+02:30", "2024-03-01 12:00Z", "2024-03-01T11:00:00.0-0100"])
def test_a_moment_is_the_same_in_every_zone(text: str) -> None:
    assert logic.moment(text) == AT


def test_finer_than_microseconds_is_cut_off() -> None:
    assert logic.moment("2024-03-01T12:00:00.000001999Z") == AT + timedelta(microseconds=1)


def test_a_row_becomes_the_event_it_describes() -> None:
    assert logic.event(GOOD | {"position": "3.0"}) == event(event_type="impression", position=3)
    with pytest.raises(ValueError, match="null_item_id"):
        logic.event(GOOD | {"item_id": None})


def test_a_duplicate_counts_once_and_its_topmost_position_stands() -> None:
    twice = [event(position=None), event(position=4), event(position=2)]
    assert logic.deduplicate(twice) == [event(position=2)]


@pytest.mark.parametrize("changed", ["user_id", "item_id", "request_id"])
def test_events_that_differ_in_a_key_are_no_duplicates(changed: str) -> None:
    assert len(logic.deduplicate([event(), event(**{changed: "other"})])) == 2


def test_events_a_microsecond_apart_are_no_duplicates() -> None:
    assert len(logic.deduplicate([event(), event(event_time=AT + timedelta(microseconds=1))])) == 2


def test_a_request_belongs_to_the_user_of_its_earliest_impression() -> None:
    first = event(event_type="impression", position=0)
    foreign = event(user_id="v", event_type="impression", position=0, event_time=AT + timedelta(seconds=1))
    click = event(user_id="v", event_time=AT + timedelta(seconds=2))
    assert logic.out_of_place([foreign, click, first]) == dict.fromkeys((foreign, click), "request_of_another_user")


def test_a_click_before_its_request_is_rejected_and_one_at_the_same_moment_is_not() -> None:
    shown = event(event_type="impression", position=0)
    early, same = event(event_time=AT - timedelta(microseconds=1)), event()
    assert logic.out_of_place([shown, early, same]) == {early: "click_before_request"}
    assert logic.accept([shown, early, same]) == [shown, same]


def test_a_click_whose_request_was_never_shown_is_kept() -> None:
    assert logic.accept([event()]) == [event()]


@given(st.lists(st.integers(0, 10**12), max_size=40))
def test_deduplicating_twice_is_deduplicating_once(drawn_events, codes) -> None:
    once = logic.deduplicate(drawn_events(codes))
    assert logic.deduplicate(once) == once
    assert {one.identity for one in once} == {one.identity for one in drawn_events(codes)}
