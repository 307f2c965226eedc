"""The whole road, from raw tables to a release: each stage an artifact, skipped while its inputs and config stand.

A stage's key is the hash of its config and of its inputs' digests; its artifact lies at WORKSPACE/<stage>/<key>, and
a forced rebuild of it at <key>-1 and so on. So a stage is fresh exactly if such a folder is whole, old versions stay
readable for the releases that name them, and a run that was killed goes on where it was.
"""

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from rich.console import Console

from jobs.config import PRESETS
from jobs.features.materialize import is_loaded
from jobs.paths import any_path
from jobs.raw.folder import raw_digest, truth_digest
from jobs.sequences.daily.log import log_digest
from model import artifact
from model.artifact import AnyPath, Manifest
from model.courier.config import for_method
from model.errors import CourierError

console = Console(stderr=True)


class StageError(CourierError):
    """The road cannot be walked as asked; the message says what to run first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stretch of the road: what builds it, and what it is built from.

    build: "module:function", imported only when the stage runs.  needs: names of earlier stages, passed as paths.
    takes: what else it wants: "raw" (the raw folder), "raw_digest", "workspace", "store" (of images), "config",
    "beam_args", "master" (where Spark runs).
    """

    name: str
    build: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


STAGES = (
    Stage(
        name="sequences",
        build="jobs.sequences.daily.build:build",
        takes=("raw", "raw_digest", "workspace", "config", "master"),
    ),
    Stage(
        name="images",
        build="jobs.images.pipeline:build",
        takes=("raw", "raw_digest", "store", "config", "beam_args"),
    ),
    Stage(
        name="pretrain", build="model.courier.training.train:build", needs=("sequences", "images"), takes=("config",)
    ),
    Stage(name="embed", build="model.courier.inference.embed:build", needs=("pretrain", "images")),
    Stage(name="cluster", build="jobs.embeddings.cluster:build", needs=("embed", "sequences"), takes=("config",)),
    Stage(
        name="features",
        build="jobs.features.offline:build",
        needs=("sequences", "images", "embed", "cluster"),
        takes=("master",),
    ),
    Stage(name="materialize", build="jobs.features.materialize:build", needs=("features",), takes=("workspace",)),
    Stage(name="index", build="jobs.embeddings.build_index:build", needs=("embed",), takes=("config",)),
    Stage(
        name="rows",
        build="jobs.features.training_rows:build",
        needs=("sequences", "features", "materialize"),
        takes=("workspace",),
    ),
    Stage(name="ctr", build="model.ctr.train:build", needs=("rows", "embed"), takes=("config",)),
    Stage(
        name="evaluate",
        build="jobs.evaluation.evaluate:build",
        needs=("ctr", "rows", "embed", "sequences"),
        takes=("raw", "raw_digest", "config"),
    ),
    Stage(
        name="release",
        build="jobs.releases.build:build",
        needs=("images", "pretrain", "embed", "cluster", "index", "materialize", "ctr", "evaluate"),
        takes=("workspace",),
    ),
)
REPORTS = {"images": ("coverage.json", "coverage.html"), "evaluate": ("evaluation.json", "evaluation.html")}
NAMES = tuple(stage.name for stage in STAGES)


@dataclass(frozen=True, slots=True)
class Road:
    """A workspace, the raw folder it is made from, and the configs of its stages."""

    workspace: Path
    raw: AnyPath
    preset: str
    allowed_hosts: tuple[str, ...] = ()  # that https:// image references may name
    beam_args: tuple[str, ...] = ()  # where Beam runs: for this run alone, and no part of what is built
    master: str | None = None  # where Spark runs, if not here: no stage depends on it
    pretrain: tuple[
        tuple[str, Any], ...
    ] = ()  # dotted settings of CourierConfig other than the preset's, for this run alone

    def settings(self, stage: Stage) -> Any:
        """The stage's config; None where it has none."""
        if "config" not in stage.takes:
            return None
        config = PRESETS[self.preset][stage.name]
        if stage.name == "pretrain":
            return for_method(config, dict(self.pretrain))
        return replace(config, allowed_hosts=self.allowed_hosts) if stage.name == "images" else config

    def config(self, stage: Stage) -> Mapping[str, Any]:
        """The stage's config as plain values; empty where it has none."""
        return asdict(self.settings(stage)) if "config" in stage.takes else {}


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
        return bool(current_release(road.workspace) == artifact.read(folder, kind="release").facts["release_id"])
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


