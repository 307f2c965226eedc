"""The command lines of the pipeline: run, status, and a verb for each stage."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import structlog
import typer

from jobs.engines.beam_arguments import part
from jobs.options import (
    AllowedHosts,
    By,
    Columns,
    ConfigFile,
    Engine,
    Folder,
    Given,
    LastRaw,
    Master,
    Preset,
    Promote,
    RawFolder,
    Why,
    call,
    parted,
)
from jobs.pipeline import (
    NAMES,
    State,
    asked_by,
    require_stage,
    run_stages,
    stage_states,
)
from jobs.raw.canonical import canonical_table, has_sampled_negatives
from jobs.releases.current import current_release, move_up
from jobs.sequences.daily.log import DAYS, asked_days, read_watermark
from jobs.settings import as_toml
from jobs.status import held_by_log
from jobs.workspace import StageError, Workspace, locked, open_workspace, remember
from model import artifact

log = structlog.get_logger()


def run(
    context: typer.Context,
    raw: RawFolder,
    workspace: Folder = Path("workspace"),
    preset: Preset = None,
    from_: Annotated[str | None, typer.Option("--from", help="rebuild this stage and all that follow")] = None,
    only: Annotated[str | None, typer.Option(help="rebuild this stage alone")] = None,
    encoder: Annotated[
        Literal["pinned", "train"],
        typer.Option(help="pinned: the current release's, where there is one; train: of the data there is now"),
    ] = "pinned",
    allow_host: AllowedHosts = None,
    columns: Columns = None,
    config: ConfigFile = None,
    given: Given = None,
    engine: Engine = None,
    master: Master = None,
    promote: Promote = None,
    by: By = None,
    why: Why = "",
) -> None:
    """All stages, from raw tables to a release. Stages that are up to date are skipped.

    Encoder and codebook stay those of the current release until --encoder train, --from or --only names them, or their
    settings change.
    The release answers from then on if its gates pass; where one fails, the exit status is 3.
    Options for Beam, as in --runner=FlinkRunner, stand behind a --, at the end.
    """
    for name in filter(None, (from_, only)):
        require_stage(name)
    if from_ and only:
        raise StageError(f"--from {from_} and --only {only} contradict each other: give one of them")
    begun = time.monotonic()
    rebuild = NAMES[NAMES.index(from_) :] if from_ else (only,) if only else ()
    opened = open_workspace(
        workspace,
        raw,
        preset=preset,
        allowed_hosts=allow_host or (),
        columns=parted(columns),
        config_file=config,
        given=given or (),
    )
    opened = _placed(replace(opened, beam_args=context.obj), engine, master)
    anew = {from_, only} | asked_by(f"--encoder {encoder}")
    move_up(opened.folder)
    folders: dict[str, Path] = {}
    new = frozenset(filter(None, anew))
    done = run_stages(opened, rebuild=frozenset(rebuild), anew=new, only=only, folders=folders)
    held = held_by_log(opened)
    built = sum(what == "built" for what in done.values())
    log.info("stages_done", built=built, skipped=len(done) - built, seconds=round(time.monotonic() - begun, 1))
    if held:
        (log.warning if held["left_out"] else log.info)("made_of_the_daily_log", **held)
    report = opened.folder / "reports" / "coverage.json"
    lost = _lost_pictures(report) if "images" in done and report.is_file() else None
    if lost:
        log.warning("items_without_picture", **lost)
    if "release" in folders:
        _let_answer(opened, folders["release"], promote, by, why)


def _let_answer(workspace: Workspace, release: Path, promote: str | None, by: str | None, why: str) -> None:
    """Promote the release that a run made, if it may be. Exits with status 3 where a gate fails."""
    release_id = artifact.read(release, kind="release").facts["release_id"]
    if promote is None and current_release(workspace.folder) == release_id:
        return
    from jobs.releases.commands import GATES_FAILED, decide_and_tell  # with what a run that is up to date need not load

    config = workspace.config.promotion
    config = replace(config, mode=cast(Any, promote)) if promote else config
    decision = decide_and_tell(workspace.folder, release, config, by, why or "courier run")
    if decision.failed:
        raise typer.Exit(GATES_FAILED)
    tell = log.info if decision.answers else log.warning
    reason = {} if decision.because is None else {"because": decision.because}
    tell("release_answers" if decision.answers else "release_not_promoted", release=release_id, **reason)


def _lost_pictures(report: Path) -> dict[str, Any] | None:
    """How many items have no usable picture, of how many, and to which rules they lost it; None where none has."""
    found = json.loads(report.read_text("utf-8"))
    lost = found["by_reason"]
    if not lost:
        return None
    of = found["rows"]["accepted"]
    return {"items": sum(lost.values()), "of": of, "by_reason": lost, "report": str(report.with_suffix(".html"))}


def run_main(argv: Sequence[str]) -> None:
    """`courier run`."""
    ours, beam_args = part(argv)
    call(run, "courier run", ours, tuple(beam_args))


def config(
    raw: LastRaw = None,
    workspace: Folder = Path("workspace"),
    preset: Preset = None,
    config_file: ConfigFile = None,
    given: Given = None,
) -> None:
    """What holds: every setting as a courier.toml, each with where its value came from."""
    print(as_toml(open_workspace(workspace, raw, preset=preset, config_file=config_file, given=given or ()).settings))


def config_main(argv: Sequence[str]) -> None:
    """`courier config`."""
    call(config, "courier config", argv)


def stage_main(argv: Sequence[str]) -> None:
    """`courier STAGE [RAW]`: bring one stage up to date; argv begins with the stage's name."""
    name, *rest = argv
    own: dict[str, Callable[..., None]] = {"ingest": ingest, "sequences": sequences, "pretrain": pretrain}
    if name in own:
        call(own[name], f"courier {name}", rest)
        return

    def one(
        raw: LastRaw = None,
        workspace: Folder = Path("workspace"),
        preset: Preset = None,
        config_file: ConfigFile = None,
        given: Given = None,
        master: Master = None,
    ) -> None:
        opened = open_workspace(workspace, raw, preset=preset, config_file=config_file, given=given or ())
        run_stages(_placed(opened, None, master), only=name)

    one.__doc__ = f"Bring the stage `{name}` up to date; the stages it needs must be."
    call(one, f"courier {name}", rest)


