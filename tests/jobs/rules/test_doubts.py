"""What cannot work with raw tables is told from what is doubtful, each in a sentence with its counts."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from jobs.rules.doubts import Seen, doubts

AT = datetime(2026, 3, 2, 8, tzinfo=UTC)
GOOD = Seen(
    types={"impression": 800, "click": 100, "cart": 10},
    users=50,
    first=AT,
    last=AT + timedelta(days=40),
    shown=800,
    clicked=100,
    pages=200,
    items=30,
)


def test_of_good_tables_there_is_nothing_to_say() -> None:
    assert doubts(GOOD) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"types": {"cart": 2}, "unknown_types": {"view": 90}, "shown": 0, "pages": 0, "clicked": 0},
            r"there are no impressions, and .* as an impression \(there are: view 90, cart 2\)",
        ),
        ({"types": {}, "shown": 0, "pages": 0, "clicked": 0}, "no impressions.*there are: no events"),
        ({"types": {"impression": 800, "cart": 3}, "clicked": 0}, "nothing was clicked: .* 800 impressions, 3 carts"),
        ({"clicked": 800}, "all 800 impressions were clicked"),
        ({"users": 1}, "all events are of one user"),
        (
            {"unknown": 900, "pair": ("7.0", "7")},
            "900 of 910 events name none of 30 items: events say '7.0', items '7'",
        ),
        ({"unknown": 910}, "910 of 910 events name none of 30 items: write the item_id alike"),
        ({"last": AT}, r"all events happened at 2026-03-02T08:00:00\+00:00: no split by time"),
        (
            {"pictures": {"not_found": 60, "truncated": 40}},
            r"of the first 100 pictures 0 can be used; most often \(60, not_found\): There is nothing behind the refer",
        ),
        ({"early": 101}, "101 of 201 clicks happened before their page was shown, so there are two clocks"),
    ],
)
def test_what_cannot_work_stops(changed, said) -> None:
    [first] = doubts(replace(GOOD, **changed))
    assert first.stops
    assert re.search(said, first.said)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"unknown": 100}, "100 of 910 events name none of 30 items"),
        ({"pictures": {"": 50, "empty": 50}}, "of the first 100 pictures 50 can be used; most often (50, empty)"),
        ({"early": 20}, "20 of 120 clicks happened before their page"),
        ({"duplicates": 1000}, "1,000 of 1,910 events repeat another one"),
        ({"shown": 200, "pages": 200}, "each of 200 pages shows one item"),
    ],
)
def test_what_is_doubtful_does_not_stop(changed, said) -> None:
    [only] = doubts(replace(GOOD, **changed))
    assert not only.stops
    assert said in only.said


@pytest.mark.parametrize(
    "changed",
    [
        {"unknown": 45},
        {"pictures": {"": 51, "empty": 49}},
        {"early": 5},
        {"duplicates": 900},
        {"shown": 201, "pages": 200},
    ],
)
def test_a_few_are_no_matter_for_doubt(changed) -> None:
    assert doubts(replace(GOOD, **changed)) == []


def test_what_stops_is_said_first() -> None:
    found = doubts(replace(GOOD, shown=200, pages=200, users=1))
    assert [one.stops for one in found] == [True, False]