def walk(
    road: Road, *, rebuild: frozenset[str] = frozenset(), only: str | None = None, **options: Any
) -> dict[str, str]:
    """Bring every stage up to date; returns what was done: stage -> "built" or "skipped".

    rebuild: stages to build although they are fresh.  only: build this stage and no other; its inputs must be fresh.
    options: handed to every stage that is built, so for use with `only`.
    Raises StageError where `only` lacks a fresh input, or another run holds the workspace.
    """
    road.workspace.mkdir(parents=True, exist_ok=True)
    with locked(road.workspace):
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
            remember(road)
            _build(road, raw, stage, known, options)
            known[stage.name] = State(state.folder, fresh=True)
            done[stage.name] = "built"
        remember(road)
        for name in (name for name in REPORTS if name in done):
            _publish(cast(Path, known[name].folder), REPORTS[name], road.workspace / "reports")
    return done


def _publish(folder: Path, names: Sequence[str], reports: Path) -> None:
    """Copy an artifact's reports to `reports`, each whole or not at all."""
    reports.mkdir(exist_ok=True)
    for name in names:
        if (folder / name).is_file():
            artifact.write_whole(reports / name, (folder / name).read_bytes())


def _build(road: Road, raw: str, stage: Stage, known: Mapping[str, State], options: Mapping[str, Any]) -> None:
    out = cast(Path, known[stage.name].folder)
    console.print(f"[bold]{stage.name:<12}[/bold] building {out}")
    begun = time.monotonic()
    arguments: dict[str, Any] = {need: known[need].folder for need in stage.needs}
    offered = {
        "raw": road.raw,
        "raw_digest": raw,
        "workspace": road.workspace,
        "store": road.workspace / "image_store",
        "config": road.settings(stage),
        "beam_args": road.beam_args,
        "master": road.master,
    }
    arguments |= {name: offered[name] for name in stage.takes}
    module, _, function = stage.build.partition(":")
    build = cast(Callable[..., Manifest], getattr(import_module(module), function))
    build(**arguments, **options, out=out)
    console.print(f"[bold]{stage.name:<12}[/bold] built in {time.monotonic() - begun:.1f} s")


@contextmanager
def locked(workspace: Path) -> Iterator[None]:
    """Hold the workspace for this process. Raises StageError where another one does."""
    lock = FileLock(workspace / ".lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise StageError(f"another run is at work in {workspace}: wait for it, or stop it") from None


def remember(road: Road) -> None:
    """Write down what the workspace's next run takes for granted."""
    said = json.dumps(
        {"raw": str(_settled(road.raw)), "preset": road.preset, "allowed_hosts": road.allowed_hosts}, indent=1
    )
    artifact.write_whole(road.workspace / "run.json", said.encode())


def _settled(raw: AnyPath) -> AnyPath:
    """A raw folder's path as it means the same to whoever stands in another folder."""
    return raw.resolve() if isinstance(raw, Path) else raw


def recall_road(
    workspace: Path, raw: AnyPath | None = None, preset: str | None = None, allowed_hosts: Sequence[str] = ()
) -> Road:
    """The road of a workspace: what is not given is taken from its last run. Raises StageError where there was none."""
    last: dict[str, Any] = {}
    if (workspace / "run.json").is_file():
        last = json.loads((workspace / "run.json").read_text())
    if raw is None and "raw" not in last:
        raise StageError(f"{workspace} has no run yet: say `courier run RAW --workspace {shlex.quote(str(workspace))}`")
    road = Road(
        workspace.resolve(),
        _settled(raw or any_path(last["raw"])),
        preset or last.get("preset", "demo"),
        tuple(allowed_hosts or last.get("allowed_hosts", ())),
    )
    if isinstance(road.raw, Path) and not road.raw.is_dir():
        raise StageError(f"{road.raw} is not a folder with the raw tables `events` and `items`")
    return road


def current_release(workspace: Path) -> str | None:
    """The id of the release that answers now; None where there is none."""
    if not (workspace / "catalogue.db").is_file():
        return None
    from model import (
        releases as catalogue,  # SQLAlchemy takes half a second that a run with nothing to do need not spend
    )

    found = catalogue.current(workspace)
    return found.release_id if found else None
