"""Run the stages in their order, each an artifact, skipped while the content of what it was made from stands.

A stage's key is the hash of its config, its revision and its inputs' digests, which are of their content: no clock,
path or touch counts. Its artifact lies at WORKSPACE/<stage>/<key>, a forced rebuild of it at <key>-1 and so on, and
what went into the key is written down in <key>.json beside it. So a stage is fresh exactly if such a folder is whole,
old versions stay readable for the releases that name them, and a run that was killed goes on where it was.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from rich.console import Console

from jobs.raw.identity import KnownDigests
from jobs.stages import RELEASED, STAGES, Stage
from jobs.versions import damage, differences, flat, generations, key_of, next_generation, stage_key
from jobs.workspace import StageError, Workspace, locked, remember
from model import artifact, strict_json

if TYPE_CHECKING:
    from model.releases import Release

console = Console(stderr=True)

NAMES: Final = tuple(stage.name for stage in STAGES)
KNOWN_DIGESTS: Final = "raw_digests.db"  # in the workspace: what the raw files' bytes came to when they were last read


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How a stage stands.

    folder: where its artifact lies or will lie; None while an input is not up to date.  reasons: why it is not fresh;
    of a pinned one, what changed since.  identity: what its key is made of; None while an input is not up to date, and
    of a pinned one.  pinned: the release as which it stands.
    """

    folder: Path | None
    fresh: bool
    identity: Mapping[str, Any] | None = None
    reasons: tuple[str, ...] = ()
    pinned: str | None = None


def require_stage(name: str) -> None:
    """Raises StageError for a name that no stage has."""
    if name not in NAMES:
        raise StageError(f"no stage '{name}': the stages are {', '.join(NAMES)}")


def stage_states(workspace: Workspace, only: str | None = None) -> dict[str, State]:
    """How every stage stands, in their order.  only: this stage and those it is made of; nothing else is read."""
    release = _call(RELEASED, workspace.folder)
    found: dict[str, State] = {}
    for stage in _stages_of(only):
        found[stage.name] = _state(workspace, stage, found, release)
    return found


def _stages_of(only: str | None) -> list[Stage]:
    """The stages that `only` is made of and itself, in their order; all where it is None."""
    wanted = {only}
    for stage in reversed(STAGES):
        wanted.update(stage.sources if stage.name in wanted else ())
    return [stage for stage in STAGES if only is None or stage.name in wanted]


def _state(
    workspace: Workspace,
    stage: Stage,
    before: Mapping[str, State],
    release: "Release | None",
    anew: frozenset[str] = frozenset(),
) -> State:
    pinned = None if stage.name in anew else _pinned_state(workspace, stage, before, release)
    if pinned is not None:
        return pinned
    stale = [name for name in dict.fromkeys(stage.sources) if not before[name].fresh]
    if stale:
        return State(folder=None, fresh=False, reasons=tuple(f"its input {name} is not up to date" for name in stale))
    identity = _identity(workspace, stage, before, release)
    first = _begun_at(workspace, stage, release, identity) or workspace.folder / stage.name / stage_key(identity)
    there = {folder: damage(folder, stage.name) for folder in generations(first) if folder.exists()}
    whole = next((folder for folder in reversed(there) if there[folder] is None), None)
    if whole is None:
        faults = [said for said in there.values() if said]
        reasons = tuple(faults or _changes(workspace, stage, identity))
        return State(folder=next_generation(first), fresh=False, identity=identity, reasons=reasons)
    if stage.stands and not _call(stage.stands, workspace.folder, whole, _folders(stage, before)):
        reasons = ("what it did outside its artifact no longer stands",)
        return State(folder=next_generation(first), fresh=False, identity=identity, reasons=reasons)
    return State(folder=whole, fresh=True, identity=identity)


def _identity(
    workspace: Workspace, stage: Stage, before: Mapping[str, State], release: "Release | None"
) -> dict[str, Any]:
    named = {name: cast(Path, before[name.partition("/")[0]].folder) for name in stage.inputs}
    return {
        "stage": stage.name,
        "revision": stage.revision,
        "config": _config(workspace, stage),
        "inputs": artifact.digests(named) | _digests_in(workspace, release, stage) | _read(workspace, stage),
    }


def _config(workspace: Workspace, stage: Stage) -> dict[str, Any]:
    others = {name: workspace.plain_config(name) for name in stage.configs}
    return {**workspace.plain_config(stage.name), **others}


def _digests_in(workspace: Workspace, release: "Release | None", stage: Stage) -> dict[str, str]:
    """The digests of what a stage reads of the current release, by a name for sentences."""
    if release is None or not release.artifacts.keys() >= {*stage.released}:
        return {}
    if stage.released_if and not workspace.plain_config(stage.name)[stage.released_if]:
        return {}
    return {_in_release(name): release.artifacts[name]["digest"] for name in stage.released}


