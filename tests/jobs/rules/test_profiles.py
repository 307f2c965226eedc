"""Which profile of an item held when."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from jobs.rules.profiles import State, is_news, profiles, states_in_order

DAY = timedelta(days=1)
START = datetime(2024, 3, 1, tzinfo=UTC)
END = START + 30 * DAY


def seen(profile, day, updated=None):
    at = None if updated is None else START + updated * DAY
    return State(profile=profile, first_seen=START + day * DAY, updated_at=at)


def held(*states, since=0):
    return [((at - START) // DAY, profile) for at, profile in profiles(states, START + since * DAY, END)]


def test_a_profile_that_changed_holds_since_it_was_first_seen_and_the_first_stands_for_what_was_before():
    assert held(seen("old", 10), seen("new", 20)) == [(0, "old"), (20, "new")]


def test_where_the_table_dates_its_rows_they_hold_since_then_whenever_they_were_seen():
    assert held(seen("new", 25, 12), seen("old", 25, 3)) == [(0, "old"), (12, "new")]


def test_of_what_changed_before_the_item_is_known_the_last_holds_since_it_is():
    assert held(seen("a", 1, 2), seen("b", 1, 5), seen("c", 1, 9), since=7) == [(7, "b"), (9, "c")]


def test_what_is_seen_after_the_end_of_the_data_holds_from_the_end_on():
    assert held(seen("a", 1), seen("b", 40), seen("c", 50)) == [(0, "a"), (30, "c")]


def test_a_profile_that_comes_back_holds_again():
    assert held(seen("a", 1), seen("b", 5), seen("a", 9)) == [(0, "a"), (5, "b"), (9, "a")]


def test_a_date_that_says_nothing_new_makes_no_row():
    assert held(seen("a", 1, 1), seen("a", 1, 4), seen("b", 1, 6)) == [(0, "a"), (6, "b")]


def test_a_row_that_was_mended_under_its_date_is_forgotten():
    assert held(seen("wrong", 5, 4), seen("right", 8, 4)) == [(0, "right")]


def test_what_a_table_comes_to_date_overrules_what_was_only_seen():
    assert held(seen("a", 10), seen("a", 12, 3), seen("b", 12, 8)) == [(0, "a"), (8, "b")]
    assert held(seen("b", 10), seen("a", 5, 3)) == [(0, "a"), (10, "b")]  # dated no more: what is seen last holds


STATES = st.lists(
    st.builds(seen, st.sampled_from("ab"), st.integers(0, 6), st.sampled_from([None, -1, 0, 3, 6])), max_size=6
)


@given(states=STATES)
def test_profiles_change_at_each_row_in_order_within_the_data(states):
    found = profiles(states, START + DAY, START + 5 * DAY)
    moments = [at for at, _ in found]
    assert bool(found) == bool(states)
    assert moments == sorted(set(moments))
    assert moments[:1] in ([], [START + DAY])
    assert all(at <= START + 5 * DAY for at in moments)
    assert all(one[1] != other[1] for one, other in pairwise(found))


@given(rows=st.lists(st.sampled_from("abc"), max_size=8))
def test_of_undated_rows_the_last_that_was_read_is_the_one_that_holds(rows):
    remembered = []
    for day, profile in enumerate(rows):
        now = seen(profile, day)
        if is_news(now, remembered):
            remembered.append(now)
        assert states_in_order(remembered)[-1].profile == profile
        assert not is_news(now, remembered)
