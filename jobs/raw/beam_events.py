"""Read the raw events table, parquet, CSV or JSON lines, as rows of what the files say, and judge each by itself."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import TimestampedValue

from feature_repo.contract import EVENTS
from jobs.paths import any_path
from jobs.raw import beam_rows, layout
from jobs.raw.beam_rows import Raw
from jobs.raw.folder import TableFiles
from jobs.rules import events

COLUMNS: Final = tuple(column.name for column in EVENTS)


class ReadEvents(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Every row of the events table as it was read."""

    def __init__(self, table: TableFiles) -> None:
        super().__init__()
        self.form, self.files = table.format, [str(path.absolute()) for path in table.files]

    def expand(self, begin: Any) -> Any:
        """Begin -> PCollection of Raw. Raises RawTableUnusable where the pipeline runs."""
        return (
            begin
            | "Files" >> beam.Create(self.files)
            | "Spread" >> beam.Reshuffle()
            | "Rows" >> beam.FlatMap(rows, form=self.form)
        )


class JudgeEvents(beam.PTransform):  # type: ignore[misc]
    """Accept what is usable by itself, at its own time; (Raw, reason) at `rejected` for the rest.

    as_of: the clock that says what lies in the future; None, for a stream: the clock when each row is read.
    """

    def __init__(self, as_of: datetime | None) -> None:
        super().__init__()
        self.as_of = as_of

    def expand(self, rows: Any) -> Any:
        """PCollection of Raw -> outputs `events` of Event and `rejected` of (Raw, reason)."""
        return rows | "Judge" >> beam.FlatMap(_judge, as_of=self.as_of).with_outputs("rejected", main="events")


def check_columns(table: TableFiles) -> None:
    """Raises RawTableUnusable where a file has a header that lacks a column, or no readable header at all."""
    for file in table.files:
        layout.check_file("events", table.format, file)


def _judge(row: Raw, as_of: datetime | None) -> Iterator[Any]:
    now = as_of or datetime.now(UTC)
    reason = events.BAD_ROW if isinstance(row, str) else events.reject_reason(row, now)
    if isinstance(row, str) or reason:
        yield TaggedOutput("rejected", (row, reason))
    else:
        one = events.event(row, now)
        yield TimestampedValue(one, one.event_time.timestamp())


def rows(path: str, form: str) -> Iterator[Raw]:
    """The rows of one file of events as Spark reads them. form: parquet | csv | jsonl. Raises RawTableUnusable."""
    as_spark_reads = {"parquet": _as_it_is, "csv": _csv_cell, "jsonl": _json_cell}[form]
    for row in beam_rows.rows(form, any_path(path), COLUMNS):
        yield row if isinstance(row, str) else {name: as_spark_reads(value) for name, value in row.items()}


def json_row(line: str) -> Raw:
    """The row that a line of JSON says, as Spark reads it."""
    row = beam_rows.json_row(line, COLUMNS)
    return row if isinstance(row, str) else {name: _json_cell(value) for name, value in row.items()}


def _as_it_is(value: Any) -> Any:
    return value


def _csv_cell(value: Any) -> Any:
    """An empty cell holds nothing."""
    return value or None


def _json_cell(value: Any) -> Any:
    """A number as text; that a row's bytes are no text is no cell."""
    return value if value is None or isinstance(value, (str, bool)) else json.dumps(value)
