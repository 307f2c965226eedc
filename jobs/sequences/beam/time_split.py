"""The split by time in Beam: exact order statistics of any number of moments, with little in memory at once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import apache_beam as beam
from apache_beam.transforms import combiners

from jobs.raw.folder import RawTableUnusable
from jobs.rules.events import EPOCH, MICROSECOND, micros
from jobs.rules.page_views import TimeSplit, cut

WIDTHS: Final = (86_400_000_000, 1_000_000, 1)  # a day, a second, a microsecond: in microseconds
NO_PAGE_VIEW: Final = "no impression is accepted, so there are no page views: check the raw events' event_type"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a moment that is looked for lies: in this bucket of some width, `rank` further moments in, from 0."""

    bucket: int
    rank: int


class SplitByTime(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """The split that gives fractions of the page views to training and validation; equal times stay together.

    Counts in days tell the day that holds the moment, counts in that day's seconds the second, and so on.
    """

    def __init__(self, train_fraction: float, valid_fraction: float) -> None:
        super().__init__()
        self.fractions = (train_fraction, train_fraction + valid_fraction)

    def expand(self, request_times: Any) -> Any:
        """PCollection of datetime -> PCollection of one TimeSplit. Raises RawTableUnusable where there is no moment."""
        times = request_times | "Micros" >> beam.Map(micros)
        places = (
            times
            | "Days" >> beam.Map(lambda at: at // WIDTHS[0])
            | "PerDay" >> _Counts()
            | "FindDays" >> beam.Map(_first_places, fractions=self.fractions)
        )
        for wide, narrow in pairwise(WIDTHS):
            counts = (
                times
                | f"Within{narrow}" >> beam.FlatMap(_within, beam.pvalue.AsSingleton(places), wide=wide, narrow=narrow)
                | f"Per{narrow}" >> _Counts()
            )
            places = counts | f"Find{narrow}" >> beam.Map(
                _nearer_places, beam.pvalue.AsSingleton(places), wide=wide, narrow=narrow
            )
        return places | "Split" >> beam.Map(
            lambda found: TimeSplit(*(EPOCH + one.bucket * MICROSECOND for one in found))
        )


class _Counts(beam.PTransform):  # type: ignore[misc]
    """How many elements lie in each bucket, as one sorted list of (bucket, count)."""

    def expand(self, buckets: Any) -> Any:
        return (
            buckets
            | "Count" >> combiners.Count.PerElement()
            | "Together" >> beam.CombineGlobally(combiners.ToListCombineFn())
            | "Sort" >> beam.Map(sorted)
        )


def _first_places(counts: Sequence[tuple[int, int]], fractions: Sequence[float]) -> tuple[Place, ...]:
    total = sum(count for _, count in counts)
    if not total:
        raise RawTableUnusable(NO_PAGE_VIEW)
    return tuple(_place(counts, cut(total, fraction)) for fraction in fractions)


def _place(counts: Iterable[tuple[int, int]], rank: int) -> Place:
    for bucket, count in counts:
        if rank < count:
            return Place(bucket, rank)
        rank -= count
    raise AssertionError("a rank lies below the number of what is counted")


def _within(at: int, places: tuple[Place, ...], wide: int, narrow: int) -> Iterator[int]:
    if at // wide in {one.bucket for one in places}:
        yield at // narrow


def _nearer_places(
    counts: Sequence[tuple[int, int]], places: tuple[Place, ...], wide: int, narrow: int
) -> tuple[Place, ...]:
    return tuple(
        _place([(one, n) for one, n in counts if one * narrow // wide == place.bucket], place.rank) for place in places
    )
