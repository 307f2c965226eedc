"""Count what became of the events: the figures that a sequences artifact says of itself."""

from collections.abc import Hashable
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_repo.contract import ITEM_KEY, USER_KEY
from jobs.logic.events import CLICK
from jobs.spark.judged_events import REPEAT, is_a
from jobs.spark.raw_tables import REASON


def count_events(judged: DataFrame, *by: str) -> dict[tuple[Hashable, ...], dict[str, Any]]:
    """For each group of `by`: events read, accepted, rejected (reason -> rows), duplicates, clicks, first and last.

    first, last: the times of the standing events in microseconds since 1970, None where there is none.
    Without `by` there is one group, the whole.
    """
    once, at = ~F.col(REPEAT), F.unix_micros("event_time")
    of_reason = judged.groupBy(*by, REASON).agg(
        F.count("*").alias("rows"),
        F.count_if(once).alias("events"),
        F.count_if(once & is_a(CLICK)).alias("clicks"),
        F.min(at).alias("first"),
        F.max(at).alias("last"),
    )
    groups: dict[tuple[Hashable, ...], dict[str | None, dict[str, Any]]] = {} if by else {(): {}}
    for row in of_reason.collect():
        groups.setdefault(tuple(row[name] for name in by), {})[row[REASON]] = row.asDict()
    return {group: _event_facts(found) for group, found in groups.items()}


def _event_facts(found: dict[str | None, dict[str, Any]]) -> dict[str, Any]:
    kept = found.pop(None, {"rows": 0, "events": 0, "clicks": 0, "first": None, "last": None})
    refused = {str(reason): int(found[reason]["rows"]) for reason in sorted(found, key=str)}
    return {
        "events_read": kept["rows"] + sum(refused.values()),
        "events_accepted": kept["rows"],
        "events_rejected": refused,
        "duplicates": kept["rows"] - kept["events"],
        **{name: kept[name] for name in ("clicks", "first", "last")},
    }


def count_pages(shown: DataFrame, *by: str) -> dict[tuple[Hashable, ...], dict[str, int]]:
    """For each group of `by`: page views, impressions, and the clicks that label one."""
    counts = shown.groupBy(*by).agg(
        F.count("*").alias("requests"),
        F.coalesce(F.sum(F.size("shown")), F.lit(0)).alias("impressions"),
        F.coalesce(F.sum("attributed"), F.lit(0)).alias("attributed"),
    )
    names = ("requests", "impressions", "attributed")
    return {tuple(row[name] for name in by): {name: int(row[name]) for name in names} for row in counts.collect()}


def count_distinct(events: DataFrame) -> dict[str, int]:
    """How many users and items stand in these events."""
    # Both in one aggregation would have Spark copy every row for each of them.
    return {name: events.select(key).distinct().count() for name, key in (("users", USER_KEY), ("items", ITEM_KEY))}


def capped_users(crowded: DataFrame) -> dict[str, int]:
    """How many users clicked beyond the cap, and the most clicks of one of them on one day. crowded: as of `crowds`."""
    found = crowded.agg(F.countDistinct("user_id").alias("users"), F.max("clicks").alias("most_clicks")).collect()[0]
    return {name: int(found[name] or 0) for name in ("users", "most_clicks")}
