"""What a sequences artifact says of itself: every row that was read is in a count, or the fault is told."""

from typing import Any

import pytest

from jobs.raw.folder import RawTableUnusable
from jobs.sequences.facts import of_artifact
from jobs.sequences.splits import Splits
from model.errors import RowsLost

SPLITS = Splits(start=0, valid_start=5_000_000, test_start=6_000_000, end=7_000_000)
# 12 rows: 2 rejected; the other ten are 1 + 4 + 1 + 3 + 1.
COUNTED: dict[str, Any] = {
    "events_read": 12,
    "events_accepted": 10,
    "events_rejected": {"bad_row": 1, "null_user_id": 1},
    "duplicates": 1,
    "impressions": 4,
    "shown_again": 1,
    "clicks": 3,
    "conversions": 1,
    "attributed": 2,
    "requests": 2,
    "page_view_items": 3,
    "requests_by_period": {"train": 1, "valid": 0, "test": 1},
    "first": 0,
    "last": 6_999_999,
    "as_of": "a moment",
}


def test_what_is_counted_becomes_facts_of_which_none_is_of_the_moment_of_building() -> None:
    facts = of_artifact(COUNTED, SPLITS)
    assert (facts["unmatched_clicks"], facts["beyond_page_view_size"]) == (1, 1)
    assert facts["splits"]["test_start"] == "1970-01-01T00:00:06+00:00"
    assert not facts.keys() & {"first", "last", "attributed", "as_of"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"events_read": 13}, "events_read is 13, and what became of them is {'events_accepted': 10, 'bad_row': 1"),
        ({"conversions": 0}, "events_accepted is 10"),
        ({"shown_again": 2}, "events_accepted is 10"),
        ({"requests": 3}, "requests is 3, and what became of them is {'train': 1, 'valid': 0, 'test': 1}"),
    ],
)
def test_a_row_that_is_in_no_count_or_in_two_is_a_fault_that_is_told(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(RowsLost, match=told):
        of_artifact({**COUNTED, **changed}, SPLITS)


def test_page_views_that_no_moment_parts_are_refused() -> None:
    periods = {"requests_by_period": {"train": 0, "valid": 0, "test": 2}}
    with pytest.raises(RawTableUnusable, match=r"of 2 page views so many .* moment, 1970-01-01T00:00:05\+00:00"):
        of_artifact({**COUNTED, **periods}, SPLITS)
    of_artifact({**COUNTED, "requests": 1, "requests_by_period": {"train": 0, "valid": 0, "test": 1}}, SPLITS)
