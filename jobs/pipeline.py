"""The whole road, from raw tables to a release: each stage an artifact, skipped while its inputs and config stand.

A stage's key is the hash of its config and of its inputs' digests; its artifact lies at WORKSPACE/<stage>/<key>, and
a forced rebuild of it at <key>-1 and so on. So a stage is fresh exactly if such a folder is whole, old versions stay
readable for the releases that name them, and a run that was killed goes on where it was.
"""

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import structlog
import typer
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from jobs.daily_log import asked_days, log_digest, read_watermark
from jobs.materialize import is_loaded
from jobs.presets import PRESETS
from jobs.sources.raw import raw_digest, truth_digest
from model import artifact
from model.artifact import Manifest

log = structlog.get_logger()
console = Console(stderr=True)


class StageError(ValueError):
    """The road cannot be walked as asked; the message says what to run first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stretch of the road: what builds it, and what it is built from.

    build: "module:function", imported only when the stage runs.  needs: names of earlier stages, passed as paths.
    takes: what else it wants: "raw" (the raw folder), "raw_digest", "workspace", "config".
    """

    name: str
    build: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


STAGES = (
    Stage(name="sequences", build="jobs.spark.daily_log:build", takes=("raw", "raw_digest", "workspace", "config")),
    Stage(name="images", build="jobs.beam.image_references:build", takes=("raw", "raw_digest", "config")),
    Stage(name="pretrain", build="model.courier.train:build", needs=("sequences", "images"), takes=("config",)),
    Stage(name="embed", build="model.courier.embed:build", needs=("pretrain", "images")),
    Stage(name="cluster", build="jobs.cluster:build", needs=("embed", "sequences"), takes=("config",)),
    Stage(name="features", build="jobs.features:build", needs=("sequences", "images", "embed", "cluster")),
    Stage(name="materialize", build="jobs.materialize:build", needs=("features",), takes=("workspace",)),
    Stage(name="index", build="jobs.build_index:build", needs=("embed",), takes=("config",)),
    Stage(
        name="rows",
        build="jobs.training_rows:build",
        needs=("sequences", "features", "materialize"),
        takes=("workspace",),
    ),
    Stage(name="ctr", build="model.ctr.train:build", needs=("rows", "embed"), takes=("config",)),
    Stage(
        name="evaluate",
        build="jobs.evaluate:build",
        needs=("ctr", "rows", "embed", "sequences"),
        takes=("raw", "raw_digest", "config"),
    ),
    Stage(
        name="release",
        build="jobs.release:build",
        needs=("images", "pretrain", "embed", "cluster", "index", "materialize", "ctr", "evaluate"),
        takes=("workspace",),
    ),
)
REPORTS = ("evaluation.json", "evaluation.html")
NAMES = tuple(stage.name for stage in STAGES)


@dataclass(frozen=True, slots=True)
class Road:
    """A workspace, the raw folder it is made from, and the configs of its stages."""

    workspace: Path
    raw: Path
    preset: str

    def config(self, stage: Stage) -> Mapping[str, Any]:
        """The stage's config as plain values; empty where it has none."""
        return asdict(PRESETS[self.preset][stage.name]) if "config" in stage.takes else {}


@dataclass(frozen=True, slots=True)
class State:
    """How a stage stands: its folder (None while an input is missing), and whether a finished artifact lies there."""

    folder: Path | None
    fresh: bool


