"""Read the raw events table, parquet, CSV or JSON lines, as rows of what the files say, and judge each by itself."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import TimestampedValue

from feature_repo.contract import EVENTS
from jobs.beam import item_rows
from jobs.beam.item_rows import Raw
from jobs.logic import events as logic
from jobs.sources.raw import RawTableUnusable, TableFiles

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
            | "Rows" >> beam.FlatMap(_rows, form=self.form)
        )


class JudgeEvents(beam.PTransform):  # type: ignore[misc]
    """Accept what is usable by itself, at its own time; (Raw, reason) at `rejected` for the rest."""

    def expand(self, rows: Any) -> Any:
        """PCollection of Raw -> outputs `events` of Event and `rejected` of (Raw, reason)."""
        return rows | "Judge" >> beam.FlatMap(_judge).with_outputs("rejected", main="events")


def check_columns(table: TableFiles) -> None:
    """Raises RawTableUnusable where a file has a header that lacks a column, or no readable header at all."""
    for file in table.files:
        item_rows.check_columns(table.format, file, COLUMNS)


def _judge(row: Raw) -> Iterator[Any]:
    reason = logic.BAD_ROW if isinstance(row, str) else logic.reject_reason(row)
    if isinstance(row, str) or reason:
        yield TaggedOutput("rejected", (row, reason))
    else:
        one = logic.event(row)
        yield TimestampedValue(one, one.event_time.timestamp())


def _rows(path: str, form: str) -> Iterator[Raw]:
    if form == "csv":
        yield from _csv_rows(Path(path))
        return
    for row in item_rows.rows(form, Path(path), COLUMNS):
        yield (
            {name: _as_text(value) for name, value in row.items()} if form == "jsonl" and isinstance(row, dict) else row
        )


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _csv_rows(path: Path) -> Iterator[Raw]:
    """As item_rows reads them; but a line with too many or too few cells is a line, and an empty cell holds nothing."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        try:
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    yield ",".join(cells)
                    continue
                row = dict(zip(header, cells, strict=True))
                yield {name: row[name] or None for name in COLUMNS}
        except csv.Error as error:
            raise RawTableUnusable(
                f"{path}, after line {reader.line_num}: {error}: look for an unclosed quote"
            ) from None
