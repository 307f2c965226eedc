"""What raw tables show once they are read: rows that lead nowhere, the days they cover, examples of rejected rows."""

from datetime import datetime, timedelta
from functools import reduce
from operator import and_

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from jobs.paths import from_spark
from jobs.raw import layout as raw_layout
from jobs.raw.check import SHOWN, Day, Example, within
from jobs.raw.folder import table_files
from jobs.raw.spark_files import FILE, parts
from jobs.raw.spark_tables import REASON, ROW, judged_alone
from jobs.rules.events import EPOCH
from model.artifact import AnyPath


def rows_read(spark: SparkSession, raw: AnyPath, table: str) -> int:
    """How many rows the files of a table hold, counted before any is judged."""
    return sum(part.count() for part in parts(spark, table_files(raw, table)))


def of_unknown_items(events: DataFrame, items: DataFrame) -> int:
    """How many events name an item that no accepted row of the items table describes."""
    return events.join(items.select("item_id"), on="item_id", how="left_anti").count()


def without_events(items: DataFrame, events: DataFrame) -> int:
    """How many items no event names."""
    return items.join(events.select("item_id").distinct(), on="item_id", how="left_anti").count()


def days(events: DataFrame) -> list[Day]:
    """The days on which there are events, in order."""
    at = F.unix_micros("event_time")
    by_day = events.groupBy(F.date_format("event_time", "yyyy-MM-dd").alias("day")).agg(
        F.count("*").alias("events"), F.min(at).alias("first"), F.max(at).alias("last")
    )
    found = by_day.orderBy("day").collect()
    return [Day(row["day"], row["events"], _iso(row["first"]), _iso(row["last"])) for row in found]


def _iso(micros: int) -> str:
    return (EPOCH + timedelta(microseconds=micros)).isoformat()


def examples(
    spark: SparkSession, raw: AnyPath, table: str, judged: DataFrame, per_reason: int, as_of: datetime
) -> dict[str, list[Example]]:
    """For each reason up to `per_reason` different rejected rows, the smallest as JSON.

    judged: what read_events, as of `as_of`, or read_items gives.
    """
    names = [column.name for column in raw_layout.COLUMNS[table]]
    bad = judged.filter(F.col(REASON).isNotNull()).distinct()
    rank = F.row_number().over(Window.partitionBy(REASON).orderBy(ROW))
    chosen = bad.withColumn("_rank", rank).filter(F.col("_rank") <= per_reason)
    picked = chosen.select(*(F.col(name).alias(f"_{name}") for name in names), F.col(ROW).alias("_row"), REASON)
    alone = judged_alone(spark, raw, table, as_of).drop(REASON)
    same = reduce(and_, (F.col(name).eqNullSafe(F.col(f"_{name}")) for name in names))
    # A row that only other rows contradict stands alone without a reason, and then its columns say all.
    found = alone.join(F.broadcast(picked), on=F.coalesce(F.col(ROW) == F.col("_row"), same), how="inner")
    one = found.groupBy(REASON, "_row").agg(F.min(FILE).alias(FILE)).orderBy(REASON, "_row")
    shown: dict[str, list[Example]] = {}
    for row in one.select(REASON, FILE, F.substring("_row", 1, SHOWN).alias(ROW)).collect():
        shown.setdefault(row[REASON], []).append(Example(within(raw, from_spark(row[FILE])), row[ROW]))
    return shown
