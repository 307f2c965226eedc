"""The laws of accepting and deduplicating events."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.rules import events as logic
from jobs.rules.events import Event

AT = datetime(2024, 3, 1, 12, tzinfo=UTC)
NOW = datetime(2200, 1, 1, tzinfo=UTC)  # nothing of our time lies ahead
MICROSECOND, DAY = timedelta(microseconds=1), timedelta(days=1)
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
        ({"event_type": " Impression"}, None),
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
        ({"position": "x", "event_type": "Click"}, None),
    ],
)
def test_a_row_is_rejected_for_its_first_fault(changed: dict[str, object], reason: str | None) -> None:
    assert logic.reject_reason(GOOD | changed, NOW) == reason


@pytest.mark.parametrize(
    "text",
    [
        *("2024-03-01T14:30:00+02:30", "2024-03-01 12:00Z", "2024-03-01T11:00:00.0-0100", "2024-03-01 14:00:00+02"),
        *("2024-03-01 12:00:00 UTC", "2024-03-01 12:00:00GMT", "2024-03-01t12:00:00,000z", "2024-03-01 10:00 -02:00"),
    ],
)
def test_a_moment_is_the_same_in_every_zone(text: str) -> None:
    assert logic.moment(text) == AT


def test_finer_than_microseconds_is_cut_off() -> None:
    assert logic.moment("2024-03-01T12:00:00.000001999Z") == AT + timedelta(microseconds=1)


def test_a_row_becomes_the_event_it_describes() -> None:
    assert logic.event(GOOD | {"position": "3.0"}, NOW) == event(event_type="impression", position=3)
    assert logic.event(GOOD | {"position": "x", "event_type": "CLICK"}, NOW) == event(event_type="click", position=None)
    with pytest.raises(ValueError, match="null_item_id"):
        logic.event(GOOD | {"item_id": None}, NOW)


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("now", [AT, AT.astimezone(timezone(timedelta(hours=9)))])
def test_an_event_may_be_dated_less_than_the_tolerance_ahead_and_no_further(now: datetime, as_text: bool) -> None:
    edge = AT + timedelta(hours=1)
    for at, reason in (
        (edge - MICROSECOND, None),
        (edge, "future_event_time"),
        (edge + 365 * DAY, "future_event_time"),
    ):
        row = GOOD | {"event_time": at.isoformat() if as_text else at}
        assert logic.reject_reason(row, now) == reason
        assert logic.reject_reason(row, at) is None


def test_what_is_wrong_whatever_the_clock_says_is_said_of_a_future_event_first() -> None:
    late = GOOD | {"event_time": AT + DAY, "position": "x"}
    assert [logic.reject_reason(late, now) for now in (AT, AT + DAY)] == ["bad_position", "bad_position"]


def test_a_duplicate_counts_once_and_its_topmost_position_stands() -> None:
    twice = [event(position=None), event(position=4), event(position=2)]
    assert logic.deduplicate(twice) == [event(position=2)]


@pytest.mark.parametrize("changed", ["user_id", "item_id", "request_id"])
def test_events_that_differ_in_a_key_are_no_duplicates(changed: str) -> None:
    assert len(logic.deduplicate([event(), event(**{changed: "other"})])) == 2


def test_events_a_microsecond_apart_are_no_duplicates() -> None:
    assert len(logic.deduplicate([event(), event(event_time=AT + timedelta(microseconds=1))])) == 2


MIDNIGHT = datetime(2024, 3, 2, tzinfo=UTC)


def shown(at: datetime, **changed: object) -> Event:
    return event(**{"event_type": "impression", "position": 0, "event_time": at} | changed)


def rejected(events: list[Event], max_clicks_per_day: int = 1000) -> dict[Event, str]:
    return logic.rejections(events, max_clicks_per_day)


def test_a_request_belongs_to_the_user_of_its_earliest_impression() -> None:
    first = shown(AT)
    foreign = shown(AT + timedelta(seconds=1), user_id="v")
    click = event(user_id="v", event_time=AT + timedelta(seconds=2))
    assert rejected([foreign, click, first]) == dict.fromkeys((foreign, click), "request_of_another_user")


def test_a_click_before_its_request_is_rejected_and_one_at_the_same_moment_is_not() -> None:
    early, same = event(event_time=AT - MICROSECOND), event()
    assert rejected([shown(AT), early, same]) == {early: "click_before_request"}


def test_a_click_whose_request_was_never_shown_is_kept() -> None:
    assert rejected([event()]) == {}
    assert logic.page_keys([event()]) == {}


@pytest.mark.parametrize(
    ("at", "day"),
    [
        (MIDNIGHT - DAY - MICROSECOND, None),
        (MIDNIGHT - DAY, 2),  # before it, and so early
        (MIDNIGHT - MICROSECOND, 2),
        (MIDNIGHT, 2),
        (MIDNIGHT + 2 * DAY - MICROSECOND, 2),
        (MIDNIGHT + 2 * DAY, None),
    ],
)
def test_a_page_view_has_its_own_day_and_one_on_either_side(at: datetime, day: int | None) -> None:
    click = event(event_time=at)
    key = logic.page_keys([shown(MIDNIGHT), click]).get(click)
    assert key == (None if day is None else ("r", MIDNIGHT.date().replace(day=day)))


def test_a_page_shown_across_midnight_is_one_page_view_of_the_day_before() -> None:
    before, after = shown(MIDNIGHT - MICROSECOND), shown(MIDNIGHT, item_id="j")
    assert set(logic.page_keys([before, after]).values()) == {("r", AT.date())}
    assert rejected([before, after, event(item_id="j", event_time=MIDNIGHT)]) == {}


def test_a_request_id_that_comes_again_days_later_is_another_page_view() -> None:
    again = shown(MIDNIGHT + 2 * DAY, user_id="v")
    assert len(set(logic.page_keys([shown(MIDNIGHT), again]).values())) == 2
    assert rejected([shown(MIDNIGHT), again]) == {}


def test_of_a_bots_clicks_the_first_of_each_day_stand_and_repeats_of_them_do_not_count() -> None:
    clicks = [event(event_time=MIDNIGHT + seconds * timedelta(seconds=1)) for seconds in (0, 1, 2, 3)]
    repeat, tomorrow, human = event(event_time=MIDNIGHT, position=7), event(event_time=MIDNIGHT + DAY), event()
    of_another = event(user_id="v", event_time=MIDNIGHT + DAY / 2)
    found = rejected([*clicks[::-1], repeat, tomorrow, human, of_another], max_clicks_per_day=2)
    assert found == dict.fromkeys(clicks[2:], "too_many_clicks")


def test_clicks_at_one_moment_are_capped_in_order_of_their_items() -> None:
    a, b = event(item_id="a"), event(item_id="b")
    assert rejected([b, a], max_clicks_per_day=1) == {b: "too_many_clicks"}


def test_carts_and_purchases_keep_their_type() -> None:
    cart, bought = event(event_type="cart"), event(event_type="purchase")
    assert logic.conversions_of([event(), cart, shown(AT), bought]) == [cart, bought]


@given(st.lists(st.integers(0, 10**12), max_size=40), st.integers(0, 2))
def test_what_becomes_of_a_day_is_settled_when_the_next_one_is_known(drawn_events, codes, ahead) -> None:
    events = drawn_events(codes)
    for day in {one.day for one in events}:
        known = [one for one in events if day - 3 * DAY <= one.day <= day + DAY]
        more = [one for one in events if one.day <= day + (1 + ahead) * DAY]
        fates = [rejected(some, 2) for some in (known, more)]
        keys = [logic.page_keys(some) for some in (known, more)]
        own = [one for one in known if one.day == day]
        assert [fates[0].get(one) for one in own] == [fates[1].get(one) for one in own]
        assert [keys[0].get(one) for one in own] == [keys[1].get(one) for one in own]


@given(st.lists(st.integers(0, 10**12), max_size=40))
def test_deduplicating_twice_is_deduplicating_once(drawn_events, codes) -> None:
    once = logic.deduplicate(drawn_events(codes))
    assert logic.deduplicate(once) == once
    assert {one.identity for one in once} == {one.identity for one in drawn_events(codes)}
