"""The tables of the sequences artifact as Beam writes them: columns, types and rows as the Spark job has them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.parquetio import WriteToParquet

from feature_repo import contract
from jobs.beam.raw_rows import Raw
from jobs.logic.events import Event, micros
from jobs.logic.histories import Snapshot
from jobs.logic.page_views import PageView, TimeSplit, kept_on_page
from model.artifact import AnyPath

TIME: Final = pa.timestamp("us", tz="UTC")
TEXT, TEXTS, SMALL = pa.string(), pa.list_(pa.field("element", pa.string())), pa.int8()
SCHEMAS: Final[Mapping[str, pa.Schema]] = {
    "impressions": pa.schema(
        [("request_id", TEXT), ("user_id", TEXT), ("item_id", TEXT), ("request_time", TIME)]
        + [("shown_at", TIME), ("position", pa.int32()), ("clicked", SMALL), ("period", TEXT)]
    ),
    "page_views": pa.schema(
        [("request_id", TEXT), ("user_id", TEXT), ("request_time", TIME), ("item_ids", TEXTS)]
        + [("labels", pa.list_(pa.field("element", SMALL))), ("history_item_ids", TEXTS), ("period", TEXT)]
    ),
    "histories": pa.schema(
        [("user_id", TEXT), ("event_timestamp", TIME), ("history_item_ids", TEXTS)]
        + [("history_clicked_at", pa.list_(pa.field("element", pa.int64())))]
    ),
    "clicks": pa.schema([("user_id", TEXT), ("item_id", TEXT), ("event_time", TIME), ("request_id", TEXT)]),
    "conversions": pa.schema(
        [("user_id", TEXT), ("item_id", TEXT), ("event_time", TIME), ("event_type", TEXT), ("request_id", TEXT)]
    ),
    "rejected": pa.schema([("table", TEXT), ("row", TEXT), ("reason", TEXT)]),
}

Row = dict[str, Any]


class WriteTable(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Write rows as the parquet parts of one of the tables."""

    def __init__(self, name: str, out: AnyPath) -> None:
        super().__init__()
        self.name, self.prefix = name, str(out / name / "part")

    def expand(self, rows: Any) -> Any:
        """PCollection of Row -> PCollection of the paths written."""
        return rows | WriteToParquet(self.prefix, SCHEMAS[self.name], file_name_suffix=".parquet")


def impression_rows(view: PageView, split: TimeSplit) -> Iterator[Row]:
    """One row for each item shown, with its label `clicked`."""
    for one in view.shown:
        yield {
            "request_id": view.request_id,
            "user_id": view.user_id,
            "item_id": one.item_id,
            "request_time": view.request_time,
            "shown_at": one.shown_at,
            "position": one.position,
            "clicked": int(one.clicked),
            "period": split.period(view.request_time),
        }


def page_view_row(
    joined: tuple[PageView, Sequence[tuple[str, datetime]]], split: TimeSplit, size: int, history: int
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
        "period": split.period(view.request_time),
    }


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


def rejected_row(row: Raw | Event, reason: str) -> Row:
    """A rejected event as JSON: as it was read, or, where it contradicts other events, as it was understood."""
    columns = [column.name for column in contract.EVENTS]
    if isinstance(row, str):
        said: Mapping[str, Any] = {"_corrupt_record": row}
    elif isinstance(row, Event):
        said = {name: getattr(row, name) for name in columns}
    else:
        said = {name: row.get(name) for name in columns}
    text = json.dumps(said, default=_moment, ensure_ascii=False, separators=(",", ":"))
    return {"table": "events", "row": text, "reason": reason}


def _moment(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
