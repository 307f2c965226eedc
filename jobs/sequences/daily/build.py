"""Add days of raw events to the daily log without computing its past anew, and assemble sequences of its days."""

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
import typer
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from upath import UPath

from jobs.config import SequencesConfig
from jobs.engines.parquet_parts import write_parts, write_parts_apart
from jobs.engines.spark_session import spark_session
from jobs.paths import path_option, spark_uri
from jobs.raw.folder import source, table_files
from jobs.raw.spark_tables import REASON, ROW, events_between, rejected, undated_events
from jobs.rules.events import TOO_MANY_CLICKS, future_from
from jobs.rules.sequence_tables import TABLES, Table
from jobs.sequences.daily import log as daily_log
from jobs.sequences.daily.log import (
    DAYS,
    DailyLogError,
    Plan,
    Watermark,
    asked_days,
    day_folder,
    midnight,
    state_folder,
    undated_folder,
)
from jobs.sequences.daily.raw_days import UNDATED, known_left_out, rows_a_day, sentence
from jobs.sequences.daily.raw_days_spark import files_of, indexed
from jobs.sequences.facts import longest
from jobs.sequences.spark import behavior_sequences
from jobs.sequences.spark.behavior_sequences import ORDER, session_for, tables, write_sequences
from jobs.sequences.spark.event_validation import DAY, cap, crowds, day_of, standing
from jobs.sequences.spark.facts import count_distinct, count_events, count_pages
from jobs.sequences.spark.histories import carry_on, clicks, newest, snapshots
from jobs.sequences.spark.oversized_requests import judge
from jobs.sequences.spark.page_views import pages
from jobs.workspace import locked
from model import artifact
from model.artifact import AnyPath, Manifest

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

EPOCH: Final = date(1970, 1, 1)
STATE: Final = "user_id string, event_time timestamp, history array<struct<at: timestamp, item_id: string>>"
SPARK_TYPES: Final = {"text": "string", "moment": "timestamp", "int8": "tinyint", "int32": "int", "int64": "bigint"}


def schema(table: Table) -> str:
    """A day's table as Spark declares it."""
    return ", ".join(f"{name} {_spark_type(kind)}" for name, kind in table.columns.items())


def _spark_type(kind: str) -> str:
    one = SPARK_TYPES[kind.removeprefix("list of ")]
    return f"array<{one}>" if kind.startswith("list of ") else one


def build(
    *,
    raw: AnyPath,
    raw_digest: str,
    workspace: AnyPath,
    out: AnyPath,
    config: SequencesConfig,
    master: str | None = None,
    as_of: datetime | None = None,
) -> Manifest:
    """The sequences artifact: of the workspace's daily log where one has been begun, else of all raw events.

    master: where Spark runs, if not here.
    as_of: as jobs.sequences.spark.behavior_sequences has it; a log keeps the one that its last days were added with.
    Raises DailyLogError, and what jobs.sequences.spark.behavior_sequences raises.
    """
    mark = daily_log.read_watermark(workspace)
    if mark is None:
        return behavior_sequences.build(
            raw=raw, raw_digest=raw_digest, out=out, config=config, master=master, as_of=as_of
        )
    return assemble(workspace, mark, out=out, config=config, master=master)


def lasting(config: SequencesConfig) -> dict[str, int]:
    """What of the config the days depend on; the fractions divide the whole log."""
    return {name: value for name, value in asdict(config).items() if not name.endswith("_fraction")}


# --- adding days ----------------------------------------------------------------------------------------------------