def _placed(workspace: Workspace, engine: str | None, master: str | None) -> Workspace:
    """The workspace with its work done where a command line says."""
    where = {name: value for name, value in (("engine", engine), ("master", master)) if value is not None}
    return workspace.with_config(**where)


def ingest(
    raw: LastRaw = None,
    workspace: Folder = Path("workspace"),
    preset: Preset = None,
    columns: Columns = None,
    config_file: ConfigFile = None,
    given: Given = None,
) -> None:
    """Bring the stage `ingest` up to date: only raw files that are new or changed are read."""
    opened = open_workspace(
        workspace, raw, preset=preset, columns=parted(columns), config_file=config_file, given=given or ()
    )
    run_stages(opened, only="ingest")


def sequences(
    raw: LastRaw = None,
    workspace: Folder = Path("workspace"),
    preset: Preset = None,
    config_file: ConfigFile = None,
    given: Given = None,
    day: Annotated[
        datetime | None,
        typer.Option("--date", formats=DAYS, help="add this day of events to the workspace's daily log"),
    ] = None,
    from_: Annotated[
        datetime | None, typer.Option("--from", formats=DAYS, help="add the days from this one ...")
    ] = None,
    to: Annotated[
        datetime | None, typer.Option("--to", formats=DAYS, help="... to this one, which is included")
    ] = None,
    engine: Engine = None,
    master: Master = None,
) -> None:
    """Bring the stage `sequences` up to date; or add days (UTC) to the daily log, from which it is made from then on.

    A day that the log holds already is computed again, and all that follow it.
    """
    opened = open_workspace(workspace, raw, preset=preset, config_file=config_file, given=given or ())
    opened = _placed(opened, engine, master)
    days = asked_days(day, from_, to)
    run_stages(opened, only="ingest")
    if days is None:
        run_stages(opened, only="sequences")
        return
    from jobs.sequences.daily.build import (  # with what an up-to-date stage need not load
        add_days,
        refuse_to_leave_out,
        tell_left_out,
    )

    ingest = cast(Path, stage_states(opened, only="ingest")["ingest"].folder)
    events = canonical_table(ingest, "events", opened.raw)
    with locked(opened.folder):
        engine, master = opened.config.engine, opened.config.master
        if day is not None and read_watermark(opened.folder) is None:
            refuse_to_leave_out(events, opened.folder, *days, engine=engine, master=master)
        done = add_days(
            events=events,
            sampled_negatives=has_sampled_negatives(ingest),
            workspace=opened.folder,
            start=days[0],
            end=days[1],
            config=opened.config.sequences,
            engine=engine,
            master=master,
        )
        tell_left_out(opened.folder, done)
        remember(opened)


