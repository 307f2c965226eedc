"""What a check of raw tables finds, by Spark."""

from dataclasses import replace
from datetime import datetime

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.raw import spark_findings as raw_findings
from jobs.raw.check import EXAMPLES, Found
from jobs.raw.spark_tables import REASON, count_reasons, read_events, read_items
from jobs.rules.events import CLICK, IMPRESSION
from jobs.sequences.spark.event_validation import PAGE_DAY, accepted, cap, over_cap_users
from jobs.sequences.spark.facts import count_events
from jobs.sequences.spark.oversized_requests import validate
from model.artifact import AnyPath


def found(spark: SparkSession, raw: AnyPath, as_of: datetime, max_clicks_per_day: int) -> dict[str, Found]:
    """What the tables `events` and `items` hold. Raises RawTableUnusable, RawTableMissing."""
    together = validate(read_events(spark, raw, as_of)).persist()
    validated = cap(together, over_cap_users(together, max_clicks_per_day))
    items = read_items(spark, raw).persist()
    once, described = accepted(validated).persist(), items.filter(F.col(REASON).isNull())
    doubtful = {
        "of_unknown_items": raw_findings.of_unknown_items(once, described),
        "unmatched_clicks": unmatched_clicks(once),
    }
    [counted] = count_events(validated).values()
    events = _found(spark, raw, "events", validated, counted["events_accepted"], counted["events_rejected"], as_of)
    both = {
        "events": replace(events, duplicates=counted["duplicates"], doubtful=doubtful, days=raw_findings.days(once)),
        "items": replace(
            _found(spark, raw, "items", items, *count_reasons(items), as_of),
            doubtful={"without_events": raw_findings.without_events(described, once)},
        ),
    }
    for frame in (together, items, once):
        frame.unpersist()
    return both


def unmatched_clicks(events: DataFrame) -> int:
    """How many clicks belong to no page view that shows their item, as jobs.rules.page_views counts them."""
    keys = ["request_id", PAGE_DAY, "item_id"]
    shown = events.filter(F.col("event_type") == IMPRESSION).select(*keys).distinct()
    return events.filter(F.col("event_type") == CLICK).join(shown, on=keys, how="left_anti").count()


def _found(
    spark: SparkSession,
    raw: AnyPath,
    name: str,
    validated: DataFrame,
    kept: int,
    rejected: dict[str, int],
    as_of: datetime,
) -> Found:
    read = raw_findings.rows_read(spark, raw, name)
    examples = raw_findings.examples(spark, raw, name, validated, EXAMPLES, as_of) if rejected else {}
    return Found(read=read, accepted=kept, rejected=rejected, examples=examples)
