"""Raw tables, once they are ingested, as DuckDB, Spark and Beam read them: a moment is microseconds since 1970."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any

from plain_rows import rows as plain_rows

from jobs.config import IngestConfig
from jobs.raw.canonical import CanonicalTable, canonical_table
from jobs.raw.folder import table_files
from jobs.raw.ingest import read_tables
from jobs.rules import items as catalogue
from jobs.rules.events import micros

MOMENTS = {"events": ("event_time",), "items": ("created_at", "updated_at")}
NAMES = ("item_id", "image_uri", "category", "title", "price", "created_at", "updated_at")
Rows = list[dict[str, Any]]


def ingested(raw: Path, table: str) -> CanonicalTable:
    """A raw table as engines read it."""
    table_files(raw, table)
    out = raw.parent / f"{raw.name}-ingested" if isinstance(raw, Path) else Path(tempfile.mkdtemp()) / "ingested"
    read_tables(raw=raw, raw_digest="", out=out, config=IngestConfig(), threads=1)
    return canonical_table(out, table, raw)


@dataclass(frozen=True)
class Spark:
    """The raw tables as Spark reads them."""

    session: Any

    def rows(self, raw: Path, table: str, as_of: datetime | None = None) -> Rows:
        """The rows of a table, with reason and row."""
        from jobs.raw.spark_tables import damage_named

        with damage_named():
            return [row.asDict() for row in self._frame(raw, table, as_of).collect()]

    def rows_of(self, raws: Mapping[str, tuple[Path, str]]) -> dict[str, Rows]:
        """The rows of many tables, by name: four in a job, which costs less than one or all of them."""
        from pyspark.sql import functions as F

        found: dict[str, Rows] = {name: [] for name in raws}
        for table in MOMENTS:
            names = [name for name, (_, one) in raws.items() if one == table]
            frames = [self._frame(raws[name][0], table, None).withColumn("_name", F.lit(name)) for name in names]
            for start in range(0, len(frames), 4):
                together = reduce(lambda one, other: one.unionByName(other), frames[start : start + 4])
                for row in together.collect():
                    plain = row.asDict()
                    found[plain.pop("_name")].append(plain)
        return found

    def _frame(self, raw: Path, table: str, as_of: datetime | None) -> Any:
        from pyspark.sql import functions as F

        from jobs.raw.spark_tables import read_events, read_items

        now, read = as_of or datetime.now(UTC), ingested(raw, table)
        judged = read_events(self.session, read, now) if table == "events" else read_items(self.session, read)
        # Spark's Python side turns timestamps into this machine's local time: take the number instead.
        return judged.withColumns({name: F.unix_micros(name) for name in MOMENTS[table]})


@dataclass(frozen=True)
class DuckDB:
    """The raw tables as DuckDB reads them."""

    connection: Any

    def rows(self, raw: Path, table: str, as_of: datetime | None = None) -> Rows:
        """The rows of a table, with reason and row."""
        from jobs.raw.duckdb_tables import read_events, read_items

        now, read = as_of or datetime.now(UTC), ingested(raw, table)
        query = read_events(self.connection, read, now) if table == "events" else read_items(self.connection, read)
        moments = ", ".join(f"epoch_us({name}) AS {name}" for name in MOMENTS[table])
        asked = f"SELECT * REPLACE ({moments}) FROM ({query})"
        return list(self.connection.sql(asked).to_arrow_table().to_pylist())

    def rows_of(self, raws: Mapping[str, tuple[Path, str]]) -> dict[str, Rows]:
        """The rows of many tables, by name."""
        return {name: self.rows(raw, table) for name, (raw, table) in raws.items()}


def accepted_items(raw: Path) -> tuple[list[tuple[Any, ...]], Counter[str]]:
    """The items that plain Python accepts of the raw files, as tuples of NAMES, and why the others are rejected."""
    rows = [row for file in table_files(raw, "items").files for row in plain_rows(file)]
    accepted, rejected = catalogue.accept([row for row in rows if not isinstance(row, str)])
    reasons = Counter(reason for _, reason in rejected)
    if broken := sum(isinstance(row, str) for row in rows):
        reasons[catalogue.BAD_ROW] += broken
    return [_flat(item) for item in accepted], reasons


def _flat(item: catalogue.Item) -> tuple[Any, ...]:
    moments = (at and micros(at) for at in (item.created_at, item.updated_at))
    return item.item_id, item.image_uri, item.category, item.title, item.price, *moments
