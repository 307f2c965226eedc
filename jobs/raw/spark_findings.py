"""What raw tables show once they are read: rows that lead nowhere, the days they cover, examples of rejected rows."""

from datetime import timedelta
from functools import reduce
from operator import and_

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.paths import from_spark
from jobs.raw.check import SHOWN, Day, Example
from jobs.raw.columns import COLUMNS
from jobs.raw.typed import FILE, NUMBER, REASON, ROW
from jobs.rules.events import EPOCH


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


def examples(table: str, judged: DataFrame, alone: DataFrame, per_reason: int) -> dict[str, list[Example]]:
    """For each reason up to `per_reason` different rejected rows, the smallest as JSON.

    judged: the rows of table with `reason` and `row`.  alone: each judged by itself, with `file` and `number`.
    """
    names = [column.name for column in COLUMNS[table]]
    bad = judged.filter(F.col(REASON).isNotNull()).select(*names, ROW, REASON).distinct()
    rank = F.row_number().over(Window.partitionBy(REASON).orderBy(ROW))
    chosen = bad.withColumn("_rank", rank).filter(F.col("_rank") <= per_reason)
    picked = chosen.select(*(F.col(name).alias(f"_{name}") for name in names), F.col(ROW).alias("_row"), REASON)
    same = reduce(and_, (F.col(name).eqNullSafe(F.col(f"_{name}")) for name in names))
    # A row that only other rows contradict stands alone without a reason, and then its columns say all.
    matches = F.coalesce(F.col(ROW) == F.col("_row"), same)
    found = alone.drop(REASON).join(F.broadcast(picked), on=matches, how="inner")
    place = F.min(F.struct(FILE, NUMBER)).alias("place")
    one = found.groupBy(REASON, "_row").agg(place).orderBy(REASON, "_row")
    shown: dict[str, list[Example]] = {}
    for row in one.select(REASON, "place", F.substring("_row", 1, SHOWN).alias(ROW)).collect():
        example = Example(from_spark(row["place"][FILE]), row["place"][NUMBER], row[ROW])
        shown.setdefault(row[REASON], []).append(example)
    return shown
