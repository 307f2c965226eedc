"""Run the stages in their order, each an artifact, skipped while the content of what it was made from stands.

A stage's key is the hash of its config, its revision and its inputs' digests, which are of their content: no clock,
path or touch counts. Its artifact lies at WORKSPACE/<stage>/<key>, a forced rebuild of it at <key>-1 and so on, and
what went into the key is written down in <key>.json beside it. So a stage is fresh exactly if such a folder is whole,
old versions stay readable for the releases that name them, and a run that was killed goes on where it was.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

from rich.console import Console

from jobs.raw.identity import KnownDigests
from jobs.stages import STAGES, Stage
from jobs.workspace import StageError, Workspace, locked, remember
from model import artifact, strict_json

console = Console(stderr=True)

NAMES: Final = tuple(stage.name for stage in STAGES)
KNOWN_DIGESTS: Final = "raw_digests.db"  # in the workspace: what the raw files' bytes came to when they were last read


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How a stage stands.

    folder: where its artifact lies or will lie; None while an input is not up to date.  reasons: why it is not fresh.
    identity: what its key is made of; None while an input is not up to date.
    """

    folder: Path | None
    fresh: bool
    identity: Mapping[str, Any] | None = None
    reasons: tuple[str, ...] = ()


def stage_key(identity: Mapping[str, Any]) -> str:
    """12 hex digits that name a version of an artifact."""
    return hashlib.sha256(strict_json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def stage_states(workspace: Workspace, only: str | None = None) -> dict[str, State]:
    """How every stage stands, in their order.  only: this stage and those it is made of; nothing else is read."""
    found: dict[str, State] = {}
    for stage in _stages_of(only):
        found[stage.name] = _state(workspace, stage, found)
    return found


def _stages_of(only: str | None) -> list[Stage]:
    """The stages that `only` is made of and itself, in their order; all where it is None."""
    wanted = {only}
    for stage in reversed(STAGES):
        wanted.update(stage.sources if stage.name in wanted else ())
    return [stage for stage in STAGES if only is None or stage.name in wanted]


def _state(workspace: Workspace, stage: Stage, before: Mapping[str, State]) -> State:
    stale = [name for name in dict.fromkeys(stage.sources) if not before[name].fresh]
    if stale:
        return State(folder=None, fresh=False, reasons=tuple(f"its input {name} is not up to date" for name in stale))
    identity = _identity(workspace, stage, before)
    first = workspace.folder / stage.name / stage_key(identity)
    there = {folder: _damage(folder, stage.name) for folder in _generations(first) if folder.exists()}
    whole = next((folder for folder in reversed(there) if there[folder] is None), None)
    if whole is None:
        damage = [said for said in there.values() if said]
        reasons = tuple(damage or _changes(workspace, stage, identity))
        return State(folder=_next_generation(first), fresh=False, identity=identity, reasons=reasons)
    if stage.stands and not _call(stage.stands, workspace.folder, whole, _folders(stage, before)):
        reasons = ("what it did outside its artifact no longer stands",)
        return State(folder=_next_generation(first), fresh=False, identity=identity, reasons=reasons)
    return State(folder=whole, fresh=True, identity=identity)


def _identity(workspace: Workspace, stage: Stage, before: Mapping[str, State]) -> dict[str, Any]:
    named = {name: cast(Path, before[name.partition("/")[0]].folder) for name in stage.inputs}
    return {
        "stage": stage.name,
        "revision": stage.revision,
        "config": {
            **workspace.plain_config(stage.name),
            **{name: workspace.plain_config(name) for name in stage.configs},
        },
        "inputs": artifact.digests(named) | _read(workspace, stage),
    }


def _read(workspace: Workspace, stage: Stage) -> dict[str, str]:
    """The digests of what a stage reads that no stage has made."""
    if stage.reads is None:
        return {}
    hasher = KnownDigests(workspace.folder / KNOWN_DIGESTS)
    return dict(_call(stage.reads, workspace.folder, workspace.raw, hasher))


def _folders(stage: Stage, before: Mapping[str, State]) -> dict[str, Path]:
    return {name: cast(Path, before[name].folder) for name in stage.sources}


def _call(name: str, *arguments: Any, **named: Any) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)(*arguments, **named)


# --- why a stage is stale -------------------------------------------------------------------------------------------


