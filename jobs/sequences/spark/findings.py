"""What a check of raw tables finds, by Spark."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.raw import spark_findings as raw_findings
from jobs.raw.canonical import CanonicalTable
from jobs.raw.check import EXAMPLES, REFERENCES, UNKNOWN_ITEMS, Checked, Found
from jobs.raw.spark_tables import count_reasons, items_alone, read_events, read_items
from jobs.raw.typed import FILE, LOST, NUMBER, REASON, ROW
from jobs.rules.doubts import Seen
from jobs.rules.events import CLICK, EARLY_CLICK, EPOCH, IMPRESSION, MICROSECOND, UNKNOWN_EVENT_TYPE
from jobs.sequences.spark.event_validation import PAGE_DAY, accepted, cap, over_cap_users
from jobs.sequences.spark.facts import count_events
from jobs.sequences.spark.oversized_requests import validate

UNKNOWN_TYPES: Final = 5  # that are named, the commonest


def found(
    spark: SparkSession, events: CanonicalTable, items: CanonicalTable, as_of: datetime, max_clicks_per_day: int
) -> Checked:
    """What the two tables hold."""
    alone = read_events(spark, events, as_of)
    together = validate(alone.drop(FILE, NUMBER)).persist()
    validated = cap(together, over_cap_users(together, max_clicks_per_day))
    judged = read_items(spark, items).persist()
    once, described = accepted(validated).persist(), judged.filter(F.col(REASON).isNull())
    doubtful = {
        UNKNOWN_ITEMS: raw_findings.of_unknown_items(once, described),
        "unmatched_clicks": unmatched_clicks(once),
    }
    [counted] = count_events(validated).values()
    refused, (kept, reasons) = counted["events_rejected"], count_reasons(judged)
    lost = described.select(F.explode(LOST).alias("one")).groupBy("one").count().orderBy("one").collect()
    tables = {
        "events": Found(
            read=events.rows,
            accepted=counted["events_accepted"],
            rejected=refused,
            duplicates=counted["duplicates"],
            doubtful=doubtful,
            days=raw_findings.days(once),
            examples=raw_findings.examples("events", validated, alone, EXAMPLES) if refused else {},
        ),
        "items": Found(
            read=items.rows,
            accepted=kept,
            rejected=reasons,
            doubtful={"without_events": raw_findings.without_events(described, once)},
            lost={row["one"]: int(row["count"]) for row in lost},
            examples=raw_findings.examples("items", judged, items_alone(spark, items), EXAMPLES) if reasons else {},
        ),
    }
    seen = _seen(validated, once, described, tables, counted)
    first = described.filter(F.col("image_uri").isNotNull()).orderBy("item_id").limit(REFERENCES)
    references = tuple(row["image_uri"] for row in first.select("image_uri").collect())
    for frame in (together, judged, once):
        frame.unpersist()
    return Checked(tables=tables, seen=seen, references=references)


def _seen(
    validated: DataFrame, once: DataFrame, items: DataFrame, tables: Mapping[str, Found], counted: Mapping[str, Any]
) -> Seen:
    """What the two tables hold together. once, items: the accepted ones.  tables: what each holds."""
    events, keys = tables["events"], ["request_id", PAGE_DAY, "item_id"]
    types = once.groupBy("event_type").count().collect()
    others = validated.filter(F.col(REASON) == UNKNOWN_EVENT_TYPE)
    named = others.groupBy(F.coalesce(F.get_json_object(ROW, "$.event_type"), F.lit("")).alias("type")).count()
    common = named.orderBy(F.desc("count"), "type").limit(UNKNOWN_TYPES).collect()
    shown = once.filter(F.col("event_type") == IMPRESSION).select(*keys).distinct()
    clicked = once.filter(F.col("event_type") == CLICK).join(shown, on=keys, how="left_semi").select(*keys).distinct()
    unknown = events.doubtful[UNKNOWN_ITEMS]
    return Seen(
        types={row["event_type"]: int(row["count"]) for row in sorted(types)},
        unknown_types={row["type"]: int(row["count"]) for row in common},
        duplicates=events.duplicates,
        users=once.select("user_id").distinct().count(),
        first=None if counted["first"] is None else EPOCH + counted["first"] * MICROSECOND,
        last=None if counted["last"] is None else EPOCH + counted["last"] * MICROSECOND,
        shown=shown.count(),
        clicked=clicked.count(),
        pages=shown.select("request_id", PAGE_DAY).distinct().count(),
        early=events.rejected.get(EARLY_CLICK, 0),
        unknown=unknown,
        pair=_pair(once, items) if unknown else None,
        items=tables["items"].accepted,
    )


def _pair(once: DataFrame, items: DataFrame) -> tuple[str, str] | None:
    trimmed = F.trim("item_id")
    number = trimmed.try_cast("double").cast("decimal(38,0)").cast("string")
    is_number = trimmed.rlike(r"^[+-]?[0-9]+([.]0*)?([eE][+]?[0-9]+)?\z")
    alike = F.when(is_number, F.coalesce(number, trimmed)).otherwise(F.lower(trimmed)).alias("alike")
    known = items.select("item_id").distinct()
    unknown = once.select("item_id").distinct().join(known, on="item_id", how="left_anti")
    one, other = (
        unknown.select(F.col("item_id").alias("one"), alike),
        known.select(F.col("item_id").alias("other"), alike),
    )
    first = one.join(other, on="alike").orderBy("one", "other").first()
    return None if first is None else (first["one"], first["other"])


def unmatched_clicks(events: DataFrame) -> int:
    """How many clicks belong to no page view that shows their item, as jobs.rules.page_views counts them."""
    keys = ["request_id", PAGE_DAY, "item_id"]
    shown = events.filter(F.col("event_type") == IMPRESSION).select(*keys).distinct()
    return events.filter(F.col("event_type") == CLICK).join(shown, on=keys, how="left_anti").count()
