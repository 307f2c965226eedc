"""Add days of raw events to the daily log without computing its past anew, and assemble sequences of its days."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from upath import UPath

from jobs.config import SequencesConfig
from jobs.paths import path_option
from jobs.raw.canonical import CanonicalTable, canonical_table, has_sampled_negatives
from jobs.rules.events import EPOCH, future_from
from jobs.rules.sequence_tables import TABLES
from jobs.sequences.build import daily_engine, tell
from jobs.sequences.daily import log as daily_log
from jobs.sequences.daily.engine import DAY, NOTHING, DailyEngine, Earlier, NewDays
from jobs.sequences.daily.log import (
    DAYS,
    DailyLogError,
    Plan,
    Watermark,
    asked_days,
    day_folder,
    state_folder,
    undated_folder,
)
from jobs.sequences.daily.raw_days import UNDATED, files_of, indexed, known_left_out, rows_a_day, sentence
from jobs.workspace import locked
from model import artifact
from model.artifact import AnyPath, Manifest

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def lasting(config: SequencesConfig) -> dict[str, int]:
    """What of the config the days depend on; the fractions divide the whole log."""
    return {name: value for name, value in asdict(config).items() if not name.endswith("_fraction")}


# --- adding days ----------------------------------------------------------------------------------------------------


def add_days(
    *,
    events: CanonicalTable,
    sampled_negatives: bool,
    workspace: AnyPath,
    start: date,
    end: date,
    config: SequencesConfig,
    engine: str | None = None,
    master: str | None = None,
    as_of: datetime | None = None,
) -> Watermark:
    """Write the days `start` to `end`, both included, and what follows from them; returns the new watermark.

    Only raw events of those days and the few before them are read. Only for the holder of the workspace's lock.
    engine, master: as of jobs.sequences.build.choose; a master must reach events and workspace under the same paths.
    as_of: the clock that says which events lie in the future; None: that of this machine, now. What lies there is kept
    with the undated rows, and comes into its day when that is added.
    Raises DailyLogError where the days do not join the log, RawTableUnusable, JavaMissing.
    """
    began, as_of = time.monotonic(), as_of or datetime.now(UTC)
    tell(events, engine, master)
    by = daily_engine(workspace, engine, master)
    mark = daily_log.read_watermark(workspace)
    todo = daily_log.plan(mark, start, end)
    if mark is not None and todo.write_from > mark.first and dict(mark.config) != lasting(config):
        raise DailyLogError(
            f"the daily log was built with {dict(mark.config)}, not {lasting(config)}: "
            f"say `courier sequences --from {mark.first} --to {todo.last}` to build it again"
        )
    daily_log.refuse_cut_short(workspace, todo.write_from)
    folder = daily_log.log_folder(workspace)
    for place in (folder, folder / "states"):
        artifact.sweep(place)
    folder.mkdir(parents=True, exist_ok=True)
    index = indexed(events, workspace, by.count_days)
    of_the_days = files_of(events, index, lambda file: file.holds(todo.read_from, todo.last))
    with by.new_days(of_the_days, as_of, todo, config, _earlier(workspace, todo)) as new:
        _write_days(new, workspace, todo, config)
    ahead = future_from(as_of).date()
    undated = files_of(events, index, lambda file: UNDATED in file.rows or file.holds(ahead, date.max))
    with artifact.write_together(undated_folder(workspace), kind="undated", inputs={}, config=lasting(config)) as draft:
        draft.facts = {**NOTHING, **by.write_undated(undated, as_of, draft.path / "rejected")}
    done = Watermark(
        first=todo.first,
        last=todo.last,
        config=lasting(config),
        sampled_negatives=sampled_negatives,
        as_of=as_of,
    )
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


def refuse_to_leave_out(
    events: CanonicalTable,
    workspace: AnyPath,
    start: date,
    end: date,
    engine: str | None = None,
    master: str | None = None,
) -> None:
    """Raises DailyLogError where a log begun with `start` would leave out earlier raw events."""
    by = daily_engine(workspace, engine, master)
    raw_events = rows_a_day(indexed(events, workspace, by.count_days).values())
    earlier = {day: rows for day, rows in raw_events.items() if day < start}
    if earlier:
        first = min(earlier)
        raise DailyLogError(
            f"{events.path} holds {sum(earlier.values())} events before {start}, the first on {first}: say "
            f"`courier sequences --from {first} --to {end}` to begin with them, or `--from {start} --to {end}` to leave"
            " them out"
        )


def _write_days(new: NewDays, workspace: AnyPath, todo: Plan, config: SequencesConfig) -> None:
    folder = daily_log.log_folder(workspace)
    with artifact.scratch(folder) as scratch:
        scratch.mkdir(parents=True, exist_ok=True)
        new.write_tables(scratch)
        daily_log.begin_writing(workspace, todo)
        for day in todo.days:
            facts = {"settled_with": daily_log.settled_with(day, todo.last).isoformat()}
            _write_day(scratch, workspace, day, {**NOTHING, **new.facts.get(day, {}), **facts}, config)
    for day in sorted(daily_log.states_kept(todo.last).intersection(todo.days)):
        with artifact.write_together(
            state_folder(workspace, day), kind="state", inputs={}, config=lasting(config)
        ) as draft:
            new.write_state(day, draft.path / "state")


def _write_day(
    scratch: AnyPath, workspace: AnyPath, day: date, facts: Mapping[str, Any], config: SequencesConfig
) -> None:
    with artifact.write_together(day_folder(workspace, day), kind="day", inputs={}, config=lasting(config)) as draft:
        for name in TABLES:
            written = scratch / name / f"{DAY}={(day - EPOCH.date()).days}"
            if written.is_dir():
                artifact.move_folder(written, draft.path / name)
        draft.facts = dict(facts)


def _earlier(workspace: AnyPath, todo: Plan) -> Earlier:
    """Where to find what each user had clicked before the first day to write."""
    before = todo.write_from - daily_log.DAY
    with suppress(artifact.ArtifactMissing, artifact.ArtifactMismatch):
        if before >= todo.first:
            artifact.read(state_folder(workspace, before), kind="state")
            return Earlier(state=state_folder(workspace, before) / "state", days=[])
    days = Plan(first=todo.first, last=before, write_from=todo.first).days if before >= todo.first else []
    for day in days:
        daily_log.read_day(workspace, day, todo.last)
    return Earlier(state=None, days=[day_folder(workspace, day) for day in days])


def _drop_states(workspace: AnyPath, mark: Watermark) -> None:
    kept = {day.isoformat() for day in daily_log.states_kept(mark.last)}
    for folder in (daily_log.log_folder(workspace) / "states").glob("*"):
        if folder.name not in kept:
            artifact.remove_folder(folder)


# --- assembling -----------------------------------------------------------------------------------------------------


def assemble(
    workspace: AnyPath, mark: Watermark, by: DailyEngine, *, out: AnyPath, config: SequencesConfig
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
    folders = [daily_log.log_folder(workspace) / name for name in manifests]
    facts = [one.facts for one in manifests.values()]
    capped = {"most_clicks": max(one["most_clicks"] for one in facts)}
    counted = daily_log.sum_facts(facts) | {"capped_users": capped, "sampled_negatives": mark.sampled_negatives}
    counted["as_of"] = None if mark.as_of is None else mark.as_of.isoformat()
    if out_of_log := known_left_out(
        workspace, mark, mark.as_of or datetime.now(UTC)
    ):  # as of the last look at the raw files
        counted["left_out"] = out_of_log.facts()
    return by.write_sequences(folders, counted, out=out, inputs={"days": str(digest)}, config=config)


# --- as a program ---------------------------------------------------------------------------------------------------


@app.command()
def daily(
    raw: Annotated[UPath, path_option("The folder that holds the tables events and items.")],
    workspace: Annotated[UPath, path_option("The workspace whose daily log grows; at a URL, one run at a time.")],
    date_: Annotated[datetime | None, typer.Option("--date", formats=DAYS, help="Add this UTC day.")] = None,
    from_: Annotated[datetime | None, typer.Option("--from", formats=DAYS, help="Or the days from this ...")] = None,
    to: Annotated[datetime | None, typer.Option("--to", formats=DAYS, help="... to this, included.")] = None,
    engine: Annotated[str | None, typer.Option(help="duckdb (default), or spark (with a master)")] = None,
    master: Annotated[str | None, typer.Option(help="The Spark master, such as spark://HOST:PORT.")] = None,
) -> None:
    """Add UTC days of raw events to a workspace's daily log: with the log's own config, or a new log with ours."""
    days, events = asked_days(date_, from_, to), canonical_table(raw, "events")
    if days is None:
        raise DailyLogError("give the day to add as --date, or several as --from and --to")
    with _alone(workspace):
        mark = daily_log.read_watermark(workspace)
        if date_ is not None and mark is None:
            refuse_to_leave_out(events, workspace, *days, engine=engine, master=master)
        config = replace(SequencesConfig(), **(mark.config if mark else {}))
        start, end = days
        done = add_days(
            events=events,
            sampled_negatives=has_sampled_negatives(raw),
            workspace=workspace,
            start=start,
            end=end,
            config=config,
            engine=engine,
            master=master,
        )
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
