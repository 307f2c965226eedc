"""Count what happened to each item and each user in windows of days, at every midnight at which a count changes."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import reduce
from typing import Annotated, Final

import structlog
import typer
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from upath import UPath

from feature_repo.contract import (
    EVENT_TIME,
    SMOOTHING_CLICKS,
    SMOOTHING_IMPRESSIONS,
    WINDOWS_DAYS,
)
from jobs.engines.parquet_parts import write_parts
from jobs.engines.spark_session import spark_place, spark_session
from jobs.paths import path_option
from jobs.rules.statistics import AT, CLICKS, IMPRESSIONS, VIEWS, midnight_after
from model import artifact
from model.artifact import AnyPath, Manifest

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

KIND: Final = "statistics"


def statistics(
    impressions: DataFrame, clicks: DataFrame, *, key: str, prefix: str, windows: Sequence[int], until: datetime
) -> DataFrame:
    """Counts of [D - window, D), valid from event_timestamp = midnight D <= until, where one is not what it was before.

    impressions: key, shown_at.  clicks: key, event_time.  Columns: key, event_timestamp, and for each window, in
    order, `<prefix>_impressions_<days>d`, `<prefix>_clicks_<days>d` (bigint) and `<prefix>_ctr_<days>d`, smoothed
    (double).  jobs.rules.statistics says the same.
    """
    names = {(what, days): f"{prefix}_{what}_{days}d" for days in windows for what in (IMPRESSIONS, CLICKS)}
    per_day = _per_day(impressions, key, AT[IMPRESSIONS], IMPRESSIONS).unionByName(
        _per_day(clicks, key, AT[CLICKS], CLICKS)
    )
    steps = _steps(per_day, key, names).filter(F.col("day") <= _days(until))
    running = Window.partitionBy(key).orderBy("day").rowsBetween(Window.unboundedPreceding, Window.currentRow)
    counts = steps.select(
        key,
        F.timestamp_seconds(F.col("day").cast("bigint") * 86_400).alias(EVENT_TIME),
        *(F.sum(name).over(running).alias(name) for name in names.values()),
    )
    return counts.select(key, EVENT_TIME, *(column for days in windows for column in _of_window(prefix, days)))


def _of_window(prefix: str, days: int) -> tuple[Column, ...]:
    shown, clicked = F.col(f"{prefix}_{IMPRESSIONS}_{days}d"), F.col(f"{prefix}_{CLICKS}_{days}d")
    smoothed = (clicked + F.lit(SMOOTHING_CLICKS)) / (shown + F.lit(SMOOTHING_IMPRESSIONS))
    return shown, clicked, smoothed.alias(f"{prefix}_ctr_{days}d")


def _per_day(happened: DataFrame, key: str, at: str, what: str) -> DataFrame:
    """key, day (days since 1970), what, n: how often it happened to the key on that UTC day."""
    day = F.unix_date(F.to_date(at)).alias("day")
    return happened.groupBy(key, day).agg(F.count("*").alias("n")).withColumn("what", F.lit(what))


def _steps(per_day: DataFrame, key: str, names: Mapping[tuple[str, int], str]) -> DataFrame:
    """key, day, and by how much each count differs at that midnight from the one before; only where one does.

    A day's events enter every window at the next midnight and leave it `days` later: a few rows for each day with
    events, however many quiet years lie between them.
    """
    windows = sorted({days for _, days in names})
    moves = [(1, F.col("n"), windows)] + [(1 + days, -F.col("n"), [days]) for days in windows]
    each = F.explode(F.array(*(_move(later, change, names, days) for later, change, days in moves)))
    moved = per_day.select(key, each.alias("move")).select(key, "move.*")
    steps = moved.groupBy(key, "day").agg(*(F.sum(name).alias(name) for name in names.values()))
    return steps.filter(reduce(Column.__or__, (F.col(name) != 0 for name in names.values())))


def _move(later: int, change: Column, names: Mapping[tuple[str, int], str], windows: Sequence[int]) -> Column:
    """What a day's events change at the midnight `later` days after its own, in these windows."""
    nothing = F.lit(0).cast("bigint")
    changes = (
        F.when(F.col("what") == what, change).otherwise(nothing).alias(name) if days in windows else nothing.alias(name)
        for (what, days), name in names.items()
    )
    return F.struct((F.col("day") + later).alias("day"), *changes)


def _days(midnight: datetime) -> int:
    return (midnight - datetime(1970, 1, 1, tzinfo=midnight.tzinfo)) // timedelta(days=1)


def write_statistics(sequences: AnyPath, out: AnyPath, master: str | None = None) -> dict[str, int]:
    """Write the folders item_statistics and user_statistics under `out`; returns the rows of each.

    sequences: a sequences artifact.  master: where Spark runs, if not here.
    Raises ArtifactMissing, ArtifactMismatch, JavaMissing.
    """
    manifest = artifact.read(sequences, kind="sequences")
    until = midnight_after(datetime.fromisoformat(manifest.facts["splits"]["end"]))
    spark = spark_session("courier statistics", master)
    impressions, clicks = (spark.read.parquet(spark_place(spark, sequences / name)) for name in (IMPRESSIONS, CLICKS))
    rows: dict[str, int] = {}
    for prefix, (key, view) in VIEWS.items():
        frame = statistics(impressions, clicks, key=key, prefix=prefix, windows=WINDOWS_DAYS, until=until)
        frame = frame.select(key, EVENT_TIME, *(feature.name for feature in view.features)).persist()
        write_parts(frame, out / view.name, by=[key], then=[EVENT_TIME])
        rows[view.name] = frame.count()
        frame.unpersist()
    log.info("statistics_written", until=until.isoformat(), **rows)
    return rows


def build(*, sequences: AnyPath, out: AnyPath, master: str | None = None) -> Manifest:
    """The statistics artifact: what write_statistics writes.  Raises ArtifactMissing, ArtifactMismatch, JavaMissing."""
    inputs = {"sequences": artifact.digest(sequences)}
    with artifact.write_together(out, kind=KIND, inputs=inputs, config={}) as draft:
        draft.facts = {"rows": write_statistics(sequences, draft.path, master)}
    return artifact.read(out, kind=KIND)


@app.command()
def item_statistics(
    sequences: Annotated[UPath, path_option("A sequences artifact.")],
    out: Annotated[UPath, path_option("Where the artifact is written; an older one there is replaced.")],
    master: Annotated[str | None, typer.Option(help="The Spark master, such as spark://HOST:PORT.")] = None,
) -> None:
    """Count clicks and impressions of items and users over windows of days."""
    build(sequences=sequences, out=out, master=master)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of this job."""
    app(args=argv, prog_name="item_statistics")


if __name__ == "__main__":
    main()
