"""Count what became of the events: the figures that a sequences artifact says of itself."""

from collections.abc import Hashable
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_repo.contract import ITEM_KEY, USER_KEY
from jobs.raw.typed import REASON
from jobs.rules.events import CLICK, CONVERSIONS
from jobs.rules.page_views import TEST, TRAIN, VALID
from jobs.rules.sequence_tables import PERIOD
from jobs.sequences.spark.event_validation import REPEAT, is_a
from jobs.sequences.spark.page_views import period
from jobs.sequences.splits import Splits


def count_events(validated: DataFrame, *by: str) -> dict[tuple[Hashable, ...], dict[str, Any]]:
    """For each group of `by`: events read, accepted, rejected (reason -> rows), duplicates, clicks, conversions.

    And first and last:

    first, last: the times of the accepted events in microseconds since 1970, None where there is none.
    Without `by` there is one group, the whole.
    """
    once, at = ~F.col(REPEAT), F.unix_micros("event_time")
    of_reason = validated.groupBy(*by, REASON).agg(
        F.count("*").alias("rows"),
        F.count_if(once).alias("events"),
        F.count_if(once & is_a(CLICK)).alias("clicks"),
        F.count_if(once & F.col("event_type").isin(*CONVERSIONS)).alias("conversions"),
        F.min(at).alias("first"),
        F.max(at).alias("last"),
    )
    groups: dict[tuple[Hashable, ...], dict[str | None, dict[str, Any]]] = {} if by else {(): {}}
    for row in of_reason.collect():
        groups.setdefault(tuple(row[name] for name in by), {})[row[REASON]] = row.asDict()
    return {group: _event_facts(found) for group, found in groups.items()}


def _event_facts(found: dict[str | None, dict[str, Any]]) -> dict[str, Any]:
    kept = found.pop(None, {"rows": 0, "events": 0, "clicks": 0, "conversions": 0, "first": None, "last": None})
    refused = {str(reason): int(found[reason]["rows"]) for reason in sorted(found, key=str)}
    return {
        "events_read": kept["rows"] + sum(refused.values()),
        "events_accepted": kept["rows"],
        "events_rejected": refused,
        "duplicates": kept["rows"] - kept["events"],
        **{name: kept[name] for name in ("clicks", "conversions", "first", "last")},
    }


def count_pages(shown: DataFrame, size: int, *by: str) -> dict[tuple[Hashable, ...], dict[str, int]]:
    """For each group of `by`: page views, impressions, clicks that label one, items of page views cut to `size`.

    And shown_again: impressions of an item that its page had shown before.
    """
    items = F.size("shown")
    sums = {
        "impressions": items,
        "attributed": F.col("attributed"),
        "page_view_items": F.least(items, F.lit(size)),
        "shown_again": F.col("moments") - items,
    }
    counts = shown.groupBy(*by).agg(
        F.count("*").alias("requests"), *(F.coalesce(F.sum(one), F.lit(0)).alias(name) for name, one in sums.items())
    )
    names = ("requests", *sums)
    return {tuple(row[name] for name in by): {name: int(row[name]) for name in names} for row in counts.collect()}


def count_periods(shown: DataFrame, splits: Splits) -> dict[str, int]:
    """How many page views each period holds."""
    counts = shown.groupBy(period(splits).alias(PERIOD)).count().collect()
    return dict.fromkeys((TRAIN, VALID, TEST), 0) | {row[PERIOD]: int(row["count"]) for row in counts}


def count_impressions(shown: DataFrame) -> dict[str, Any]:
    """Of the accepted impressions that page_views.pages gathered, what count_events says of other events."""
    at = F.unix_micros("request_time"), F.unix_micros("last")
    counts = shown.agg(
        *(F.coalesce(F.sum(name), F.lit(0)).alias(name) for name in ("rows", "moments")),
        F.min(at[0]).alias("first"),
        F.max(at[1]).alias("last"),
    ).collect()[0]
    return {
        "events_read": int(counts["rows"]),
        "events_accepted": int(counts["rows"]),
        "duplicates": int(counts["rows"]) - int(counts["moments"]),
        "first": counts["first"],
        "last": counts["last"],
    }


def merged(some: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """The facts of `some` events, with those of `others` that count_impressions counted."""
    sums = {name: some[name] + others[name] for name in ("events_read", "events_accepted", "duplicates")}
    ends = {
        name: pick((one[name] for one in (some, others) if one[name] is not None), default=None)
        for name, pick in (("first", min), ("last", max))
    }
    return some | sums | ends


def count_distinct(events: DataFrame) -> dict[str, int]:
    """How many users and items stand in these events."""
    counts = events.agg(*(F.countDistinct(key).alias(name) for name, key in (("users", USER_KEY), ("items", ITEM_KEY))))
    return {name: int(count) for name, count in counts.collect()[0].asDict().items()}


def capped_users(over_cap: DataFrame) -> dict[str, int]:
    """How many users clicked beyond the cap, and the most clicks of one of them on one day.

    over_cap: of event_validation.over_cap_users.
    """
    found = over_cap.agg(F.countDistinct("user_id").alias("users"), F.max("clicks").alias("most_clicks")).collect()[0]
    return {name: int(found[name] or 0) for name in ("users", "most_clicks")}