def _begun_at(
    workspace: Workspace, stage: Stage, release: "Release | None", identity: Mapping[str, Any]
) -> Path | None:
    """The first version of what the release has of a stage that begins there, where all else it is made of stands."""
    if release is None or not stage.released_if or not _digests_in(workspace, release, stage):
        return None
    folder = workspace.folder / release.artifacts[stage.name]["path"]
    last = key_of(folder)
    if last is None or _apart(stage, last) != _apart(stage, identity):
        return None
    return folder.with_name(folder.name.partition("-")[0])


def _apart(stage: Stage, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a key is made of, apart from the current release."""
    names = {*map(_in_release, stage.released)}
    return {**identity, "inputs": {name: one for name, one in identity["inputs"].items() if name not in names}}


def _in_release(name: str) -> str:
    return f"the current release's {name}"


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


# --- what the current release pins ----------------------------------------------------------------------------------


def _pinned_state(
    workspace: Workspace, stage: Stage, before: Mapping[str, State], release: "Release | None"
) -> State | None:
    """How a stage stands that the current release pins; None where it does not, or no longer."""
    if stage.pinned is None or release is None or not _is_whole(workspace, release, stage.name):
        return None
    if not all(_is_released(before[one.name], release, one.name) for one in _stages_of(stage.name)[:-1] if one.pinned):
        return None
    folder = workspace.folder / release.artifacts[stage.name]["path"]
    last = key_of(folder)
    if last and _asked_otherwise(workspace, stage, last["config"]):
        return None
    ready = {name: cast(Path, before[name].folder) for name in stage.sources if before[name].fresh}
    refusal = _call(stage.pinned, folder, ready)
    if refusal:
        cure = f"`courier run {stage.asked_by}` makes another"
        reasons = (f"{stage.name} is pinned to {release.release_id}, but {refusal}: {cure}",)
        return State(folder=None, fresh=False, reasons=reasons)
    since: list[str] = []
    if last and len(ready) == len(stage.sources):
        since = differences(stage.name, _apart(stage, last), _identity(workspace, stage, before, None))
    return State(folder=folder, fresh=True, reasons=tuple(since), pinned=release.release_id)


def _is_whole(workspace: Workspace, release: "Release", name: str) -> bool:
    """Whether the release's artifact of a stage is there, undamaged."""
    if name not in release.artifacts:
        return False
    folder = workspace.folder / release.artifacts[name]["path"]
    return damage(folder, name) is None and artifact.digest(folder) == release.artifacts[name]["digest"]


def _is_released(state: State, release: "Release", name: str) -> bool:
    """Whether a stage stands at what the release has of it: pinned, or built to the same bytes."""
    if not state.fresh or name not in release.artifacts:
        return False
    return artifact.digest(cast(Path, state.folder)) == release.artifacts[name]["digest"]


def _asked_otherwise(workspace: Workspace, stage: Stage, config: Mapping[str, Any]) -> bool:
    """Whether the stage's settings are others than `config`; one that it lacks is, where somebody has set it."""
    was, now = flat(config), flat(_config(workspace, stage))
    origins = workspace.settings.origins
    new = {
        name
        for name in now.keys() - was.keys()
        if not origins.get(f"{stage.name}.{name}", "preset").startswith("preset")
    }
    return bool(new) or any(was[name] != now[name] for name in was.keys() & now.keys())


def asked_by(option: str) -> set[str]:
    """The pinned stages that this option of `courier run` asks to be made anew."""
    return {stage.name for stage in STAGES if stage.asked_by == option}


def age_in_days(state: State, now: datetime) -> int:
    """How many whole days ago the artifact of a fresh stage was built."""
    built = artifact.read_manifest(cast(Path, state.folder)).created_at
    return (now - datetime.fromisoformat(built)).days


def old_encoder(workspace: Workspace, states: Mapping[str, State], now: datetime) -> str | None:
    """One sentence on the first pinned stage that is older than the workspace's `encoder_days`; None without one."""
    for stage in STAGES:
        state = states.get(stage.name)
        if state is not None and state.pinned and age_in_days(state, now) > workspace.config.encoder_days:
            age = f"{stage.name} is as in {state.pinned} and {age_in_days(state, now)} days old"
            return f"{age}: `courier run {stage.asked_by}` makes another from the data there is now"
    return None


# --- why a stage is stale -------------------------------------------------------------------------------------------


def _changes(workspace: Workspace, stage: Stage, identity: Mapping[str, Any]) -> list[str]:
    """What differs from the newest artifact of this stage."""
    known = []
    for file in (workspace.folder / stage.name).glob("*.json"):
        versions = [folder for folder in generations(file.with_suffix("")) if (folder / artifact.MANIFEST).is_file()]
        known += [(artifact.read_manifest(folder).created_at, file) for folder in versions]
    if not known:
        return ["it was never built"]
    last = json.loads(max(known)[1].read_text("utf-8"))
    return differences(stage.name, last, identity) or ["its artifact is gone"]


def explain(workspace: Workspace, name: str) -> list[str]:
    """Why a stage is not fresh, and why each stage before it that it waits for is not: a sentence each."""
    states = stage_states(workspace)
    if states[name].pinned:
        since = "; ".join(states[name].reasons) or "nothing it is made from has changed"
        asked = f"`courier run {_stage(name).asked_by}` makes another"
        return [f"{name} stands as in the current release {states[name].pinned}; since then: {since}; {asked}"]
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


# --- running --------------------------------------------------------------------------------------------------------


def run_stages(
    workspace: Workspace,
    *,
    rebuild: frozenset[str] = frozenset(),
    anew: frozenset[str] = frozenset(),
    only: str | None = None,
    folders: dict[str, Path] | None = None,
    **options: Any,
) -> dict[str, str]:
    """Bring every stage up to date; returns what was done: stage -> "built", "skipped" or "pinned".

    rebuild: stages to build although they are fresh, but for pinned ones.  anew: stages that the current release pins
    and that shall be of the data there is now.  only: build this stage and no other; its inputs must be fresh.
    folders: filled with where the artifact of each of these stages lies.
    options: handed to every stage that is built, so for use with `only`.
    Raises StageError where `only` lacks a fresh input, a pinned artifact cannot be used with the data, or another run
    holds the workspace.
    """
    workspace.folder.mkdir(parents=True, exist_ok=True)
    with locked(workspace.folder):
        done: dict[str, str] = {}
        states: dict[str, State] = {}
        release = _call(RELEASED, workspace.folder)
        for stage in _stages_of(only):
            artifact.sweep(workspace.folder / stage.name)
            states[stage.name] = state = _state(workspace, stage, states, release, anew)
            if only not in (None, stage.name):
                continue
            if state.folder is None:
                raise StageError(_why_not_at_all(stage, state, states))
            if state.fresh and stage.name in rebuild and not state.pinned:
                first = state.folder.with_name(state.folder.name.partition("-")[0])
                asked = ("a rebuild was asked for",)
                state = replace(state, folder=next_generation(first), fresh=False, reasons=asked)
            if state.fresh:
                done[stage.name] = "pinned" if state.pinned else "skipped"
                console.print(f"[dim]{stage.name:<12} {_why_not_built(state)}[/dim]", soft_wrap=True)
            else:
                remember(workspace)
                _build(workspace, stage, state, states, options | _folders_in(workspace, release, stage))
                done[stage.name] = "built"
            states[stage.name] = replace(state, fresh=True)
        remember(workspace)
        if old := old_encoder(workspace, states, datetime.now(UTC)):
            console.print(f"[yellow]{old}[/yellow]", soft_wrap=True)
        for stage in STAGES:
            if stage.name in done:
                _publish(cast(Path, states[stage.name].folder), stage.reports, workspace.folder / "reports")
    if folders is not None:
        folders |= {name: cast(Path, states[name].folder) for name in done}
    return done


def _why_not_at_all(stage: Stage, state: State, before: Mapping[str, State]) -> str:
    """Why a stage can neither stand nor be built, a sentence with the cure."""
    lacking = next((name for name in stage.sources if not before[name].fresh), None)
    if lacking is None:
        return state.reasons[0]
    return f"stage {stage.name} needs {lacking}, which is not up to date: `courier run` builds it"


def _why_not_built(state: State) -> str:
    if state.pinned is None:
        return f"skipped: up to date ({cast(Path, state.folder).name})"
    since = f"; since then {'; '.join(state.reasons)}" if state.reasons else ""
    return f"pinned: as in {state.pinned}, {age_in_days(state, datetime.now(UTC))} days old{since}"


def _folders_in(workspace: Workspace, release: "Release | None", stage: Stage) -> dict[str, Any]:
    """The option `released` of a stage that has it: where lies what it reads of the current release."""
    if release is None or not _digests_in(workspace, release, stage):
        return {}
    return {"released": {name: workspace.folder / release.artifacts[name]["path"] for name in stage.released}}


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
    made = {*stage.inputs, *map(_in_release, stage.released)}
    read = {name: digest for name, digest in identity["inputs"].items() if name not in made}
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