def pretrain(
    raw: LastRaw = None,
    workspace: Folder = Path("workspace"),
    preset: Preset = None,
    config_file: ConfigFile = None,
    given: Given = None,
    method: Annotated[
        str | None, typer.Option(help="courier (default) or a baseline: imagenet, simclr, simsiam, clip, random")
    ] = None,
) -> None:
    """Bring the stage `pretrain` up to date; the stages it needs must be.

    Where a release answers, its encoder is up to date: `courier run --encoder train` makes another.
    With another method or other settings the encoder lies beside the pipeline's own, which stays what it was: no later
    stage takes it up.
    """
    asked = [*(given or ()), *([f"pretrain.method={method}"] if method else ())]
    opened = open_workspace(workspace, raw, preset=preset, config_file=config_file, given=asked)
    run_stages(opened, only="pretrain")


def images_main(argv: Sequence[str]) -> None:
    """`courier images`."""
    ours, beam_args = part(argv)

    def images(
        raw: LastRaw = None,
        workspace: Folder = Path("workspace"),
        preset: Preset = None,
        config_file: ConfigFile = None,
        given: Given = None,
        retry_failed: Annotated[
            bool, typer.Option("--retry-failed", help="open again what failed and may succeed, and nothing else")
        ] = False,
        allow_host: AllowedHosts = None,
    ) -> None:
        """Bring the stage `images` up to date: only new and changed images are opened.

        Those behind an address are asked for whether they changed, even where the raw folder stands.
        Options for Beam, as in --runner=FlinkRunner, stand behind a --, at the end.
        """
        opened = open_workspace(
            workspace, raw, preset=preset, allowed_hosts=allow_host or (), config_file=config_file, given=given or ()
        )
        opened = replace(opened, beam_args=tuple(beam_args))
        run_stages(opened, only="ingest")
        state = stage_states(opened, only="images")["images"]
        if not retry_failed:
            changed = state.fresh and _far_images_changed(opened, state)
            run_stages(opened, only="images", rebuild=frozenset({"images"} if changed else ()))
        elif state.fresh:
            run_stages(opened, only="images", rebuild=frozenset({"images"}), retry_failed=True)
        else:
            raise StageError("--retry-failed goes on from a stage that is up to date: say `courier images` without it")

    call(images, "courier images", ours)


def _far_images_changed(workspace: Workspace, state: State) -> bool:
    from jobs.images.recheck import far_images_changed  # with clients that nothing else here needs

    built = cast(Path, state.folder)  # as it is fresh
    return far_images_changed(built, workspace.folder / "image_store", workspace.raw, workspace.config.images)
