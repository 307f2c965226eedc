"""What raw tables show once DuckDB has read them: rows that lead nowhere, the days they cover, rejected rows."""

import duckdb

from jobs.raw.duckdb_files import parts, reading
from jobs.raw.folder import table_files
from model.artifact import AnyPath


def rows_read(db: duckdb.DuckDBPyConnection, raw: AnyPath, table: str) -> int:
    """How many rows the files of a table hold, counted before any is judged."""

    def count() -> int:
        read = " UNION ALL ".join(f"({part.query})" for part in parts(db, table_files(raw, table)))
        [[rows]] = db.execute(f"SELECT count(*) FROM ({read})").fetchall()
        return int(rows)

    return reading(db, raw, count)
