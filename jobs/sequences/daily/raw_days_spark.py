"""Count the events of each UTC day in each raw file, of new and changed files only, and read days from their files."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Final

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.paths import from_spark
from jobs.raw.folder import TableFiles, file_version, table_files
from jobs.raw.spark_files import FILE
from jobs.raw.spark_tables import judged_events
from jobs.rules.events import LATEST
from jobs.sequences.daily.log import Watermark
from jobs.sequences.daily.raw_days import UNDATED, FileDays, LeftOut, known_left_out, read_index, write_index
from jobs.sequences.spark.behavior_sequences import session_for
from jobs.sequences.spark.event_validation import day_of
from model.artifact import AnyPath

EPOCH: Final = date(1970, 1, 1)


def indexed(raw: AnyPath, workspace: AnyPath, master: str | None = None) -> dict[str, FileDays]:
    """The rows of each day in each file of the raw table `events`, by path; what is new is counted, and all is kept.

    Raises RawTableMissing, RawTableUnusable, JavaMissing (only where there is something to count).
    """
    table, known = table_files(raw, "events"), read_index(workspace)
    version = {_name(file): file_version(file) for file in table.files}
    fresh = {name: known[name] for name in version if name in known and known[name].version == version[name]}
    new = tuple(file for file in table.files if _name(file) not in fresh)
    if new:
        counts = count_days(session_for(raw, master), replace(table, files=new))
        fresh |= {name: FileDays(version=version[name], rows=rows) for name, rows in counts.items()}
    if known.keys() != fresh.keys() or new:
        write_index(workspace, fresh)
    return fresh


def count_days(spark: SparkSession, table: TableFiles) -> dict[str, dict[str, int]]:
    """The rows of each day in each of these files of events; of a parquet file only the column event_time is read."""
    day = day_of("event_time").alias("day")
    # By the last of all clocks: a file is counted once, and what lies in the future now will not for ever.
    counts = judged_events(spark, table, LATEST).groupBy(FILE, day).agg(F.count("*").alias("rows")).collect()
    files: dict[str, dict[str, int]] = {_name(file): {} for file in table.files}
    for row in counts:
        of_day = UNDATED if row["day"] is None else (EPOCH + timedelta(days=row["day"])).isoformat()
        files[from_spark(row[FILE])][of_day] = int(row["rows"])
    return {name: dict(sorted(rows.items())) for name, rows in files.items()}


def files_of(table: TableFiles, index: Mapping[str, FileDays], wanted: Callable[[FileDays], bool]) -> TableFiles:
    """The table's files that are wanted; where none is, its fullest one, which can be read and has no wanted row."""
    chosen = tuple(file for file in table.files if wanted(index[_name(file)]))
    fullest = max(table.files, key=lambda file: sum(index[_name(file)].rows.values()))
    return replace(table, files=chosen or (fullest,))


def left_out_now(raw: AnyPath, workspace: AnyPath, mark: Watermark, master: str | None = None) -> LeftOut:
    """What the log leaves out of the raw files as they are now."""
    indexed(raw, workspace, master)
    return known_left_out(workspace, mark, datetime.now(UTC))


def _name(file: AnyPath) -> str:
    return str(file.absolute())