def stage_key(stage: Stage, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """12 hex digits that name a version of an artifact: stage, config, inputs, and the courier that builds it."""
    identity = {"stage": stage.name, "courier": version("courier"), "config": config, "inputs": dict(inputs)}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def states(road: Road, raw: str) -> dict[str, State]:
    """How every stage stands, in the road's order. raw: the raw folder's digest."""
    found: dict[str, State] = {}
    for stage in STAGES:
        found[stage.name] = _state(road, raw, stage, found)
    return found


def _state(road: Road, raw: str, stage: Stage, before: Mapping[str, State]) -> State:
    if not all(before[need].fresh for need in stage.needs):
        return State(None, fresh=False)
    inputs = {need: artifact.digest(cast(Path, before[need].folder)) for need in stage.needs}
    if "raw_digest" in stage.takes:
        inputs["raw"] = raw
    if stage.name == "sequences" and (days := log_digest(road.workspace)):  # assembled of the daily log
        inputs = {"days": days}
    if stage.name == "evaluate":  # it alone reads the truth
        inputs["truth"] = truth_digest(road.raw)
    first = road.workspace / stage.name / stage_key(stage, road.config(stage), inputs)
    found = [folder for folder in _generations(first) if _is_whole(folder, stage.name)]
    if found and _stands(road, stage, found[-1], before):
        return State(found[-1], fresh=True)
    return State(_next_generation(first), fresh=False)


def _stands(road: Road, stage: Stage, folder: Path, before: Mapping[str, State]) -> bool:
    """Whether what a stage did outside its folder still stands: all versions share one store and one catalogue."""
    if stage.name == "materialize":
        return is_loaded(road.workspace, cast(Path, before["features"].folder))
    if stage.name == "release":  # made current again by whoever walks its road again
        return bool(_current_release(road.workspace) == artifact.read(folder, kind="release").facts["release_id"])
    return True


def _generations(first: Path) -> list[Path]:
    """The folders of one version, oldest first, KEY, KEY-1, ...: a rebuild never replaces what a release names."""
    rebuilt = [path for path in first.parent.glob(f"{first.name}-*") if path.name.rpartition("-")[2].isdecimal()]
    return [first, *sorted(rebuilt, key=lambda path: int(path.name.rpartition("-")[2]))]


def _next_generation(first: Path) -> Path:
    last = _generations(first)[-1]
    if not (last / artifact.MANIFEST).is_file():
        return last
    count = 0 if last == first else int(last.name.rpartition("-")[2])
    return first.with_name(f"{first.name}-{count + 1}")


def _is_whole(folder: Path, kind: str) -> bool:
    try:
        artifact.read(folder, kind=kind)
    except (artifact.ArtifactMissing, artifact.ArtifactMismatch):
        return False
    return True


def walk(road: Road, *, rebuild: frozenset[str] = frozenset(), only: str | None = None) -> dict[str, str]:
    """Bring every stage up to date; returns what was done: stage -> "built" or "skipped".

    rebuild: stages to build although they are fresh.  only: build this stage and no other; its inputs must be fresh.
    Raises StageError where `only` lacks a fresh input, or another run holds the workspace.
    """
    road.workspace.mkdir(parents=True, exist_ok=True)
    with _locked(road.workspace):
        raw = raw_digest(road.raw)
        done: dict[str, str] = {}
        known: dict[str, State] = {}
        for stage in STAGES:
            artifact.sweep(road.workspace / stage.name)
            known[stage.name] = state = _state(road, raw, stage, known)
            if only not in (None, stage.name):
                continue
            if state.folder is None:
                lacking = next(need for need in stage.needs if not known[need].fresh)
                raise StageError(
                    f"stage {stage.name} needs {lacking}, which is not up to date: `courier run` builds it"
                )
            if state.fresh and stage.name in rebuild:
                first = state.folder.with_name(state.folder.name.partition("-")[0])
                known[stage.name] = state = State(_next_generation(first), fresh=False)
            if state.fresh and state.folder is not None:
                done[stage.name] = "skipped"
                console.print(f"[dim]{stage.name:<12} skipped: up to date ({state.folder.name})[/dim]")
                continue
            _remember(road)
            _build(road, raw, stage, known)
            known[stage.name] = State(state.folder, fresh=True)
            done[stage.name] = "built"
        _remember(road)
        if done.get("evaluate"):
            _publish(cast(Path, known["evaluate"].folder), road.workspace / "reports")
    return done


def _publish(evaluation: Path, reports: Path) -> None:
    """Copy the evaluation to `reports`, each file whole or not at all."""
    reports.mkdir(exist_ok=True)
    for name in REPORTS:
        artifact.write_whole(reports / name, (evaluation / name).read_bytes())


def _build(road: Road, raw: str, stage: Stage, known: Mapping[str, State]) -> None:
    out = cast(Path, known[stage.name].folder)
    console.print(f"[bold]{stage.name:<12}[/bold] building {out}")
    begun = time.monotonic()
    arguments: dict[str, Any] = {need: known[need].folder for need in stage.needs}
    offered = {
        "raw": road.raw,
        "raw_digest": raw,
        "workspace": road.workspace,
        "config": PRESETS[road.preset].get(stage.name),
    }
    arguments |= {name: offered[name] for name in stage.takes}
    module, _, function = stage.build.partition(":")
    build = cast(Callable[..., Manifest], getattr(import_module(module), function))
    build(**arguments, out=out)
    console.print(f"[bold]{stage.name:<12}[/bold] built in {time.monotonic() - begun:.1f} s")


@contextmanager
def _locked(workspace: Path) -> Any:
    lock = FileLock(workspace / ".lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise StageError(f"another run is at work in {workspace}: wait for it, or stop it") from None


def _remember(road: Road) -> None:
    said = json.dumps({"raw": str(road.raw.resolve()), "preset": road.preset})
    artifact.write_whole(road.workspace / "run.json", said.encode())


def recall_road(workspace: Path, raw: Path | None = None, preset: str | None = None) -> Road:
    """The road of a workspace: what is not given is taken from its last run. Raises StageError where there was none."""
    last: dict[str, str] = {}
    if (workspace / "run.json").is_file():
        last = json.loads((workspace / "run.json").read_text())
    if raw is None and "raw" not in last:
        raise StageError(f"{workspace} has no run yet: say `courier run RAW --workspace {shlex.quote(str(workspace))}`")
    road = Road(workspace.resolve(), (raw or Path(last["raw"])).resolve(), preset or last.get("preset", "demo"))
    if not road.raw.is_dir():
        raise StageError(f"{road.raw} is not a folder with the raw tables `events` and `items`")
    return road


Workspace = Annotated[Path, typer.Option(help="the folder that holds every artifact of the road")]
Preset = Annotated[Literal["tiny", "demo", "full"], typer.Option(help="sizes and lengths of training")]
Remembered = Annotated[Literal["tiny", "demo", "full"] | None, typer.Option(help="default: that of the last run")]
DAYS = ["%Y-%m-%d"]
RawFolder = Annotated[Path, typer.Argument(help="the folder with the raw tables `events` and `items`")]


def run(
    raw: RawFolder,
    workspace: Workspace = Path("workspace"),
    preset: Preset = "demo",
    from_: Annotated[str | None, typer.Option("--from", help="rebuild this stage and all that follow")] = None,
    only: Annotated[str | None, typer.Option(help="rebuild this stage alone")] = None,
) -> None:
    """The whole road, from raw tables to a release. Stages that are up to date are skipped."""
    for name in (from_, only):
        if name is not None and name not in NAMES:
            raise StageError(f"no stage '{name}': the stages are {', '.join(NAMES)}")
    if from_ and only:
        raise StageError(f"--from {from_} and --only {only} contradict each other: give one of them")
    begun = time.monotonic()
    rebuild = NAMES[NAMES.index(from_) :] if from_ else (only,) if only else ()
    done = walk(recall_road(workspace, raw, preset), rebuild=frozenset(rebuild), only=only)
    built = sum(what == "built" for what in done.values())
    log.info("road_done", built=built, skipped=len(done) - built, seconds=round(time.monotonic() - begun, 1))


def status(
    workspace: Workspace = Path("workspace"),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Every stage: fresh, stale or missing; and the current release."""
    road = recall_road(workspace)
    rows = [_status_row(road.workspace, name, state) for name, state in states(road, raw_digest(road.raw)).items()]
    current = _current_release(road.workspace)
    if as_json:
        answer = {"raw": str(road.raw), "preset": road.preset, "stages": rows, "release": current}
        print(json.dumps(answer, indent=1))
        return
    table = Table("stage", "state", "version", "built at (UTC)", "MB", title=f"{road.workspace}, preset {road.preset}")
    for row in rows:
        table.add_row(*(str(row[column] or "") for column in ("stage", "state", "version", "built_at", "megabytes")))
    Console().print(table)
    Console().print(f"current release: {current or 'none'}")


def _status_row(workspace: Path, name: str, state: State) -> dict[str, Any]:
    if state.fresh and state.folder is not None:
        manifest = artifact.read(state.folder, kind=name)
        size = sum(facts["bytes"] for facts in manifest.files.values()) / 1e6
        built_at = manifest.created_at[:19]
        return {
            "stage": name,
            "state": "fresh",
            "version": state.folder.name,
            "built_at": built_at,
            "megabytes": round(size, 1),
        }
    older = any((workspace / name).glob(f"*/{artifact.MANIFEST}"))
    return {
        "stage": name,
        "state": "stale" if older else "missing",
        "version": None,
        "built_at": None,
        "megabytes": None,
    }


def _current_release(workspace: Path) -> str | None:
    if not (workspace / "catalogue.db").is_file():
        return None
    from model import catalogue  # SQLAlchemy takes half a second that a run with nothing to do need not spend

    found = catalogue.current(workspace)
    return found.release_id if found else None


def run_main(argv: Sequence[str]) -> None:
    """`courier run`."""
    _call(run, "courier run", argv)


def status_main(argv: Sequence[str]) -> None:
    """`courier status`."""
    _call(status, "courier status", argv)


def stage_main(argv: Sequence[str]) -> None:
    """`courier STAGE [RAW]`: bring one stage up to date; argv begins with the stage's name."""
    name, *rest = argv
    if name == "sequences":
        _call(sequences, "courier sequences", rest)
        return

    def one(
        raw: Annotated[Path | None, typer.Argument(help="default: the raw folder of the last run")] = None,
        workspace: Workspace = Path("workspace"),
        preset: Remembered = None,
    ) -> None:
        walk(recall_road(workspace, raw, preset), only=name)

    one.__doc__ = f"Bring the stage `{name}` up to date; the stages it needs must be."
    _call(one, f"courier {name}", rest)


def sequences(
    raw: Annotated[Path | None, typer.Argument(help="default: the raw folder of the last run")] = None,
    workspace: Workspace = Path("workspace"),
    preset: Remembered = None,
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
) -> None:
    """Bring the stage `sequences` up to date; or add days (UTC) to the daily log, from which it is made from then on.

    A day that the log holds already is computed again, and all that follow it.
    """
    road = recall_road(workspace, raw, preset)
    days = asked_days(day, from_, to)
    if days is None:
        walk(road, only="sequences")
        return
    from jobs.spark.daily_log import add_days, refuse_to_leave_out  # Spark, which an up-to-date stage need not load

    road.workspace.mkdir(parents=True, exist_ok=True)
    with _locked(road.workspace):
        if day is not None and read_watermark(road.workspace) is None:
            refuse_to_leave_out(road.raw, *days)
        config = PRESETS[road.preset]["sequences"]
        add_days(raw=road.raw, workspace=road.workspace, start=days[0], end=days[1], config=config)
        _remember(road)


def _call(function: Callable[..., None], name: str, argv: Sequence[str]) -> None:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    app(args=list(argv), prog_name=name, standalone_mode=True)


if __name__ == "__main__":
    run_main(sys.argv[1:])
