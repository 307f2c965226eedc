"""What raw tables show once DuckDB has read them: how many rows there are, and examples of the rejected ones."""

import duckdb

from feature_repo.contract import Column
from jobs.engines.duckdb_session import literal
from jobs.raw import layout as raw_layout
from jobs.raw.arrow_batches import FILE
from jobs.raw.check import SHOWN, Example, within
from jobs.raw.duckdb_files import parts
from jobs.raw.duckdb_tables import REASON, ROW
from jobs.raw.folder import table_files
from model.artifact import AnyPath

TYPES = {"str": "VARCHAR", "int": "INTEGER", "float": "DOUBLE", "timestamp": "TIMESTAMPTZ"}


def rows_read(db: duckdb.DuckDBPyConnection, raw: AnyPath, table: str) -> int:
    """How many rows the files of a table hold, counted before any is judged."""
    read = " UNION ALL ".join(f"({part.query})" for part in parts(db, table_files(raw, table)))
    [[rows]] = db.execute(f"SELECT count(*) FROM ({read})").fetchall()
    return int(rows)


def examples(
    db: duckdb.DuckDBPyConnection, raw: AnyPath, table: str, rejected: str, alone: str, per_reason: int
) -> dict[str, list[Example]]:
    """For each reason up to `per_reason` different rejected rows, the smallest as JSON.

    rejected: a query of reason and row.  alone: of the table's rows, each judged by itself, with `_file`.
    """
    columns = raw_layout.COLUMNS[table]
    picked = (
        f"SELECT * FROM (SELECT DISTINCT {REASON}, {ROW} FROM ({rejected})) "
        f"QUALIFY row_number() OVER (PARTITION BY {REASON} ORDER BY {ROW}) <= {per_reason}"
    )
    db.execute(f"CREATE OR REPLACE TEMP TABLE picked AS {picked}")
    # A row that only other rows contradict stands alone without a reason, and then its columns say all.
    same = " AND ".join(f"one.{column.name} IS NOT DISTINCT FROM picked.{column.name}" for column in columns)
    typed = ", ".join(f"{_from_json(column)} AS {column.name}" for column in columns)
    found = (
        f"SELECT picked.{REASON}, picked.{ROW}, {FILE} FROM ({alone}) one JOIN picked ON one.{ROW} = picked.{ROW} "
        f"UNION ALL SELECT picked.{REASON}, picked.{ROW}, {FILE} "
        f"FROM (SELECT * FROM ({alone}) WHERE {ROW} IS NULL) one JOIN (SELECT *, {typed} FROM picked) picked ON {same}"
    )
    rows = db.execute(
        f"SELECT {REASON}, substr({ROW}, 1, {SHOWN}), min({FILE}) FROM ({found}) GROUP BY {REASON}, {ROW} "
        f"ORDER BY {REASON}, {ROW}"
    ).fetchall()
    shown: dict[str, list[Example]] = {}
    for reason, row, file in rows:
        shown.setdefault(reason, []).append(Example(within(raw, file), row))
    return shown


def _from_json(column: Column) -> str:
    """A column of a row that was written as JSON; null where the JSON has another."""
    return f"try_cast(json_extract_string({ROW}, {literal(f'$.{column.name}')}) AS {TYPES[column.kind]})"