def add_days(
    *,
    raw: AnyPath,
    workspace: AnyPath,
    start: date,
    end: date,
    config: SequencesConfig,
    master: str | None = None,
    as_of: datetime | None = None,
) -> Watermark:
    """Write the days `start` to `end`, both included, and what follows from them; returns the new watermark.

    Only raw events of those days and the few before them are read. Only for the holder of the workspace's lock.
    master: where Spark runs, if not here; it must reach `raw` and `workspace` under the same paths.
    as_of: the clock that says which events lie in the future; None: that of this machine, now. What lies there is kept
    with the undated rows, and comes into its day when that is added.
    Raises DailyLogError where the days do not join the log, RawTableUnusable, JavaMissing.
    """
    began, as_of = time.monotonic(), as_of or datetime.now(UTC)
    mark = daily_log.read_watermark(workspace)
    todo = daily_log.plan(mark, start, end)
    if mark is not None and todo.write_from > mark.first and dict(mark.config) != lasting(config):
        raise DailyLogError(
            f"the daily log was built with {dict(mark.config)}, not {lasting(config)}: "
            f"say `courier sequences --from {mark.first} --to {todo.last}` to build it again"
        )
    daily_log.refuse_cut_short(workspace, todo.write_from)
    sampled = bool(source(raw).get("sampled_negatives", False))
    folder = daily_log.log_folder(workspace)
    for place in (folder, folder / "states"):
        artifact.sweep(place)
    spark, index, table = session_for(raw, master), indexed(raw, workspace, master), table_files(raw, "events")
    of_the_days = files_of(table, index, lambda file: file.holds(todo.read_from, todo.last))
    known = events_between(spark, of_the_days, midnight(todo.read_from), midnight(todo.last + daily_log.DAY), as_of)
    _write_days(known, workspace, todo, config)
    ahead = future_from(as_of).date()
    undated = files_of(table, index, lambda file: UNDATED in file.rows or file.holds(ahead, date.max))
    _write_undated(undated_events(spark, undated, as_of), workspace, config)
    done = Watermark(first=todo.first, last=todo.last, config=lasting(config), sampled_negatives=sampled, as_of=as_of)
    daily_log.write_watermark(workspace, done)
    daily_log.end_writing(workspace)
    _drop_states(workspace, done)
    days = {"added": start.isoformat(), "written_from": todo.write_from.isoformat(), "watermark": done.last.isoformat()}
    log.info("days_written", **days, days=len(todo.days), seconds=round(time.monotonic() - began, 1))
    return done


def tell_left_out(workspace: AnyPath, mark: Watermark) -> None:
    """Say which raw events the log leaves out, as they were last counted."""
    if out := known_left_out(workspace, mark, mark.as_of or datetime.now(UTC)):
        log.warning("events_left_out", said=sentence(mark, out), **out.facts())


def refuse_to_leave_out(raw: AnyPath, workspace: AnyPath, start: date, end: date, master: str | None = None) -> None:
    """Raises DailyLogError where a log begun with `start` would leave out earlier raw events."""
    raw_events = rows_a_day(indexed(raw, workspace, master).values())
    earlier = {day: rows for day, rows in raw_events.items() if day < start}
    if earlier:
        first = min(earlier)
        raise DailyLogError(
            f"{raw} holds {sum(earlier.values())} events before {start}, the first on {first}: say `courier sequences "
            f"--from {first} --to {end}` to begin with them, or `--from {start} --to {end}` to leave them out"
        )


def _write_days(known: DataFrame, workspace: AnyPath, todo: Plan, config: SequencesConfig) -> None:
    spark, written = known.sparkSession, F.col(DAY) >= _number(todo.write_from)
    together = judge(known).persist()
    crowded = crowds(together, config.max_clicks_per_day).persist()
    judged = together if crowded.isEmpty() else cap(together, crowded)
    own = judged.withColumn(DAY, day_of("event_time")).filter(written)
    shown = pages(standing(judged)).withColumn(DAY, day_of("request_time")).filter(written).persist()
    earlier = _state(spark, workspace, todo, config)
    fresh = snapshots(clicks(standing(own)), longest(config))
    kept = carry_on(fresh, earlier, longest(config)).persist()
    try:
        facts = _day_facts(own, shown, crowded, todo)
        frames = tables(own, shown.drop(DAY), kept, config)
        frames["rejected"] = own.filter(F.col(REASON).isNotNull()).select(
            F.lit("events").alias("table"), ROW, REASON, DAY
        )
        folder = daily_log.log_folder(workspace)
        folder.mkdir(parents=True, exist_ok=True)
        with artifact.scratch(folder) as scratch:
            for name, (by, then) in ORDER.items():
                frame = _with_day(name, frames[name]).filter(written)
                write_parts_apart(frame, scratch / name, apart=DAY, by=by, then=then)
            daily_log.begin_writing(workspace, todo)
            for day in todo.days:
                _write_day(scratch, workspace, day, facts[day], config)
        _write_states(kept, workspace, todo, config)
    finally:
        for frame in (kept, shown, crowded, together):
            frame.unpersist()


