"""Merging clicks into a history: any order, grouping and repetition give one result; what a batch load may change."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.rules.events import Event
from jobs.rules.histories import AFTER_THE_CLICK, history_before, snapshots
from jobs.rules.online_histories import EPOCH, merge, reconcile, valid_from

LENGTH = 4
CLICKS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5)), max_size=12)  # ties and repetitions abound
HISTORIES = CLICKS.map(lambda clicks: merge((), clicks, LENGTH))


def event(one, request="r"):
    item_id, at = one
    return Event(
        user_id="u",
        item_id=item_id,
        event_time=EPOCH + timedelta(microseconds=at),
        event_type="click",
        request_id=request,
    )


def test_the_newest_come_first_and_equal_times_stand_in_order_of_item():
    assert merge((("a", 7),), [("c", 9), ("b", 9), ("d", 8), ("c", 9)], 3) == (("b", 9), ("c", 9), ("d", 8))


def test_a_late_older_click_lands_at_its_place_and_one_older_than_the_last_changes_nothing():
    history = (("a", 9), ("b", 7), ("c", 5))
    assert merge(history, [("d", 8)], 3) == (("a", 9), ("d", 8), ("b", 7))
    assert merge(history, [("d", 4)], 3) == history


def test_the_same_item_at_another_moment_is_another_click():
    assert merge((("a", 9),), [("a", 8)], 5) == (("a", 9), ("a", 8))


@given(HISTORIES, CLICKS)
def test_merging_twice_is_merging_once(history, clicks):
    once = merge(history, clicks, LENGTH)
    assert merge(once, clicks, LENGTH) == once
    assert merge(once, history, LENGTH) == once


@given(CLICKS, CLICKS, CLICKS)
def test_order_and_grouping_do_not_matter(a, b, c):
    left = merge(merge(merge((), a, LENGTH), b, LENGTH), c, LENGTH)
    right = merge(merge((), a, LENGTH), merge(merge((), c, LENGTH), b, LENGTH), LENGTH)
    assert left == right == merge((), [*c, *a, *b], LENGTH)


@given(CLICKS, st.integers(1, 6), st.randoms(use_true_random=False))
def test_clicks_that_arrive_in_any_parts_and_come_again_give_the_history_of_the_batch(clicks, length, rng):
    arriving = [*clicks, *rng.sample(clicks, len(clicks) // 2)]
    rng.shuffle(arriving)
    online = ()
    while arriving:
        size = rng.randint(1, len(arriving))
        online, arriving = merge(online, arriving[:size], length), arriving[size:]
    newest = history_before([event(one) for one in clicks], EPOCH + timedelta(seconds=1), length)
    assert online == tuple((item_id, (at - EPOCH) // timedelta(microseconds=1)) for item_id, at in newest)


@given(CLICKS.filter(len))
def test_a_history_holds_since_the_moment_that_its_offline_snapshot_states(clicks):
    last = snapshots([event(one) for one in clicks], LENGTH)[-1]
    online = merge((), clicks, LENGTH)
    assert valid_from(online) == last.valid_from
    assert valid_from(online) - AFTER_THE_CLICK == max(event(one).event_time for one in clicks)


@pytest.mark.parametrize(
    ("online", "offline", "held"),
    [
        ((), (("a", 1),), (("a", 1),)),
        ((("a", 1),), (), (("a", 1),)),
        ((("b", 2),), (("a", 1),), (("b", 2), ("a", 1))),  # the stream is ahead: merged
        ((("b", 2),), (("a", 2),), (("a", 2),)),  # the tables have caught up: their word stands
        ((("c", 3), ("b", 2)), (("a", 4), ("b", 2)), (("a", 4), ("b", 2))),
    ],
)
def test_a_batch_load_settles_what_it_has_read_and_takes_nothing_newer_away(online, offline, held):
    assert reconcile(online, offline, LENGTH) == held


@given(HISTORIES, HISTORIES)
def test_no_batch_load_moves_a_user_back(online, offline):
    held = reconcile(online, offline, LENGTH)
    newest = max((one[1] for one in (*online, *offline)), default=None)
    assert (held[0][1] if held else None) == newest
    assert reconcile(held, offline, LENGTH) == held  # and a second load changes nothing
