"""Raw tables as DuckDB, Spark and plain Python read them: a moment is microseconds since 1970."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any

from jobs.raw import layout as raw_layout
from jobs.raw.folder import table_files
from jobs.rules import items as catalogue
from jobs.rules.events import micros

MOMENT = {"events": "event_time", "items": "created_at"}
NAMES = ("item_id", "image_uri", "category", "title", "price", "created_at")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Spark:
    """The raw tables as Spark reads them."""

    session: Any

    def rows(self, raw: Path, table: str, as_of: datetime | None = None) -> Rows:
        """The rows of a table, with reason and row."""
        from jobs.raw.spark_files import damage_named

        with damage_named():
            return [row.asDict() for row in self._frame(raw, table, as_of).collect()]

    def rows_of(self, raws: Mapping[str, tuple[Path, str]]) -> dict[str, Rows]:
        """The rows of many tables, by name: four in a job, which costs less than one or all of them."""
        from pyspark.sql import functions as F

        found: dict[str, Rows] = {name: [] for name in raws}
        for table in MOMENT:
            names = [name for name, (_, one) in raws.items() if one == table]
            frames = [self._frame(raws[name][0], table, None).withColumn("_name", F.lit(name)) for name in names]
            for start in range(0, len(frames), 4):
                together = reduce(lambda one, other: one.unionByName(other), frames[start : start + 4])
                for row in together.collect():
                    plain = row.asDict()
                    found[plain.pop("_name")].append(plain)
        return found

    def alone(self, raw: Path, table: str) -> list[tuple[str, str | None, str | None]]:
        """File, reason and item_id of each row, judged without regard to the others."""
        from jobs.raw.spark_tables import judged_alone

        rows = judged_alone(self.session, raw, table, datetime.now(UTC)).select("_file", "reason", "item_id").collect()
        return [(Path(row["_file"]).name, row["reason"], row["item_id"]) for row in rows]

    def count(self, raw: Path, table: str) -> int:
        """The rows of a table, counted before any is judged."""
        from jobs.raw.spark_findings import rows_read

        return rows_read(self.session, raw, table)

    def _frame(self, raw: Path, table: str, as_of: datetime | None) -> Any:
        from pyspark.sql import functions as F

        from jobs.raw.spark_tables import read_events, read_items

        now = as_of or datetime.now(UTC)
        judged = read_events(self.session, raw, now) if table == "events" else read_items(self.session, raw)
        # Spark's Python side turns timestamps into this machine's local time: take the number instead.
        return judged.withColumn(MOMENT[table], F.unix_micros(MOMENT[table]))


@dataclass(frozen=True)
class DuckDB:
    """The raw tables as DuckDB reads them."""

    connection: Any

    def rows(self, raw: Path, table: str, as_of: datetime | None = None) -> Rows:
        """The rows of a table, with reason and row."""
        from jobs.raw.duckdb_tables import read_events, read_items

        def query() -> str:
            now = as_of or datetime.now(UTC)
            return read_events(self.connection, raw, now) if table == "events" else read_items(self.connection, raw)

        moment = MOMENT[table]
        return self._asked(raw, query, f"* EXCLUDE (_file) REPLACE (epoch_us({moment}) AS {moment})")

    def rows_of(self, raws: Mapping[str, tuple[Path, str]]) -> dict[str, Rows]:
        """The rows of many tables, by name."""
        return {name: self.rows(raw, table) for name, (raw, table) in raws.items()}

    def alone(self, raw: Path, table: str) -> list[tuple[str, str | None, str | None]]:
        """File, reason and item_id of each row, judged without regard to the others."""
        from jobs.raw.duckdb_tables import judged_items

        rows = self._asked(raw, lambda: judged_items(self.connection, table_files(raw, table)), "*")
        return [(Path(row["_file"]).name, row["reason"], row["item_id"]) for row in rows]

    def count(self, raw: Path, table: str) -> int:
        """The rows of a table, counted before any is judged."""
        from jobs.raw.duckdb_files import reading
        from jobs.raw.duckdb_findings import rows_read

        return reading(self.connection, raw, lambda: rows_read(self.connection, raw, table))

    def _asked(self, raw: Path, query: Any, columns: str) -> Rows:
        from jobs.raw.duckdb_files import reading

        asked = lambda: self.connection.sql(f"SELECT {columns} FROM ({query()})").to_arrow_table()  # noqa: E731
        return reading(self.connection, raw, asked).to_pylist()


class Beam:
    """Items as the images job reads them, in plain Python."""

    def accepted(self, raw: Path) -> tuple[list[tuple[Any, ...]], Counter[str]]:
        """The accepted items as tuples of NAMES, and why the others are rejected."""
        from jobs.raw import beam_rows as raw_rows

        table = table_files(raw, "items")
        for file in table.files:
            raw_layout.check_file("items", table.format, file)
        rows = [row for file in table.files for row in raw_rows.rows(table.format, file)]
        accepted, rejected = catalogue.accept([row for row in rows if not isinstance(row, str)])
        reasons = Counter(reason for _, reason in rejected)
        if broken := sum(isinstance(row, str) for row in rows):
            reasons[catalogue.BAD_ROW] += broken
        return [self._flat(item) for item in accepted], reasons

    def rows(self, raw: Path, table: str) -> list[tuple[Any, ...]]:
        """The accepted items; nothing of the events, which it does not read."""
        return self.accepted(raw)[0] if table == "items" else []

    def _flat(self, item: catalogue.Item) -> tuple[Any, ...]:
        at = item.created_at and micros(item.created_at)
        return item.item_id, item.image_uri, item.category, item.title, item.price, at