def _with_day(name: str, frame: DataFrame) -> DataFrame:
    """A table with the UTC day that each of its rows belongs to."""
    days: dict[str, Column] = {
        "impressions": day_of("request_time"),
        "page_views": day_of("request_time"),
        # A snapshot belongs to the day of its click, though it becomes valid a microsecond later.
        "histories": F.unix_date(F.to_date(F.timestamp_micros(F.unix_micros("event_timestamp") - 1))),
        "clicks": day_of("event_time"),
        "conversions": day_of("event_time"),
        "rejected": F.col(DAY),
    }
    return frame.withColumn(DAY, days[name])


def _write_day(
    scratch: AnyPath, workspace: AnyPath, day: date, facts: Mapping[str, Any], config: SequencesConfig
) -> None:
    with artifact.write_together(day_folder(workspace, day), kind="day", inputs={}, config=lasting(config)) as draft:
        for name in ORDER:
            written = scratch / name / f"{DAY}={_number(day)}"
            if written.is_dir():
                artifact.move_folder(written, draft.path / name)
        draft.facts = dict(facts)


def _day_facts(own: DataFrame, shown: DataFrame, crowded: DataFrame, todo: Plan) -> dict[date, dict[str, Any]]:
    none = {"events_read": 0, "events_accepted": 0, "events_rejected": {}, "duplicates": 0, "clicks": 0}
    none |= {"first": None, "last": None, "requests": 0, "impressions": 0, "attributed": 0}
    events, views = count_events(own, DAY), count_pages(shown, DAY)
    most = {row[DAY]: row["most"] for row in crowded.groupBy(DAY).agg(F.max("clicks").alias("most")).collect()}

    def facts_of(day: date) -> dict[str, Any]:
        key: tuple[Hashable, ...] = (_number(day),)
        own_facts = {"settled_with": daily_log.settled_with(day, todo.last).isoformat()}
        own_facts["most_clicks"] = most.get(_number(day), 0)
        return none | events.get(key, {}) | views.get(key, {}) | own_facts

    return {day: facts_of(day) for day in todo.days}


def _write_undated(read: DataFrame, workspace: AnyPath, config: SequencesConfig) -> None:
    """Keep the rejected rows whose time is not known: they belong to no day, so they are read anew each time."""
    undated = read.withColumn("repeat", F.lit(False)).persist()
    with artifact.write_together(undated_folder(workspace), kind="undated", inputs={}, config=lasting(config)) as draft:
        by, then = ORDER["rejected"]
        write_parts(rejected(undated, "events"), draft.path / "rejected", by=by, then=then)
        [facts] = count_events(undated).values()
        draft.facts = facts | {"requests": 0, "impressions": 0, "attributed": 0, "most_clicks": 0}
    undated.unpersist()


# --- each user's last clicks at the end of a day --------------------------------------------------------------------


def _state(spark: SparkSession, workspace: AnyPath, todo: Plan, config: SequencesConfig) -> DataFrame:
    """Each user's last snapshot before the first day to write."""
    before = todo.write_from - daily_log.DAY
    with suppress(artifact.ArtifactMissing, artifact.ArtifactMismatch):
        if before >= todo.first:
            artifact.read(state_folder(workspace, before), kind="state")
            return spark.read.schema(STATE).parquet(spark_uri(state_folder(workspace, before) / "state"))
    earlier = Plan(first=todo.first, last=before, write_from=todo.first).days if before >= todo.first else []
    for day in earlier:
        daily_log.read_day(workspace, day, todo.last)
    clicked = _read_table(spark, "clicks", [day_folder(workspace, day) for day in earlier])
    return newest(snapshots(clicked, longest(config)))


def _write_states(kept: DataFrame, workspace: AnyPath, todo: Plan, config: SequencesConfig) -> None:
    for day in sorted(daily_log.states_kept(todo.last).intersection(todo.days)):
        known = newest(kept.filter(F.col("event_time") < midnight(day + daily_log.DAY)))
        with artifact.write_together(
            state_folder(workspace, day), kind="state", inputs={}, config=lasting(config)
        ) as draft:
            write_parts(known, draft.path / "state", by=["user_id"])


def _drop_states(workspace: AnyPath, mark: Watermark) -> None:
    kept = {day.isoformat() for day in daily_log.states_kept(mark.last)}
    for folder in (daily_log.log_folder(workspace) / "states").glob("*"):
        if folder.name not in kept:
            artifact.remove_folder(folder)


# --- assembling -----------------------------------------------------------------------------------------------------


