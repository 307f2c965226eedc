"""Counts over windows of whole days, and the midnights at which they change: plain Python, the oracle."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

from feature_repo.contract import (
    ITEM_KEY,
    ITEM_STATISTICS,
    SMOOTHING_CLICKS,
    SMOOTHING_IMPRESSIONS,
    USER_KEY,
    USER_STATISTICS,
)
from jobs.rules.events import DAY, MICROSECOND

IMPRESSIONS: Final = "impressions"
CLICKS: Final = "clicks"
AT: Final = {IMPRESSIONS: "shown_at", CLICKS: "event_time"}  # when a row of either table happened
VIEWS: Final = {"item": (ITEM_KEY, ITEM_STATISTICS), "user": (USER_KEY, USER_STATISTICS)}

Counts = dict[tuple[str, int], int]  # (what is counted, window in days) -> count


def midnight_of(at: datetime) -> datetime:
    """The UTC midnight that begins the day of `at`."""
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def midnight_after(end: datetime) -> datetime:
    """The first UTC midnight at or after the half-open end of a log: every event lies before it."""
    return midnight_of(end - MICROSECOND) + DAY


def count_in_window(times: Iterable[datetime], midnight: datetime, days: int) -> int:
    """How many of the times lie in [midnight - days, midnight)."""
    return sum(midnight - days * DAY <= at < midnight for at in times)


def counts_at(times: Mapping[str, Sequence[datetime]], midnight: datetime, windows: Sequence[int]) -> Counts:
    """All counts of one key at one midnight. times: what is counted -> when it happened to this key."""
    return {(what, days): count_in_window(times[what], midnight, days) for days in windows for what in times}


def smoothed_ctr(impressions: int, clicks: int) -> float:
    """The posterior mean of a click probability > 0, as if the contract's pseudo-counts had been seen before."""
    return (clicks + SMOOTHING_CLICKS) / (impressions + SMOOTHING_IMPRESSIONS)


def changes(
    times: Mapping[str, Sequence[datetime]], windows: Sequence[int], until: datetime
) -> list[tuple[datetime, Counts]]:
    """One key's counts at each midnight <= until at which one of them is not what it was the midnight before.

    Before the first event all counts are zero.
    """
    every = [at for happened in times.values() for at in happened]
    if not every:
        return []
    midnight, found = midnight_of(min(every)), []
    before = counts_at(times, midnight, windows)
    while midnight < until:
        midnight += DAY
        now = counts_at(times, midnight, windows)
        if now != before:
            found.append((midnight, now))
        before = now
    return found
