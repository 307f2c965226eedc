"""Write a stream's rows as parquet parts, a folder for each table and day; each appears whole, and never changes."""

import hashlib
import io
import zlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics
from apache_beam.transforms.trigger import AccumulationMode, AfterProcessingTime, AfterWatermark
from apache_beam.transforms.window import GlobalWindows

from feature_repo.contract import EVENTS
from jobs.rules.histories import AFTER_THE_CLICK
from jobs.rules.sequence_tables import TABLES, Table
from jobs.sequences.beam.tables import Row, schema
from model import artifact

UNDATED: Final = "undated"  # in place of a day, for rows of which none is known
LATE: Final = "late"
KINDS: Final = {"str": "text", "timestamp": "moment", "int": "int32"}
# Events that came after their day had been let go: as they were understood, for a batch over that day.
LATE_TABLE: Final = Table(
    {column.name: KINDS[column.kind] for column in EVENTS},
    by=("user_id",),
    then=("event_time", "item_id", "event_type", "request_id"),
)
ALL: Final[Mapping[str, Table]] = {**TABLES, LATE: LATE_TABLE}
MOMENT: Final = {"impressions": "request_time", "page_views": "request_time", "histories": "event_timestamp"}

Dated = tuple[str, Row]


class WriteDayParts(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Write rows to OUT/TABLE/DAY/part-*.parquet.

    What comes within `seconds` is gathered into one part of each day and shard; None: all that comes until the source
    ends, for the local runner, which knows no trigger by the clock.  A part is named by its bytes, so one that a runner
    writes again is the same file.
    """

    def __init__(self, table: str, out: Path, *, shards: int, seconds: int | None) -> None:
        super().__init__()
        self.table, self.out, self.shards, self.seconds = table, str(out), shards, seconds

    def expand(self, rows: Any) -> Any:
        """PCollection of Dated -> PCollection of the paths written."""
        dealt = rows | "Shard" >> beam.Map(_dealt, by=ALL[self.table].by[0], shards=self.shards).with_output_types(
            tuple[tuple[str, int], Any]
        )
        # One window for all: by its moment, what was settled long ago would be dropped as late.
        gathered = dealt | "Gather" >> beam.WindowInto(
            GlobalWindows(),
            trigger=AfterWatermark(early=None if self.seconds is None else AfterProcessingTime(self.seconds)),
            accumulation_mode=AccumulationMode.DISCARDING,
        )
        return gathered | "Together" >> beam.GroupByKey() | "Write" >> beam.Map(_write, table=self.table, out=self.out)


def dated(row: Row, table: str) -> Dated:
    """A row of a table that knows its moment, with the UTC day that it belongs to."""
    at: datetime = row[MOMENT.get(table, "event_time")]
    # A snapshot belongs to the day of its click, though it becomes valid a microsecond later.
    return (at - AFTER_THE_CLICK if table == "histories" else at).date().isoformat(), row


def _dealt(one: Dated, by: str, shards: int) -> tuple[tuple[str, int], Row]:
    day, row = one
    return (day, zlib.crc32(row[by].encode()) % shards), row


def _write(group: tuple[tuple[str, int], Iterable[Row]], table: str, out: str) -> str:
    (day, _), rows = group
    declared = ALL[table]
    order = (*declared.by, *declared.then)
    kept = sorted(rows, key=lambda row: tuple(row[name] for name in order))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(kept, schema(declared, divided=False)), buffer)
    path = Path(out) / table / day / f"part-{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_whole(path, buffer.getvalue())
    Metrics.counter("parts", f"rows_{table}").inc(len(kept))
    Metrics.counter("parts", f"parts_{table}").inc()
    return str(path)
