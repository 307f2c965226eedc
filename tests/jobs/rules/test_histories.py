"""The laws of a user's history."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from jobs.rules.events import Event
from jobs.rules.histories import history_before, snapshots

AT = datetime(2024, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def click(item_id: str, seconds: float = 0, user_id: str = "u") -> Event:
    at = AT + seconds * SECOND
    return Event(user_id=user_id, item_id=item_id, event_time=at, event_type="click", request_id="r")


def item_ids(history: list[tuple[str, datetime]]) -> list[str]:
    return [item_id for item_id, _ in history]


def test_a_click_at_the_moment_itself_is_not_yet_history() -> None:
    assert history_before([click("a")], AT, 5) == []
    assert item_ids(history_before([click("a")], AT + timedelta(microseconds=1), 5)) == ["a"]


def test_the_newest_comes_first_and_equal_times_by_item() -> None:
    clicks = [click("c"), click("a"), click("z", 1), click("b")]
    assert item_ids(history_before(clicks, AT + 2 * SECOND, 3)) == ["z", "a", "b"]


def test_an_item_clicked_twice_appears_twice() -> None:
    assert item_ids(history_before([click("a"), click("b", 1), click("a", 2)], AT + 3 * SECOND, 5)) == ["a", "b", "a"]


def test_an_item_clicked_at_one_moment_in_two_requests_stands_once() -> None:
    twice = [click("a"), replace(click("a"), request_id="s")]
    assert item_ids(history_before(twice, AT + SECOND, 5)) == ["a"]


def test_there_is_one_snapshot_for_each_moment_a_user_clicked() -> None:
    clicks = [click("a"), click("b"), click("c", 1), click("d", 0, "v")]
    found = [(one.user_id, one.valid_from, [item for item, _ in one.history]) for one in snapshots(clicks, 2)]
    later = timedelta(microseconds=1)
    assert found == [
        ("u", AT + later, ["a", "b"]),
        ("u", AT + SECOND + later, ["c", "a"]),
        ("v", AT + later, ["d"]),
    ]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 6)), max_size=12), st.integers(0, 8), st.integers(1, 4)
)
def test_the_newest_snapshot_valid_at_a_moment_is_the_history_before_it(drawn, moment, length) -> None:
    clicks = [click(item, seconds) for item, seconds in drawn]
    at = AT + moment * SECOND
    valid = [one for one in snapshots(clicks, length) if one.valid_from <= at]
    newest = [item for item, _ in valid[-1].history] if valid else []
    assert newest == item_ids(history_before(clicks, at, length))
