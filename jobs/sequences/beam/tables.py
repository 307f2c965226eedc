"""The tables of the sequences artifact as Beam writes them: columns, types and rows as the Spark job has them."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.parquetio import WriteToParquet

from feature_repo import contract
from jobs.raw.beam_rows import Row as RawRow
from jobs.raw.typed import ROW
from jobs.rules.events import Event, micros
from jobs.rules.histories import Snapshot
from jobs.rules.page_views import PageView, TimeSplit, kept_on_page
from jobs.rules.sequence_tables import PERIOD, TABLES, Table
from model import strict_json
from model.artifact import AnyPath

ARROW_TYPES: Final = {
    "text": pa.string(),
    "moment": pa.timestamp("us", tz="UTC"),
    "int8": pa.int8(),
    "int32": pa.int32(),
    "int64": pa.int64(),
}


def schema(table: Table, *, divided: bool) -> pa.Schema:
    """A table as parquet declares it. divided: with the period of each page view, if the table can have it."""
    columns = [(name, _arrow_type(kind)) for name, kind in table.columns.items()]
    return pa.schema([*columns, (PERIOD, pa.string())] if divided and table.divided else columns)


def _arrow_type(kind: str) -> pa.DataType:
    one = ARROW_TYPES[kind.removeprefix("list of ")]
    return pa.list_(pa.field("element", one)) if kind.startswith("list of ") else one


SCHEMAS: Final[Mapping[str, pa.Schema]] = {name: schema(table, divided=True) for name, table in TABLES.items()}

Row = dict[str, Any]


class WriteTable(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Write rows as the parquet parts of one of the tables."""

    def __init__(self, name: str, out: AnyPath) -> None:
        super().__init__()
        self.name, self.prefix = name, str(out / name / "part")

    def expand(self, rows: Any) -> Any:
        """PCollection of Row -> PCollection of the paths written."""
        return rows | WriteToParquet(self.prefix, SCHEMAS[self.name], file_name_suffix=".parquet")


def impression_rows(view: PageView, split: TimeSplit | None) -> Iterator[Row]:
    """One row for each item shown, with its label `clicked`. split: None where no whole log is divided."""
    for one in view.shown:
        yield {
            "request_id": view.request_id,
            "user_id": view.user_id,
            "item_id": one.item_id,
            "request_time": view.request_time,
            "shown_at": one.shown_at,
            "position": one.position,
            "clicked": int(one.clicked),
        } | _period(view, split)


def page_view_row(
    joined: tuple[PageView, Sequence[tuple[str, datetime]]], split: TimeSplit | None, size: int, history: int
) -> Row:
    """The pre-training row of a page view and its history, newest first, of which `history` are kept."""
    view, before = joined
    kept = kept_on_page(view.shown, size)
    return {
        "request_id": view.request_id,
        "user_id": view.user_id,
        "request_time": view.request_time,
        "item_ids": [one.item_id for one in kept],
        "labels": [int(one.clicked) for one in kept],
        "history_item_ids": [item_id for item_id, _ in before[:history]],
    } | _period(view, split)


def _period(view: PageView, split: TimeSplit | None) -> Row:
    return {} if split is None else {PERIOD: split.period(view.request_time)}


def history_row(snapshot: Snapshot, length: int) -> Row:
    """Feast's source of the view user_history."""
    return {
        "user_id": snapshot.user_id,
        "event_timestamp": snapshot.valid_from,
        "history_item_ids": [item_id for item_id, _ in snapshot.history[:length]],
        "history_clicked_at": [micros(at) for _, at in snapshot.history[:length]],
    }


def event_row(one: Event, table: str) -> Row:
    """A click or a conversion in its table's columns."""
    return {name: getattr(one, name) for name in SCHEMAS[table].names}


def rejected_row(row: RawRow | Event, reason: str) -> Row:
    """A rejected event as JSON: as it was read, or, where it contradicts other events, as it was understood."""
    columns = [column.name for column in contract.EVENTS]
    if not isinstance(row, Event) and row.get(ROW) is not None:
        return {"table": "events", "row": row[ROW], "reason": reason}
    values = (getattr(row, name) if isinstance(row, Event) else row.get(name) for name in columns)
    said = dict(zip(columns, values, strict=True))
    text = strict_json.dumps(said, default=_moment, ensure_ascii=False, separators=(",", ":"))
    return {"table": "events", "row": text, "reason": reason}


def _moment(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
