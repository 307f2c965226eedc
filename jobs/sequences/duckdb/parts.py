"""Write a query as a folder of parquet parts whose names and bytes depend on its rows alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from jobs.engines.duckdb_session import literal

PART_ROWS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Rows:
    """A table's rows, by a key that they are written in ranges of.

    query: SQL with one place `{range}`, where a condition on `key` stands.  order: a total order that begins with key.
    columns: {name: kind}, as jobs.rules.sequence_tables has them; what the query has besides may be ordered by.
    source: the table or subquery whose rows, counted by `key`, say how large the ranges are.
    """

    query: str
    key: str
    order: Sequence[str]
    columns: Mapping[str, str]
    source: str


def write_parts(db: duckdb.DuckDBPyConnection, rows: Rows, folder: Path, part_rows: int = PART_ROWS) -> None:
    """Write the rows to `folder`, in order, in parts of about `part_rows`: a key's rows lie in one part.

    Each part is a query of its own, so that memory holds no more than one of them.
    """
    folder.mkdir()
    for number, condition in enumerate(ranges(db, rows, part_rows)):
        query = rows.query.replace("{range}", condition)
        names = ", ".join(f"{_nullable(name, kind)} AS {name}" for name, kind in rows.columns.items())
        order = ", ".join(f"one.{name}" for name in rows.order)
        part = folder / f"part-{number:05}.parquet"
        db.execute(f"COPY (SELECT {names} FROM ({query}) one ORDER BY {order}) TO {literal(part)} (FORMAT parquet)")


def ranges(db: duckdb.DuckDBPyConnection, rows: Rows, part_rows: int) -> list[str]:
    """Conditions on the key, each of which holds for about `part_rows` rows of the source, and in order for all.

    Where there are no rows there is one condition, and one part to show the columns.
    """
    starts = db.sql(
        f"SELECT DISTINCT {rows.key} FROM {rows.source} "
        f"QUALIFY (row_number() OVER (ORDER BY {rows.key}) - 1) % {part_rows} = 0 ORDER BY 1"
    ).fetchall()
    edges = [_sql(start) for (start,) in starts[1:]]
    above = ["TRUE", *(f"{rows.key} >= {edge}" for edge in edges)]
    below = [*(f"{rows.key} < {edge}" for edge in edges), "TRUE"]
    return [f"({low} AND {high})" for low, high in zip(above, below, strict=True)]


def _sql(value: Any) -> str:
    return literal(value) if isinstance(value, str) else str(value)


def _nullable(name: str, kind: str) -> str:
    """A column that may be null, for all that DuckDB can tell: it writes down whether one may, by what it knows."""
    column = f"one.{name}"
    if kind.startswith("list of "):
        return f"{column}[:]"
    if kind == "moment":
        return f"make_timestamptz({column})"
    return f"nullif({column}, {'chr(0)' if kind == 'text' else -1})"


def parquet_files(folders: Sequence[Path]) -> str:
    """DuckDB's expression for the rows of all parquet files of these folders."""
    return f"read_parquet([{', '.join(literal(folder / '*.parquet') for folder in folders)}])"
