"""Count the events of each UTC day in each raw file with Spark."""

from datetime import timedelta

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.paths import from_spark
from jobs.raw.canonical import CanonicalTable
from jobs.raw.spark_tables import event_times
from jobs.rules.events import EPOCH, LATEST
from jobs.sequences.daily.raw_days import UNDATED, file_name
from jobs.sequences.spark.event_validation import day_of


def count_days(spark: SparkSession, table: CanonicalTable) -> dict[str, dict[str, int]]:
    """The rows of each day in each of these files of events; of a parquet file only the column event_time is read."""
    day = day_of("event_time").alias("day")
    # By the last of all clocks: a file is counted once, and what lies in the future now will not for ever.
    counts = event_times(spark, table, LATEST).groupBy("path", day).agg(F.count("*").alias("rows")).collect()
    files: dict[str, dict[str, int]] = {file_name(file): {} for file in table.files}
    for row in counts:
        of_day = UNDATED if row["day"] is None else (EPOCH.date() + timedelta(days=row["day"])).isoformat()
        files[from_spark(row["path"])][of_day] = int(row["rows"])
    return {name: dict(sorted(rows.items())) for name, rows in files.items()}
