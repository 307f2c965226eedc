"""What raw tables show once DuckDB has read them: examples of the rejected rows."""

import duckdb

from feature_repo.contract import Column
from jobs.engines.duckdb_session import literal
from jobs.raw.check import SHOWN, Example
from jobs.raw.columns import COLUMNS
from jobs.raw.typed import FILE, NUMBER, REASON, ROW

TYPES = {"str": "VARCHAR", "int": "INTEGER", "float": "DOUBLE", "timestamp": "TIMESTAMPTZ"}


def examples(
    db: duckdb.DuckDBPyConnection, table: str, rejected: str, alone: str, per_reason: int
) -> dict[str, list[Example]]:
    """For each reason up to `per_reason` different rejected rows, the smallest as JSON.

    rejected: a query of reason and row.  alone: of the table's rows, each judged by itself, with `file` and `number`.
    """
    picked = (
        f"SELECT * FROM (SELECT DISTINCT {REASON}, {ROW} FROM ({rejected})) "
        f"QUALIFY row_number() OVER (PARTITION BY {REASON} ORDER BY {ROW}) <= {per_reason}"
    )
    db.execute(f"CREATE OR REPLACE TEMP TABLE picked AS {picked}")
    # A row that only other rows contradict stands alone without a reason, and then its columns say all.
    same = " AND ".join(f"one.{column.name} IS NOT DISTINCT FROM picked.{column.name}" for column in COLUMNS[table])
    typed = ", ".join(f"{_from_json(column)} AS {column.name}" for column in COLUMNS[table])
    place = f"{{'file': {FILE}, 'number': {NUMBER}}} AS place"
    found = (
        f"SELECT picked.{REASON}, picked.{ROW}, {place} FROM ({alone}) one JOIN picked ON one.{ROW} = picked.{ROW} "
        f"UNION ALL SELECT picked.{REASON}, picked.{ROW}, {place} "
        f"FROM (SELECT * FROM ({alone}) WHERE {ROW} IS NULL) one JOIN (SELECT *, {typed} FROM picked) picked ON {same}"
    )
    rows = db.execute(
        f"SELECT {REASON}, substr({ROW}, 1, {SHOWN}), min(place) FROM ({found}) GROUP BY {REASON}, {ROW} "
        f"ORDER BY {REASON}, {ROW}"
    ).fetchall()
    shown: dict[str, list[Example]] = {}
    for reason, row, place in rows:
        shown.setdefault(reason, []).append(Example(place["file"], place["number"], row))
    return shown


def _from_json(column: Column) -> str:
    """A column of a row that was written as JSON; null where the JSON has another."""
    return f"try_cast(json_extract_string({ROW}, {literal(f'$.{column.name}')}) AS {TYPES[column.kind]})"
