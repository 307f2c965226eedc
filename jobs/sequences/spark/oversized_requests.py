"""Judge the events of a request_id that a broken client sends with everything, without one task for all of them."""

from collections.abc import Sequence
from typing import Final

import structlog
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_repo import contract
from jobs.raw.spark_tables import reject_also
from jobs.raw.typed import REASON
from jobs.rules import events as logic
from jobs.sequences.spark.event_validation import (
    DAY,
    PAGE_DAY,
    REPEAT,
    contradiction,
    is_a,
    on_pages,
    openings,
    validate_together,
)

log = structlog.get_logger()

# A request with more events is validated apart. A task sorts a hundred thousand in a second; no page shows so many.
OVERSIZED: Final = 100_000
FEW: Final = 100_000  # request ids that every task may hold
FOUND: Final = 100  # oversized requests at most; Spark's sketch keeps a hundred times as many candidates


def validate_apart(read: DataFrame, opened: DataFrame, larger_than: int = OVERSIZED) -> DataFrame:
    """Of what validate_together gives, the rows that are no accepted impressions: a tenth of the events.

    opened: the openings of all acceptable impressions of `read`.
    """
    impression = F.col(REASON).isNull() & is_a(logic.IMPRESSION)
    events = read.filter(~impression)
    shared = opened.filter("shared").select("request_id").distinct()
    if requests := shared.count():  # only impressions of requests shown to several users can be rejected
        few = F.broadcast(shared) if requests <= FEW else shared
        events = events.unionByName(read.filter(impression).join(few, on="request_id", how="left_semi"))
    validated = _validate(events, opened, oversized_requests(read, larger_than))
    return validated.filter(F.col(REASON).isNotNull() | ~is_a(logic.IMPRESSION))


def validate(read: DataFrame, larger_than: int = OVERSIZED) -> DataFrame:
    """As validate_together, though some request_id has more than `larger_than` events: told, and validated apart."""
    return _validate(read, None, oversized_requests(read, larger_than))


def _validate(read: DataFrame, opened: DataFrame | None, oversized: Sequence[str]) -> DataFrame:
    if not oversized:
        return validate_together(read, opened)
    usable = F.col(REASON).isNull()
    known = openings(read.filter(usable & is_a(logic.IMPRESSION))) if opened is None else opened
    theirs = usable & F.col("request_id").isin(*oversized)
    apart = _validate_oversized(read.filter(theirs), known.filter(F.col("request_id").isin(*oversized)))
    return validate_together(read.filter(~theirs), known).unionByName(apart)


def oversized_requests(read: DataFrame, larger_than: int = OVERSIZED) -> Sequence[str]:
    """The request_ids with more than `larger_than` events, in order; of more than FOUND, those with the most.

    One pass over that column, and a sketch instead of a count of every request: Spark's approx_top_k, the frequent
    items of Apache DataSketches, misses none that has more than 5 in 10,000 of all events.
    """
    named = F.ltrim(F.col("request_id"), F.lit(logic.WHITE_SPACE)) != ""  # the many without one never meet
    top = read.filter(named).agg(F.expr(f"approx_top_k(request_id, {FOUND}, {100 * FOUND})").alias("top"))
    [row] = top.select(F.filter("top", lambda one: one["count"] > larger_than)["item"].alias("found")).collect()
    found = sorted(row["found"] or ())
    if found:
        log.warning("oversized_requests", requests=len(found), first=found[0][:80], more_events_than=larger_than)
    return found


def _validate_oversized(events: DataFrame, opened: DataFrame) -> DataFrame:
    """validate_together for acceptable events of few requests: their page views are few, and go to the events."""
    found = on_pages(events, opened, how="left", few=True).withColumn(REPEAT, _again())
    return reject_also(found, contradiction(), contract.EVENTS, keep=[PAGE_DAY, REPEAT])


def _again() -> Column:
    same = Window.partitionBy("request_id", DAY, "user_id", "item_id", "event_type", "event_time")
    return F.row_number().over(same.orderBy(F.asc_nulls_last("position"))) > 1
