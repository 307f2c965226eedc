"""When a day of events is settled: windows that close then, and the events that come too late for theirs.

Each group is keyed by a day, the last part of its key, and closes a number of days after that day began, plus the
allowed lateness. In batch the watermark passes every window at once; in a stream each day is let go as it settles.
"""

import zlib
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Final

import apache_beam as beam
from apache_beam.coders.coders import IntervalWindowCoder
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms import trigger, window
from apache_beam.utils.timestamp import Duration, Timestamp
from apache_beam.utils.windowed_value import PaneInfo, PaneInfoTiming

from jobs.rules.events import Event

EPOCH_DAY: Final = 719_163  # date(1970, 1, 1).toordinal()
DAY_SECONDS: Final = 86_400
SHARDS: Final = 64  # a late event is known by what its group has seen: few groups, so little is remembered for ever
FOR_EVER: Final = Duration(seconds=100 * 366 * DAY_SECONDS)


def forever() -> Any:
    """One window for all: what was settled goes on without a day."""
    return beam.WindowInto(window.GlobalWindows())


def start_of(day: int) -> Timestamp:
    """The first moment of a day, given as date.toordinal()."""
    return Timestamp((day - EPOCH_DAY) * DAY_SECONDS)


class Settling(window.NonMergingWindowFn):  # type: ignore[misc]  # Beam ships no types
    """One window for each day; elements are (key, value), the day the last part of the key (date.toordinal())."""

    def __init__(self, days: int, allowed_lateness: timedelta) -> None:
        """days: how many days after its day began a window closes, besides the allowed lateness."""
        self.seconds = days * DAY_SECONDS + int(allowed_lateness.total_seconds())

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.seconds))

    def assign(self, context: Any) -> list[window.IntervalWindow]:
        """The window of an element's day, whatever its timestamp."""
        start = start_of(context.element[0][-1])
        return [window.IntervalWindow(start, start + self.seconds)]

    def get_window_coder(self) -> IntervalWindowCoder:
        """How a window is written down."""
        return IntervalWindowCoder()


class SetLateAside(beam.PTransform):  # type: ignore[misc]
    """Part the events that come before the watermark has passed their day and the allowed lateness from the `late`."""

    def __init__(self, allowed_lateness: timedelta) -> None:
        super().__init__()
        self.lateness = allowed_lateness

    def expand(self, events: Any) -> Any:
        """PCollection of Event -> outputs `in_time` and `late` of Event."""
        # Nothing waits: what comes is passed on at once, and its pane tells on which side of the watermark it came.
        at_once = trigger.AfterWatermark(early=trigger.AfterCount(1), late=trigger.AfterCount(1))
        return (
            events
            | "Shard" >> beam.Map(_sharded)
            | "UntilItsDayIsRead"
            >> beam.WindowInto(
                Settling(1, self.lateness),
                trigger=at_once,
                accumulation_mode=trigger.AccumulationMode.DISCARDING,
                allowed_lateness=FOR_EVER,
            )
            | "Panes" >> beam.GroupByKey()
            | "Tell" >> beam.ParDo(_TellLate()).with_outputs("late", main="in_time")
        )


def _sharded(one: Event) -> tuple[tuple[int, int], Event]:
    return (zlib.crc32(one.request_id.encode()) % SHARDS, one.day.toordinal()), one


class _TellLate(beam.DoFn):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.counter = Metrics.counter("sequences", "late")

    def process(self, group: tuple[Any, Iterable[Event]], pane: PaneInfo = beam.DoFn.PaneInfoParam) -> Iterator[Any]:
        late = pane.timing == PaneInfoTiming.LATE
        for one in group[1]:
            if late:
                self.counter.inc()
                yield TaggedOutput("late", one)
            else:
                yield one
