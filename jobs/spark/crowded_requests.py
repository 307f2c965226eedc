"""Judge the events of a request_id that a broken client sends with everything, without one task for all of them."""

from collections.abc import Sequence
from typing import Final

import structlog
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_repo import contract
from jobs.logic import events as logic
from jobs.spark.judged_events import (
    DAY,
    PAGE_DAY,
    REPEAT,
    contradiction,
    day_of,
    first_openings,
    judge_together,
    on_page,
)
from jobs.spark.raw_tables import REASON, reject_also

log = structlog.get_logger()

# A request with more events is judged apart. A task sorts a hundred thousand in a second; no page shows so many.
CROWD: Final = 100_000
FOUND: Final = 100  # crowded requests at most; Spark's sketch keeps a hundred times as many candidates


def judge(read: DataFrame, crowd: int = CROWD) -> DataFrame:
    """As judge_together, though some request_id has more than `crowd` events: they are told, and judged apart."""
    crowded = crowded_requests(read, crowd)
    if not crowded:
        return judge_together(read)
    log.warning("crowded_requests", requests=len(crowded), first=crowded[0][:80], more_events_than=crowd)
    theirs = F.col(REASON).isNull() & F.col("request_id").isin(*crowded)
    return judge_together(read.filter(~theirs)).unionByName(_judge_crowded(read.filter(theirs)))


def crowded_requests(read: DataFrame, crowd: int = CROWD) -> Sequence[str]:
    """The request_ids with more than `crowd` events, in order; of more than FOUND, those with the most.

    One pass over that column, and a sketch instead of a count of every request: Spark's approx_top_k, the frequent
    items of Apache DataSketches, misses none that has more than 5 in 10,000 of all events.
    """
    named = F.ltrim(F.col("request_id"), F.lit(logic.WHITE_SPACE)) != ""  # the many without one never meet
    top = read.filter(named).agg(F.expr(f"approx_top_k(request_id, {FOUND}, {100 * FOUND})").alias("top"))
    [row] = top.select(F.filter("top", lambda one: one["count"] > crowd)["item"].alias("found")).collect()
    return sorted(row["found"] or ())


def _judge_crowded(events: DataFrame) -> DataFrame:
    """judge_together for acceptable events of few requests: their page views are few, and go to the events."""
    placed = events.withColumn(DAY, day_of("event_time"))
    opening = F.when(F.col("event_type") == logic.IMPRESSION, F.struct("event_time", "user_id"))
    days = placed.groupBy("request_id", DAY).agg(F.min(opening).alias("_first"))
    pages = on_page(first_openings(days, F.col("_first"))).select("request_id", DAY, PAGE_DAY, "_opening")
    found = placed.join(F.broadcast(pages), on=["request_id", DAY], how="left")
    return reject_also(found.withColumn(REPEAT, _again()), contradiction(), contract.EVENTS, keep=[PAGE_DAY, REPEAT])


def _again() -> Column:
    same = Window.partitionBy("request_id", DAY, "user_id", "item_id", "event_type", "event_time")
    return F.row_number().over(same.orderBy(F.asc_nulls_last("position"))) > 1
