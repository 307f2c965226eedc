"""Read the events of a canonical table by Beam, and judge each by itself."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import TimestampedValue

from jobs.paths import any_path
from jobs.raw import beam_rows
from jobs.raw.beam_rows import Row
from jobs.raw.canonical import CanonicalTable
from jobs.raw.typed import REASON
from jobs.rules import events


class ReadEvents(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Every row of the events table."""

    def __init__(self, table: CanonicalTable) -> None:
        super().__init__()
        self.files = [str(path.absolute()) for path in table.files]

    def expand(self, begin: Any) -> Any:
        """Begin -> PCollection of Row. Raises RawTableUnusable where the pipeline runs."""
        return begin | "Files" >> beam.Create(self.files) | "Spread" >> beam.Reshuffle() | "Rows" >> beam.FlatMap(_rows)


class JudgeEvents(beam.PTransform):  # type: ignore[misc]
    """Accept what is usable by itself, at its own time; (Row, reason) at `rejected` for the rest.

    as_of: the clock that says what lies in the future.
    """

    def __init__(self, as_of: datetime) -> None:
        super().__init__()
        self.as_of = as_of

    def expand(self, rows: Any) -> Any:
        """PCollection of Row -> outputs `events` of Event and `rejected` of (Row or Event, reason)."""
        return rows | "Judge" >> beam.FlatMap(_judge, as_of=self.as_of).with_outputs("rejected", main="events")


def _rows(path: str) -> Iterator[Row]:
    yield from beam_rows.rows(any_path(path), "events")


def _judge(row: Row, as_of: datetime) -> Iterator[Any]:
    reason = row.get(REASON) or events.reject_reason(row, as_of)
    if reason == events.FUTURE_EVENT_TIME:  # kept as it was understood, as by every engine
        yield TaggedOutput("rejected", (events.event(row, events.LATEST), reason))
    elif reason:
        yield TaggedOutput("rejected", (row, reason))
    else:
        one = events.event(row, as_of)
        yield TimestampedValue(one, one.event_time.timestamp())
