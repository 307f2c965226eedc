"""Turn raw events into behaviour sequences: impressions and page views with labels, and clicks strictly before them."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
import typer
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.config import SequencesConfig
from jobs.logic.events import CLICK, IMPRESSION
from jobs.logic.page_views import TEST, TRAIN, VALID, cut
from jobs.sources.raw import RawTableUnusable, raw_digest, source
from jobs.spark.parquet_parts import write_parts
from jobs.spark.raw_tables import accepted, count_reasons, deduplicate, read_events, rejected
from jobs.spark.session import spark_session
from model import artifact
from model.artifact import Manifest

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

KIND: Final = "sequences"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
DEFAULTS: Final = SequencesConfig()


@dataclass(frozen=True, slots=True)
class Splits:
    """Where the periods begin and end, in microseconds since 1970; each is half open."""

    start: int
    valid_start: int
    test_start: int
    end: int

    def facts(self) -> dict[str, str]:
        """The same as ISO moments."""
        return {name: (EPOCH + timedelta(microseconds=at)).isoformat() for name, at in asdict(self).items()}


def build(*, raw: Path, raw_digest: str, out: Path, config: SequencesConfig) -> Manifest:
    """The sequences artifact: folders impressions, page_views, histories, clicks and rejected, each of parquet parts.

    Raises RawTableUnusable where the events cannot be read or hold no accepted impression, JavaMissing.
    """
    began = time.monotonic()
    sampled = bool(source(raw).get("sampled_negatives", False))
    judged = read_events(spark_session("courier sequences"), raw).persist()
    events = deduplicate(accepted(judged)).persist()
    met = shown_or_clicked(events).persist()
    shown = pages(met).persist()
    try:
        with artifact.write(out, kind=KIND, inputs={"raw": raw_digest}, config=asdict(config)) as draft:
            draft.facts = event_facts(judged, events, met, raw)
            splits = time_splits(events, shown, config.train_fraction, config.valid_fraction)
            _write_tables(judged, events, with_period(shown, splits), draft.path, config)
            draft.facts |= {"requests": shown.count(), "splits": splits.facts(), "sampled_negatives": sampled}
    finally:
        for frame in (shown, met, events, judged):
            frame.unpersist()
    manifest = artifact.read(out, kind=KIND)
    counts = {name: manifest.facts[name] for name in ("requests", "impressions", "clicks", "users", "items")}
    log.info("sequences_written", **counts, seconds=round(time.monotonic() - began, 1))
    return manifest


def _write_tables(judged: DataFrame, events: DataFrame, shown: DataFrame, out: Path, config: SequencesConfig) -> None:
    clicked = clicks(events)
    longest = max(config.ctr_history, config.pretrain_history)
    kept = snapshots(clicked, longest).persist()
    views = page_views(shown, kept, config.page_view_size, config.pretrain_history)
    write_parts(impressions(shown), out / "impressions", by=["request_id"], then=["position", "item_id"])
    write_parts(views, out / "page_views", by=["request_id"])
    write_parts(histories(kept, config.ctr_history), out / "histories", by=["user_id"], then=["event_timestamp"])
    write_parts(clicked, out / "clicks", by=["user_id"], then=["event_time", "item_id", "request_id"])
    write_parts(rejected(judged, "events"), out / "rejected", by=["row"], then=["reason"])
    kept.unpersist()


# --- page views -----------------------------------------------------------------------------------------------------


def pages(met: DataFrame) -> DataFrame:
    """request_id, user_id, request_time, shown: array of (position, item_id, clicked), from the top down."""
    one = F.struct("position", "item_id", "clicked")
    return (
        met.filter(F.col("shown_at").isNotNull())
        .groupBy("request_id", "user_id")
        .agg(F.min("shown_at").alias("request_time"), F.array_sort(F.collect_list(one)).alias("shown"))
    )


def shown_or_clicked(events: DataFrame) -> DataFrame:
    """Each (request, item) that was shown or clicked: its topmost position, its first showing or null, its clicks."""
    seen = F.col("event_type") == IMPRESSION
    hit = F.col("event_type") == CLICK
    both = events.filter(seen | hit).groupBy("request_id", "user_id", "item_id")
    met = both.agg(
        F.min(F.when(seen, F.col("position"))).alias("position"),
        F.min(F.when(seen, F.col("event_time"))).alias("shown_at"),
        F.count_if(hit).alias("clicks"),
    )
    return met.withColumn("clicked", (F.col("clicks") > 0).cast("tinyint"))


def with_period(shown: DataFrame, splits: Splits) -> DataFrame:
    """Pages with the period that their request_time falls in."""
    at = F.unix_micros("request_time")
    later = F.when(at < splits.test_start, VALID).otherwise(TEST)
    return shown.withColumn("period", F.when(at < splits.valid_start, TRAIN).otherwise(later))


def impressions(shown: DataFrame) -> DataFrame:
    """One row per distinct (request_id, item_id) shown, with its label `clicked`."""
    rows = shown.select("request_id", "user_id", "request_time", "period", F.inline("shown"))
    return rows.select(
        "request_id", "user_id", "item_id", "request_time", "position", F.col("clicked").cast("tinyint"), "period"
    )


def page_views(shown: DataFrame, kept: DataFrame, size: int, history: int) -> DataFrame:
    """The pre-training table: items of each page with labels, and the user's newest clicks strictly before it.

    shown: pages with their period.  kept: snapshots of at least `history` clicks.
    """
    asked = shown.withColumn("picked", _picked(size)).withColumnRenamed("request_time", "at")
    known = kept.select("user_id", F.col("event_time").alias("at"), F.slice(_item_ids(), 1, history).alias("newest"))
    both = asked.unionByName(known, allowMissingColumns=True)
    # At equal times the page view (request_id not null) comes before the snapshot: a history is strictly earlier.
    past = Window.partitionBy("user_id").orderBy("at", F.col("request_id").isNull())
    past = past.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    joined = both.withColumn("newest", F.last("newest", ignorenulls=True).over(past))
    return joined.filter(F.col("request_id").isNotNull()).select(
        "request_id",
        "user_id",
        F.col("at").alias("request_time"),
        "period",
        F.col("picked.item_id").alias("item_ids"),
        F.col("picked.clicked").alias("labels"),
        F.coalesce("newest", F.array().cast("array<string>")).alias("history_item_ids"),
    )


def _picked(size: int) -> Column:
    """At most `size` of the array `shown`, from the top down: the clicked ones first of all, then the topmost."""
    urgency = F.transform(
        "shown",
        lambda one: F.struct(-one["clicked"], one["position"].alias("position"), one["item_id"], one["clicked"]),
    )
    first = F.slice(F.array_sort(urgency), 1, size)
    return F.array_sort(
        F.transform(
            first,
            lambda one: F.struct(
                one["position"].alias("position"), one["item_id"].alias("item_id"), one["clicked"].alias("clicked")
            ),
        )
    )


# --- histories ------------------------------------------------------------------------------------------------------


def clicks(events: DataFrame) -> DataFrame:
    """The clicks among deduplicated events."""
    return events.filter(F.col("event_type") == CLICK).select("user_id", "item_id", "event_time", "request_id")


def snapshots(clicked: DataFrame, length: int) -> DataFrame:
    """user_id, event_time, history: each user's last `length` clicks (at, item_id) up to and including that moment.

    Newest first, equal times by item_id; one row per user and distinct moment.
    """
    in_time = Window.partitionBy("user_id").orderBy("event_time", F.desc("item_id"), F.desc("request_id"))
    newest_last = F.collect_list(F.struct(F.col("event_time").alias("at"), "item_id"))
    rows = clicked.select(
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
        _item_ids().alias("history_item_ids"),
        F.transform("history", lambda click: F.unix_micros(click["at"])).alias("history_clicked_at"),
    )


def _item_ids() -> Column:
    return F.col("history.item_id")


# --- facts ----------------------------------------------------------------------------------------------------------


def event_facts(judged: DataFrame, events: DataFrame, met: DataFrame, raw: Path) -> dict[str, Any]:
    """The counts of the manifest. Raises RawTableUnusable where no event is accepted."""
    kept, refused = count_reasons(judged)
    if not kept:
        worst = max(refused, key=lambda reason: refused[reason], default="the table is empty")
        raise RawTableUnusable(f"{raw}: no event is accepted (most often: {worst}): see `courier check {raw}`")
    of_type = events.agg(
        F.count("*").alias("events"),
        F.count_if(F.col("event_type") == CLICK).alias("clicks"),
        F.countDistinct("user_id").alias("users"),
        F.countDistinct("item_id").alias("items"),
    ).collect()[0]
    seen = F.col("shown_at").isNotNull()
    of_pair = met.agg(
        F.count_if(seen).alias("impressions"),
        F.coalesce(F.sum(F.when(~seen, F.col("clicks"))), F.lit(0)).alias("unmatched_clicks"),
    ).collect()[0]
    return {
        "events_read": kept + sum(refused.values()),
        "events_accepted": kept,
        "events_rejected": refused,
        "duplicates": kept - int(of_type["events"]),
        **{name: int(of_type[name]) for name in ("clicks", "users", "items")},
        **{name: int(of_pair[name]) for name in ("impressions", "unmatched_clicks")},
    }


def time_splits(events: DataFrame, shown: DataFrame, train_fraction: float, valid_fraction: float) -> Splits:
    """The moments that part the periods. Raises RawTableUnusable where there is no page view."""
    views = shown.count()
    if not views:
        raise RawTableUnusable(
            "no impression is accepted, so there are no page views: check the raw events' event_type"
        )
    at = F.unix_micros("event_time")
    ends = events.agg(F.min(at).alias("first"), F.max(at).alias("last")).collect()[0]
    return Splits(
        start=int(ends["first"]),
        valid_start=_nth_time(shown, cut(views, train_fraction)),
        test_start=_nth_time(shown, cut(views, train_fraction + valid_fraction)),
        end=int(ends["last"]) + 1,
    )


def _nth_time(shown: DataFrame, n: int) -> int:
    """The n-th request_time in time order, n from 0, in microseconds since 1970."""
    # A sort over all partitions, as an exact quantile needs; only one number comes to the driver.
    times = shown.select(F.unix_micros("request_time").alias("at")).orderBy("at")
    return int(times.offset(n).limit(1).collect()[0]["at"])


# --- as a program ---------------------------------------------------------------------------------------------------


@app.command()
def sequences(
    raw: Annotated[Path, typer.Option(help="The folder that holds the tables events and items.")],
    out: Annotated[Path, typer.Option(help="Where the artifact is written; an older one there is replaced.")],
    page_view_size: Annotated[int, typer.Option(min=1)] = DEFAULTS.page_view_size,
    pretrain_history: Annotated[int, typer.Option(min=1)] = DEFAULTS.pretrain_history,
    ctr_history: Annotated[int, typer.Option(min=1)] = DEFAULTS.ctr_history,
    train_fraction: Annotated[float, typer.Option(min=0, max=1)] = DEFAULTS.train_fraction,
    valid_fraction: Annotated[float, typer.Option(min=0, max=1)] = DEFAULTS.valid_fraction,
) -> None:
    """Turn raw events into behaviour sequences."""
    config = SequencesConfig(
        page_view_size=page_view_size,
        pretrain_history=pretrain_history,
        ctr_history=ctr_history,
        train_fraction=train_fraction,
        valid_fraction=valid_fraction,
    )
    build(raw=raw, raw_digest=raw_digest(raw), out=out, config=config)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of this stage."""
    app(args=argv, prog_name="behavior_sequences")


if __name__ == "__main__":
    main()
