"""Count the events of each UTC day in each raw file with DuckDB."""

from datetime import timedelta

import duckdb

from jobs.raw.canonical import CanonicalTable
from jobs.raw.duckdb_tables import event_times
from jobs.rules.events import EPOCH, LATEST
from jobs.sequences.daily.raw_days import UNDATED, file_name
from jobs.sequences.duckdb.moments import day_of


def count_days(db: duckdb.DuckDBPyConnection, table: CanonicalTable) -> dict[str, dict[str, int]]:
    """The rows of each day in each of these files of events; of a parquet file only the column event_time is read."""
    day, files = day_of("epoch_us(event_time)"), {file_name(file): dict[str, int]() for file in table.files}
    # By the last of all clocks: a file is counted once, and what lies in the future now will not for ever.
    events = event_times(db, table, LATEST)
    for name, number, rows in db.sql(f"SELECT path, {day}, count(*) FROM ({events}) GROUP BY ALL").fetchall():
        of_day = UNDATED if number is None else (EPOCH.date() + timedelta(days=number)).isoformat()
        files[name][of_day] = int(rows)
    return {name: dict(sorted(rows.items())) for name, rows in files.items()}
