"""Make page views of validated events: what was shown from the top down, with labels, and the period of each."""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.engines.parquet_parts import by_hash
from jobs.rules.events import CLICK, IMPRESSION
from jobs.rules.page_views import TEST, TRAIN, VALID, cut
from jobs.sequences.spark.event_validation import PAGE_DAY, is_a
from jobs.sequences.splits import Splits


def pages(events: DataFrame) -> DataFrame:
    """request_id, user_id, request_time, shown, attributed, rows, moments, last: a row per page view.

    shown: array of (position, item_id, clicked, shown_at), from the top down.  attributed: how many clicks label it.
    rows, moments: its impressions, with repeats and without.  last: when the last of them was.
    events: accepted, with page_day; repeats count once.  A request_id that comes again days later has two rows here,
    of different request_time; the rows of each partition are in the order of both.
    """
    seen, hit = is_a(IMPRESSION), is_a(CLICK)
    page = ("request_id", PAGE_DAY, "user_id")
    known = events.filter((seen | hit) & F.col(PAGE_DAY).isNotNull())
    once = known.groupBy(*page, "item_id", "event_type", "event_time").agg(
        F.min("position").alias("position"), F.count("*").alias("rows")
    )
    met = once.groupBy(*page, "item_id").agg(
        F.min(F.when(seen, F.col("position"))).alias("position"),
        F.min(F.when(seen, F.col("event_time"))).alias("shown_at"),
        F.max(F.when(seen, F.col("event_time"))).alias("last"),
        F.sum(F.when(seen, F.col("rows"))).alias("rows"),
        F.count_if(seen).alias("moments"),
        F.count_if(hit).alias("clicks"),
    )
    one = F.struct("position", "item_id", (F.col("clicks") > 0).cast("tinyint").alias("clicked"), "shown_at")
    # Sorted, they are gathered page by page; by a hash table of arrays Spark gave up after 128 pages and sorted anyway.
    in_order = met.filter(F.col("shown_at").isNotNull()).sortWithinPartitions(*page)
    gathered = in_order.groupBy(*page).agg(
        F.min("shown_at").alias("request_time"),
        # sort_array and not array_sort, which compares by a function that Spark interprets.
        F.sort_array(F.collect_list(one)).alias("shown"),
        F.sum("clicks").alias("attributed"),
        *(F.sum(name).alias(name) for name in ("rows", "moments")),
        F.max("last").alias("last"),
    )
    return gathered.drop(PAGE_DAY)


def impressions(shown: DataFrame) -> DataFrame:
    """One row per distinct item of each page view: its label `clicked`, and when it was first shown there."""
    rows = shown.select("request_id", "user_id", "request_time", F.inline("shown"))
    return rows.select("request_id", "user_id", "item_id", "request_time", "shown_at", "position", "clicked")


def page_views(shown: DataFrame, kept: DataFrame, size: int, history: int) -> DataFrame:
    """The pre-training table: items of each page with labels, and the user's newest clicks strictly before it.

    kept: jobs.sequences.spark.histories.snapshots of at least `history` clicks.
    """
    asked = shown.select("request_id", "user_id", F.col("request_time").alias("at"))
    newest = F.slice(F.col("history.item_id"), 1, history).alias("newest")
    both = asked.unionByName(kept.select("user_id", F.col("event_time").alias("at"), newest), allowMissingColumns=True)
    # At equal times the page view (request_id not null) comes before the snapshot: a history is strictly earlier.
    past = Window.partitionBy("user_id").orderBy("at", F.col("request_id").isNull())
    past = past.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    joined = both.withColumn("newest", F.last("newest", ignorenulls=True).over(past))
    found = joined.filter(F.col("request_id").isNotNull() & F.col("newest").isNotNull())
    # Only keys went to the users and come back with histories; what was shown stays where it lies, in its order.
    back = by_hash(found.select("request_id", F.col("at").alias("request_time"), "newest"), "request_id")
    whole = shown.join(back.hint("shuffle_hash"), on=["request_id", "request_time"], how="left")
    return whole.withColumn("picked", _picked(size)).select(
        "request_id",
        "user_id",
        "request_time",
        F.col("picked.item_id").alias("item_ids"),
        F.col("picked.clicked").alias("labels"),
        F.coalesce("newest", F.array().cast("array<string>")).alias("history_item_ids"),
    )


def _picked(size: int) -> Column:
    """At most `size` of the array `shown`, from the top down: the clicked ones first of all, then the topmost."""
    hit = F.filter("shown", lambda one: one["clicked"] == 1)
    missed = F.filter("shown", lambda one: one["clicked"] == 0)
    return F.sort_array(F.slice(F.concat(hit, missed), 1, size))


# --- periods --------------------------------------------------------------------------------------------------------


def time_splits(
    shown: DataFrame, views: int, first: int, last: int, train_fraction: float, valid_fraction: float
) -> Splits:
    """The moments that part the periods of the page views `shown`, of which there are `views` > 0.

    first, last: when the first and the last event happened.
    """
    return Splits(
        start=first,
        valid_start=_nth_time(shown, cut(views, train_fraction)),
        test_start=_nth_time(shown, cut(views, train_fraction + valid_fraction)),
        end=last + 1,
    )


def _nth_time(shown: DataFrame, n: int) -> int:
    """The n-th request_time in time order, n from 0, in microseconds since 1970."""
    # A sort over all partitions, as an exact quantile needs; only one number comes to the driver.
    times = shown.select(F.unix_micros("request_time").alias("at")).orderBy("at")
    return int(times.offset(n).limit(1).collect()[0]["at"])


def period(splits: Splits) -> Column:
    """The period that the column request_time falls in."""
    at = F.unix_micros("request_time")
    later = F.when(at < splits.test_start, VALID).otherwise(TEST)
    return F.when(at < splits.valid_start, TRAIN).otherwise(later)