def assemble(
    workspace: AnyPath, mark: Watermark, *, out: AnyPath, config: SequencesConfig, master: str | None = None
) -> Manifest:
    """The sequences artifact of all days of the log: what a build from the same raw events would write.

    Raises DailyLogError where the log was built with another config, or a day is missing.
    """
    if dict(mark.config) != lasting(config):
        raise DailyLogError(
            f"the daily log was built with {dict(mark.config)}, not {lasting(config)}: "
            f"say `courier sequences --from {mark.first} --to {mark.last}` to build it again"
        )
    digest = daily_log.log_digest(workspace)
    manifests = daily_log.read_days(workspace, mark)
    spark = spark_session("courier sequences", master)
    folders = [daily_log.log_folder(workspace) / name for name in manifests]
    frames = {name: _read_table(spark, name, folders) for name in ORDER}
    facts = [one.facts for one in manifests.values()]
    capped = {"users": _capped(frames["rejected"]), "most_clicks": max(one["most_clicks"] for one in facts)}
    counted = daily_log.sum_facts(facts) | {"capped_users": capped, "sampled_negatives": mark.sampled_negatives}
    counted["as_of"] = None if mark.as_of is None else mark.as_of.isoformat()
    who = [frames[name].select("user_id", "item_id") for name in ("impressions", "clicks", "conversions")]
    counted |= count_distinct(who[0].unionByName(who[1]).unionByName(who[2]))
    if out_of_log := known_left_out(
        workspace, mark, mark.as_of or datetime.now(UTC)
    ):  # as of the last look at the raw files
        counted["left_out"] = out_of_log.facts()
    inputs = {"days": str(digest)}
    return write_sequences(frames, frames["page_views"], counted, out=out, inputs=inputs, config=config)


def _read_table(spark: SparkSession, name: str, folders: list[AnyPath]) -> DataFrame:
    """A table of these days' artifacts."""
    files = sorted(spark_uri(path) for folder in folders for path in (folder / name).glob("*.parquet"))
    if not files:
        return spark.createDataFrame([], schema(TABLES[name]))
    return spark.read.schema(schema(TABLES[name])).parquet(*files)


def _capped(refused: DataFrame) -> int:
    """How many users have clicks among the rejected rows that were too many."""
    whose = F.get_json_object(ROW, "$.user_id")
    too_many = refused.filter(F.col(REASON) == TOO_MANY_CLICKS)
    return int(too_many.agg(F.countDistinct(whose).alias("users")).collect()[0]["users"])


def _number(day: date) -> int:
    return (day - EPOCH).days


# --- as a program ---------------------------------------------------------------------------------------------------


@app.command()
def daily(
    raw: Annotated[UPath, path_option("The folder that holds the tables events and items.")],
    workspace: Annotated[UPath, path_option("The workspace whose daily log grows; at a URL, one run at a time.")],
    date_: Annotated[datetime | None, typer.Option("--date", formats=DAYS, help="Add this UTC day.")] = None,
    from_: Annotated[datetime | None, typer.Option("--from", formats=DAYS, help="Or the days from this ...")] = None,
    to: Annotated[datetime | None, typer.Option("--to", formats=DAYS, help="... to this, included.")] = None,
    master: Annotated[str | None, typer.Option(help="The Spark master, such as spark://HOST:PORT.")] = None,
) -> None:
    """Add UTC days of raw events to a workspace's daily log: with the log's own config, or a new log with ours."""
    days = asked_days(date_, from_, to)
    if days is None:
        raise DailyLogError("give the day to add as --date, or several as --from and --to")
    with _alone(workspace):
        mark = daily_log.read_watermark(workspace)
        if date_ is not None and mark is None:
            refuse_to_leave_out(raw, workspace, *days, master=master)
        config = replace(SequencesConfig(), **(mark.config if mark else {}))
        done = add_days(raw=raw, workspace=workspace, start=days[0], end=days[1], config=config, master=master)
        tell_left_out(workspace, done)


@contextmanager
def _alone(workspace: AnyPath) -> Iterator[None]:
    """Hold the workspace. No store of objects has locks: there, whoever submits the runs sees to it."""
    if isinstance(workspace, Path):
        workspace.mkdir(parents=True, exist_ok=True)
    with locked(workspace) if isinstance(workspace, Path) else nullcontext():
        yield


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of this job."""
    app(args=argv, prog_name="daily_log")


if __name__ == "__main__":
    main()
