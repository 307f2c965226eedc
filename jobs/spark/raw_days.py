"""Count the events of each UTC day in each raw file, of new and changed files only, and read days from their files."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.daily_log import Watermark
from jobs.logic.events import LATEST
from jobs.raw_days import UNDATED, FileDays, LeftOut, counted_file, known_left_out, read_index, write_index
from jobs.sources.raw import TableFiles, table_files
from jobs.spark.behavior_sequences import session_for
from jobs.spark.judged_events import day_of
from jobs.spark.raw_files import FILE
from jobs.spark.raw_findings import path_of
from jobs.spark.raw_tables import judged_events

EPOCH: Final = date(1970, 1, 1)


def indexed(raw: Path, workspace: Path, master: str | None = None) -> dict[Path, FileDays]:
    """The rows of each day in each file of the raw table `events`; what is new is counted, and all is kept.

    Raises RawTableMissing, RawTableUnusable, JavaMissing (only where there is something to count).
    """
    table, known = table_files(raw, "events"), read_index(workspace)
    fresh = {file: known[str(file)] for file in table.files if str(file) in known and known[str(file)].is_of(file)}
    new = tuple(file for file in table.files if file not in fresh)
    if new:
        fresh |= count_days(session_for(raw, master), replace(table, files=new))
    if set(known) != {str(file) for file in fresh} or new:
        write_index(workspace, {str(file): one for file, one in fresh.items()})
    return fresh


def count_days(spark: SparkSession, table: TableFiles) -> dict[Path, FileDays]:
    """The rows of each day in each of these files of events; of a parquet file only the column event_time is read."""
    day = day_of("event_time").alias("day")
    # By the last of all clocks: a file is counted once, and what lies in the future now will not for ever.
    counts = judged_events(spark, table, LATEST).groupBy(FILE, day).agg(F.count("*").alias("rows")).collect()
    files: dict[Path, dict[str, int]] = {file.absolute(): {} for file in table.files}
    for row in counts:
        of_day = UNDATED if row["day"] is None else (EPOCH + timedelta(days=row["day"])).isoformat()
        files[path_of(row[FILE])][of_day] = int(row["rows"])
    return {file: counted_file(file, files[file.absolute()]) for file in table.files}


def files_of(table: TableFiles, index: dict[Path, FileDays], wanted: Callable[[FileDays], bool]) -> TableFiles:
    """The table's files that are wanted; where none is, its fullest one, which can be read and has no wanted row."""
    chosen = tuple(file for file in table.files if wanted(index[file]))
    return replace(table, files=chosen or (max(table.files, key=lambda file: sum(index[file].rows.values())),))


def left_out_now(raw: Path, workspace: Path, mark: Watermark, master: str | None = None) -> LeftOut:
    """What the log leaves out of the raw files as they are now."""
    indexed(raw, workspace, master)
    return known_left_out(workspace, mark)
