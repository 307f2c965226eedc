"""What each user clicked before a moment, newest first: a snapshot after every click."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.engines.parquet_parts import by_hash
from jobs.rules.events import CLICK, CONVERSIONS
from jobs.sequences.spark.event_validation import is_a


def clicks(events: DataFrame) -> DataFrame:
    """The clicks among accepted events."""
    return events.filter(is_a(CLICK)).select("user_id", "item_id", "event_time", "request_id")


def conversions(events: DataFrame) -> DataFrame:
    """The carts and purchases among accepted events."""
    wanted = events.filter(F.col("event_type").isin(*CONVERSIONS))
    return wanted.select("user_id", "item_id", "event_time", "event_type", "request_id")


def snapshots(clicked: DataFrame, length: int) -> DataFrame:
    """user_id, event_time, history: each user's last `length` clicks (at, item_id) up to and including that moment.

    Newest first, equal times by item_id, an item clicked twice at one moment once; a row per user and distinct moment,
    in each partition in the order of both.
    """
    distinct = by_hash(clicked.select("user_id", "event_time", "item_id"), "user_id").distinct()
    in_time = Window.partitionBy("user_id").orderBy("event_time", F.desc("item_id"))
    newest_last = F.collect_list(F.struct(F.col("event_time").alias("at"), "item_id"))
    rows = distinct.select(
        "user_id",
        "event_time",
        newest_last.over(in_time.rowsBetween(1 - length, Window.currentRow)).alias("newest_last"),
        F.lead("event_time").over(in_time).alias("next_time"),
    )
    # Of clicks at one moment only the last row has seen them all.
    whole = F.col("next_time").isNull() | (F.col("next_time") > F.col("event_time"))
    return rows.filter(whole).select("user_id", "event_time", F.reverse("newest_last").alias("history"))


def histories(kept: DataFrame, length: int) -> DataFrame:
    """Feast's source of the view user_history: each snapshot valid from one microsecond after its last click."""
    newest = kept.select("user_id", "event_time", F.slice("history", 1, length).alias("history"))
    return newest.select(
        "user_id",
        F.timestamp_micros(F.unix_micros("event_time") + 1).alias("event_timestamp"),
        F.col("history.item_id").alias("history_item_ids"),
        F.transform("history", lambda click: F.unix_micros(click["at"])).alias("history_clicked_at"),
    )


# --- from day to day ------------------------------------------------------------------------------------------------


def newest(kept: DataFrame) -> DataFrame:
    """The last snapshot of each user."""
    last = kept.groupBy("user_id").agg(F.max_by(F.struct("event_time", "history"), "event_time").alias("last"))
    return last.select("user_id", "last.event_time", "last.history")


def carry_on(fresh: DataFrame, earlier: DataFrame, length: int) -> DataFrame:
    """The snapshots `fresh`, each filled up from its user's `earlier` snapshot, and the earlier ones themselves.

    earlier: at most one snapshot a user, older than all of `fresh`.
    """
    before = earlier.select("user_id", F.col("history").alias("before"))
    longer = F.slice(F.concat("history", F.coalesce("before", F.slice("history", 1, 0))), 1, length)
    filled = fresh.join(before, on="user_id", how="left").select("user_id", "event_time", longer.alias("history"))
    return filled.unionByName(earlier)
