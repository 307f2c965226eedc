"""Write a query as a folder of parquet parts whose names and bytes depend on its rows alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from jobs.engines.duckdb_session import literal
from model.artifact import AnyPath

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
        names = ", ".join(f"{_nullable(name, kind)} AS {_quoted(name)}" for name, kind in rows.columns.items())
        order = ", ".join(f"one.{_quoted(name)}" for name in rows.order)
        part = folder / f"part-{number:05}.parquet"
        db.execute(f"COPY (SELECT {names} FROM ({query}) one ORDER BY {order}) TO {literal(part)} (FORMAT parquet)")


def ranges(db: duckdb.DuckDBPyConnection, rows: Rows, part_rows: int) -> list[str]:
    """Conditions on the key, each of which holds for about `part_rows` rows of the source, and in order for all.

    Where there are no rows there is one condition, and one part to show the columns.
    """
    key = _quoted(rows.key)
    starts = db.sql(
        f"SELECT DISTINCT {key} FROM {rows.source} "
        f"QUALIFY (row_number() OVER (ORDER BY {key}) - 1) % {part_rows} = 0 ORDER BY 1"
    ).fetchall()
    edges = [_sql(start) for (start,) in starts[1:]]
    above = ["TRUE", *(f"{key} >= {edge}" for edge in edges)]
    below = [*(f"{key} < {edge}" for edge in edges), "TRUE"]
    return [f"({low} AND {high})" for low, high in zip(above, below, strict=True)]


def _quoted(name: str) -> str:
    return f'"{name}"'


def _sql(value: Any) -> str:
    return literal(value) if isinstance(value, str) else str(value)


def _nullable(name: str, kind: str) -> str:
    """A column that may be null, for all that DuckDB can tell: it writes down whether one may, by what it knows."""
    column = f"one.{_quoted(name)}"
    if kind.startswith("list of "):
        return f"{column}[:]"
    if kind == "moment":  # in microseconds since 1970
        return f"make_timestamptz({column})"
    return f"nullif({column}, {'chr(0)' if kind == 'text' else -1})"


SQL_TYPES: Final = {
    "text": "VARCHAR",
    "moment": "TIMESTAMPTZ",
    "int8": "TINYINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float64": "DOUBLE",
}


def parquet_files(folder: Path) -> str:
    """DuckDB's expression for the rows of all parquet files of a folder."""
    return f"read_parquet({literal(folder / '*.parquet')})"


def read_files(folders: Sequence[AnyPath], columns: Mapping[str, str]) -> str:
    """DuckDB's expression for the rows of all parquet files of these folders, of which some may be missing or empty.

    columns: {name: kind, or DuckDB's own type}.
    """
    files = sorted(str(path) for folder in folders for path in folder.glob("*.parquet"))
    if files:
        return f"read_parquet([{', '.join(map(literal, files))}])"
    nothing = ", ".join(f"NULL::{_sql_type(kind)} AS {_quoted(name)}" for name, kind in columns.items())
    return f"(SELECT {nothing} WHERE FALSE)"


def _sql_type(kind: str) -> str:
    one = kind.removeprefix("list of ")
    return SQL_TYPES.get(one, one) + ("[]" if kind.startswith("list of ") else "")
