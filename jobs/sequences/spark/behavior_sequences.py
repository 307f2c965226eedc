"""Turn raw events into behaviour sequences: impressions and page views with labels, and clicks strictly before them."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from upath import UPath

from jobs.config import SequencesConfig
from jobs.engines.parquet_parts import write_parts
from jobs.engines.spark_session import spark_session
from jobs.paths import path_option
from jobs.raw.canonical import CanonicalTable, canonical_table, has_sampled_negatives, inputs_of
from jobs.raw.spark_tables import damage_named, read_events, rejected
from jobs.raw.typed import FILE, NUMBER, REASON, ROW
from jobs.rules.events import CLICK, IMPRESSION
from jobs.rules.sequence_tables import PERIOD, TABLES
from jobs.sequences.facts import (
    longest,
    notes,
    of_artifact,
    require_page_views,
    require_some,
    require_split,
    tell_written,
)
from jobs.sequences.options import AS_OF, with_config
from jobs.sequences.spark.event_validation import accepted, cap, consistent, is_a, openings, over_cap_users
from jobs.sequences.spark.facts import (
    capped_users,
    count_distinct,
    count_events,
    count_impressions,
    count_pages,
    count_periods,
    merged,
)
from jobs.sequences.spark.histories import clicks, conversions, histories, snapshots
from jobs.sequences.spark.oversized_requests import validate_apart
from jobs.sequences.spark.page_views import impressions, page_views, pages, period, time_splits
from model import artifact
from model.artifact import AnyPath, Manifest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

KIND: Final = "sequences"
LARGE_BYTES: Final = 16 * 2**20  # of a table of events: several hundred thousand of them as parquet
ORDER: Final = {name: (table.by, table.then) for name, table in TABLES.items()}  # of the parts of each table
PLACED: Final = ("impressions", "page_views", "histories")  # as `build` makes them, in order already


@damage_named()
def build(
    *,
    events: CanonicalTable,
    sampled_negatives: bool,
    inputs: Mapping[str, str],
    out: AnyPath,
    config: SequencesConfig,
    master: str | None = None,
    as_of: datetime | None = None,
) -> Manifest:
    """The sequences artifact: a folder of parquet parts for each table of ORDER.

    sampled_negatives: whether the items that were not clicked were drawn, not shown.  inputs: for the manifest.
    master: where Spark runs, if not here.
    as_of: the clock that says which events lie in the future; None: that of this machine, now.
    Raises RawTableUnusable where a file is damaged or no impression is accepted, JavaMissing.
    """
    as_of = as_of or datetime.now(UTC)
    read = read_events(session_for(events, master), events, as_of).drop(FILE, NUMBER)
    seen = read.filter(F.col(REASON).isNull() & is_a(IMPRESSION))
    opened = openings(seen).persist()
    apart = validate_apart(read, opened).persist()
    over_cap = over_cap_users(apart, config.max_clicks_per_day).persist()
    validated = apart if over_cap.isEmpty() else cap(apart, over_cap)  # every later pass would pay for the join
    clicked = clicks(accepted(validated))
    labelled = seen.drop(REASON, ROW).unionByName(clicked.withColumn("event_type", F.lit(CLICK)), True)
    shown = pages(consistent(labelled, opened)).persist()
    kept = snapshots(clicked, longest(config)).persist()
    try:
        [others] = count_events(validated).values()
        counted = merged(others, count_impressions(shown))
        require_some(counted, events.path)
        counted |= next(iter(count_pages(shown, config.page_view_size).values()), {})
        who = shown.select("user_id", F.explode("shown.item_id").alias("item_id"))
        counted |= count_distinct(who.unionByName(accepted(validated).select("user_id", "item_id")))
        facts = counted | {"capped_users": capped_users(over_cap), "sampled_negatives": sampled_negatives}
        frames = tables(validated, shown, kept, config)
        facts |= {"as_of": as_of.isoformat()}
        return write_sequences(frames, shown, facts, out=out, inputs=inputs, config=config, placed=PLACED)
    finally:
        for frame in (kept, shown, over_cap, apart, opened):
            frame.unpersist()


def session_for(events: CanonicalTable, master: str | None = None) -> SparkSession:
    """A Spark session for events as many as these. Raises JavaMissing."""
    return spark_session("courier sequences", master, large=is_large(events))


def is_large(table: CanonicalTable) -> bool:
    """Whether there is enough in these files for Java to compile thoroughly."""
    return sum(file.stat().st_size for file in table.files) > LARGE_BYTES


def tables(validated: DataFrame, shown: DataFrame, kept: DataFrame, config: SequencesConfig) -> dict[str, DataFrame]:
    """Every table of ORDER, still without periods. shown: pages.  kept: snapshots of at least `longest` clicks."""
    events = accepted(validated)
    return {
        "impressions": impressions(shown),
        "page_views": page_views(shown, kept, config.page_view_size, config.pretrain_history),
        "histories": histories(kept, config.ctr_history),
        "clicks": clicks(events),
        "conversions": conversions(events),
        "rejected": rejected(validated, "events"),
    }


def write_sequences(
    frames: Mapping[str, DataFrame],
    shown: DataFrame,
    counted: Mapping[str, Any],
    *,
    out: AnyPath,
    inputs: Mapping[str, str],
    config: SequencesConfig,
    placed: Collection[str] = (),
) -> Manifest:
    """Write the artifact of these tables, with the period of each page view.

    shown: a row per page view with its request_time.  counted: what jobs.sequences.spark.facts found.
    placed: the tables whose rows lie already as they are to be written.
    Raises RawTableUnusable where there is no page view.
    """
    began = time.monotonic()
    require_page_views(counted)
    ends = counted["first"], counted["last"]
    splits = time_splits(shown, counted["requests"], *ends, config.train_fraction, config.valid_fraction)
    counted = {**counted, "requests_by_period": count_periods(shown, splits)}
    require_split(counted, splits)  # before its tables are written
    with artifact.write_together(out, kind=KIND, inputs=inputs, config=asdict(config)) as draft:
        for name, (by, then) in ORDER.items():
            frame = frames[name].withColumn(PERIOD, period(splits)) if TABLES[name].divided else frames[name]
            write_parts(frame, draft.path / name, by=by, then=then, placed=name in placed)
        draft.facts, draft.notes = of_artifact(counted, splits), notes(counted)
    tell_written(draft.facts, began)
    return artifact.read(out, kind=KIND)


# --- as a program ---------------------------------------------------------------------------------------------------


@app.command()
@with_config
def sequences(
    raw: Annotated[UPath, path_option("The folder that holds the tables events and items.")],
    out: Annotated[UPath, path_option("Where the artifact is written; an older one there is replaced.")],
    config: SequencesConfig,
    master: Annotated[str | None, typer.Option(help="The Spark master, such as spark://HOST:PORT.")] = None,
    as_of: Annotated[datetime | None, AS_OF] = None,
) -> None:
    """Turn raw events into behaviour sequences."""
    build(
        events=canonical_table(raw, "events"),
        sampled_negatives=has_sampled_negatives(raw),
        inputs=inputs_of(raw, "events"),
        out=out,
        config=config,
        master=master,
        as_of=as_of,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of this stage."""
    app(args=argv, prog_name="behavior_sequences")


if __name__ == "__main__":
    main()
