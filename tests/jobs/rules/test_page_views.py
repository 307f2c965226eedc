"""The laws of page views, their labels, the pre-training rows and the split by time; and of counts over windows."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.rules.events import Event, page_keys
from jobs.rules.page_views import Shown, cut, kept_on_page, pretrain_row, time_split
from jobs.rules.page_views import page_views as page_views_of
from jobs.rules.page_views import unmatched_clicks as unmatched_clicks_of
from model.errors import CourierError

AT = datetime(2024, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def event(kind: str, item_id: str, position: int | None = None, seconds: float = 0, request_id: str = "r") -> Event:
    at = AT + seconds * SECOND
    return Event(user_id="u", item_id=item_id, event_time=at, event_type=kind, request_id=request_id, position=position)


def page_views(events: list[Event]):
    return page_views_of(events, page_keys(events))


def unmatched_clicks(events: list[Event]) -> list[Event]:
    return unmatched_clicks_of(events, page_keys(events))


def test_a_page_view_shows_each_item_once_at_its_topmost_position_since_its_first_impression() -> None:
    events = [event("impression", "b", 0, 2), event("impression", "a", 3, 1), event("impression", "a", 1, 5)]
    [view] = page_views(events)
    assert view.request_time == AT + SECOND
    assert view.shown == (Shown(0, "b", False, AT + 2 * SECOND), Shown(1, "a", False, AT + SECOND))


def test_a_click_labels_the_item_of_the_request_that_it_names() -> None:
    events = [
        *(event("impression", item, 0, request_id=request) for item in "ab" for request in "rs"),
        event("click", "a", seconds=9, request_id="s"),
    ]
    labels = {(view.request_id, one.item_id): one.clicked for view in page_views(events) for one in view.shown}
    assert labels == {("r", "a"): False, ("r", "b"): False, ("s", "a"): True, ("s", "b"): False}


def test_a_click_without_its_impression_labels_nothing() -> None:
    events = [event("impression", "a", 0), event("click", "b"), event("click", "a", request_id="s")]
    assert unmatched_clicks(events) == events[1:]
    [view] = page_views(events)
    assert not view.shown[0].clicked


@pytest.mark.parametrize(("hours", "clicked"), [(35.9, True), (36, False)])
def test_attribution_ends_with_the_day_after_the_page(hours: float, clicked: bool) -> None:
    events = [event("impression", "a", 0), event("click", "a", seconds=hours * 3600)]
    [view] = page_views(events)
    assert view.shown[0].clicked == clicked
    assert unmatched_clicks(events) == ([] if clicked else events[1:])


def test_a_page_too_long_keeps_its_clicked_items_first_and_its_order() -> None:
    shown = [Shown(*one, AT) for one in ((0, "a", False), (1, "b", False), (1, "c", False), (8, "d", True))]
    assert [one.item_id for one in kept_on_page(shown, 3)] == ["a", "b", "d"]


def test_a_pretraining_row_knows_only_clicks_before_its_page() -> None:
    [view] = page_views([event("impression", "a", 0), event("click", "a")])
    row = pretrain_row(view, [event("click", "a"), event("click", "b", seconds=-1)], size=5, history=5)
    assert (row.item_ids, row.labels, row.history_item_ids) == (("a",), (1,), ("b",))


def test_periods_are_half_open_at_the_page_views_that_open_them() -> None:
    times = [AT + n * SECOND for n in range(10)]
    split = time_split(times, 0.8, 0.1)
    assert [split.period(at) for at in times] == ["train"] * 8 + ["valid", "test"]
    assert split.valid_start == times[8]
    assert split.test_start == times[9]


@given(st.lists(st.integers(0, 20), min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_page_views_of_one_moment_share_a_period_and_periods_follow_in_order(seconds, train, valid) -> None:
    times = sorted(AT + n * SECOND for n in seconds)
    split = time_split(times, train, valid)
    order = ["train", "valid", "test"]
    assert [split.period(at) for at in times] == sorted((split.period(at) for at in times), key=order.index)
    assert sum(at < split.valid_start for at in times) <= cut(len(times), train)


def test_nothing_to_split_is_said() -> None:
    with pytest.raises(CourierError, match="no page view"):
        time_split([], 0.8, 0.1)