def _changes(workspace: Workspace, stage: Stage, identity: Mapping[str, Any]) -> list[str]:
    """What differs from the newest artifact of this stage."""
    known = []
    for file in (workspace.folder / stage.name).glob("*.json"):
        versions = [folder for folder in _generations(file.with_suffix("")) if (folder / artifact.MANIFEST).is_file()]
        known += [(artifact.read_manifest(folder).created_at, file) for folder in versions]
    if not known:
        return ["it was never built"]
    last = json.loads(max(known)[1].read_text("utf-8"))
    changed = [f"its revision was {last['revision']} and is {identity['revision']}"]
    changed = changed if last["revision"] != identity["revision"] else []
    was, now = (_flat(one["config"]) for one in (last, identity))
    changed += [
        f"{stage.name}.{name} was {was.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name, "absent") != now.get(name, "absent")
    ]
    was, now = last["inputs"], identity["inputs"]
    for name in sorted(was.keys() | now.keys()):
        if name not in was or name not in now:
            changed.append(f"{name} {'is no longer' if name in was else 'is now'} among its inputs")
        elif was[name] != now[name]:
            changed.append(f"the content of {name} changed ({was[name][:8]} to {now[name][:8]})")
    return changed or ["its artifact is gone"]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def explain(workspace: Workspace, name: str) -> list[str]:
    """Why a stage is not fresh, and why each stage before it that it waits for is not: a sentence each."""
    states = stage_states(workspace)
    if states[name].fresh:
        return [f"{name} is up to date"]
    waited_for, wanted = {name}, [name]
    while wanted:
        stage = _stage(wanted.pop())
        new = {source for source in stage.sources if not states[source].fresh} - waited_for
        waited_for, wanted = waited_for | new, wanted + sorted(new)
    return [f"{one}: {reason}" for one in NAMES if one in waited_for for reason in states[one].reasons]


def _stage(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.name == name)


# --- versions on disk -----------------------------------------------------------------------------------------------


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


def _damage(folder: Path, kind: str) -> str | None:
    try:
        artifact.read(folder, kind=kind)
    except (artifact.ArtifactMissing, artifact.ArtifactMismatch) as error:
        return str(error)
    return None


# --- running --------------------------------------------------------------------------------------------------------


def run_stages(
    workspace: Workspace, *, rebuild: frozenset[str] = frozenset(), only: str | None = None, **options: Any
) -> dict[str, str]:
    """Bring every stage up to date; returns what was done: stage -> "built" or "skipped".

    rebuild: stages to build although they are fresh.  only: build this stage and no other; its inputs must be fresh.
    options: handed to every stage that is built, so for use with `only`.
    Raises StageError where `only` lacks a fresh input, or another run holds the workspace.
    """
    workspace.folder.mkdir(parents=True, exist_ok=True)
    with locked(workspace.folder):
        done: dict[str, str] = {}
        states: dict[str, State] = {}
        for stage in _stages_of(only):
            artifact.sweep(workspace.folder / stage.name)
            states[stage.name] = state = _state(workspace, stage, states)
            if only not in (None, stage.name):
                continue
            if state.folder is None:
                lacking = next(name for name in stage.sources if not states[name].fresh)
                raise StageError(
                    f"stage {stage.name} needs {lacking}, which is not up to date: `courier run` builds it"
                )
            if state.fresh and stage.name in rebuild:
                first = state.folder.with_name(state.folder.name.partition("-")[0])
                asked = ("a rebuild was asked for",)
                state = replace(state, folder=_next_generation(first), fresh=False, reasons=asked)
            if state.fresh:
                done[stage.name] = "skipped"
                console.print(f"[dim]{stage.name:<12} skipped: up to date ({cast(Path, state.folder).name})[/dim]")
            else:
                remember(workspace)
                _build(workspace, stage, state, states, options)
                done[stage.name] = "built"
            states[stage.name] = State(folder=state.folder, fresh=True, identity=state.identity)
        remember(workspace)
        for stage in STAGES:
            if stage.name in done:
                _publish(cast(Path, states[stage.name].folder), stage.reports, workspace.folder / "reports")
    return done


def _publish(folder: Path, names: Sequence[str], reports: Path) -> None:
    """Copy an artifact's reports to `reports`, each whole or not at all."""
    for name in names:
        if (folder / name).is_file():
            reports.mkdir(exist_ok=True)
            artifact.write_whole(reports / name, (folder / name).read_bytes())


def _build(
    workspace: Workspace, stage: Stage, state: State, states: Mapping[str, State], options: Mapping[str, Any]
) -> None:
    out, identity = cast(Path, state.folder), cast(Mapping[str, Any], state.identity)
    console.print(f"[bold]{stage.name:<12}[/bold] building {out}: {'; '.join(state.reasons)}", soft_wrap=True)
    begun = time.monotonic()
    read = {name: digest for name, digest in identity["inputs"].items() if name not in stage.inputs}
    offered = {
        "raw": workspace.raw,
        "raw_digest": "/".join(read.values()),
        "workspace": workspace.folder,
        "store": workspace.folder / "image_store",
        "config": getattr(workspace.config, stage.name, None),
        "configs": {name: getattr(workspace.config, name) for name in stage.configs},
        "engine": workspace.config.engine,
        "master": workspace.config.master,
        "beam_args": workspace.beam_args,
    }
    arguments = {**_folders(stage, states), **{name: offered[name] for name in stage.options}, **options}
    first = out.with_name(out.name.partition("-")[0])
    out.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_whole(first.with_suffix(".json"), strict_json.dumps(identity, indent=1, sort_keys=True).encode())
    _call(stage.build, **arguments, out=out)
    console.print(f"[bold]{stage.name:<12}[/bold] built in {time.monotonic() - begun:.1f} s")
