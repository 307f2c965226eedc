"""`courier gc`: retire releases that nobody goes back to, and remove the artifacts that no kept release is made of."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from jobs.features.offline_sources import SOURCES
from jobs.options import AsJson, By, Folder, call
from jobs.pipeline import stage_states
from jobs.releases.added import adding, unneeded
from jobs.releases.commands import opened
from jobs.stages import STAGES
from jobs.workspace import locked, open_workspace, releases_url
from model import additions, artifact, releases, strict_json
from model.artifact import Manifest
from model.release_database import reading, writing

# KEY, KEY-1: what jobs.pipeline names, and nothing else is touched
VERSION: Final = re.compile(r"([0-9a-f]{12})(-\d+)?")
TRAINED: Final = "pretrain"  # its baselines lie beside the encoders of releases, and are no garbage


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a stage's artifact, or an addition, on disk; manifest is None where half written or removed."""

    stage: str
    folder: Path
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Garbage:
    """What may go: ids of releases to retire, and versions by stage."""

    releases: tuple[str, ...]
    versions: tuple[Version, ...]

    def bytes_by_stage(self) -> dict[str, int]:
        """How many bytes each stage's versions take on disk."""
        found = {version.stage: 0 for version in self.versions}
        for version in self.versions:
            files = (path for path in version.folder.rglob("*") if path.is_file() and not path.is_symlink())
            found[version.stage] += sum(path.stat().st_size for path in files)
        return found


def find(workspace: Path, fresh: Set[Path], *, keep: int) -> Garbage:
    """What no kept release is made of. fresh: the folders that `courier run` considers up to date.

    Kept are the current release, the one before it, the `keep` newest that are not retired, and what is fresh; of every
    stage its newest version; and what any of them was made from, however far back.
    An addition is kept while a kept release of its space lacks one of its items.
    An encoder that no release ever had, as a baseline, is kept.
    """
    with reading(releases_url(workspace)) as session:
        known = releases.list_releases(session)
        needed = {releases.current_id(session), releases.previous_id(session)}
        needed |= {one.release_id for one in [one for one in known if one.retired_at is None][:keep]}
        needed |= {artifact.read_manifest(path).facts["release_id"] for path in fresh if path.parent.name == "release"}
        added = unneeded(session, workspace, [one for one in known if one.release_id in needed])
    versions = [version for stage in STAGES for version in _versions(workspace, stage.name)]
    named = {workspace / where["path"] for one in known if one.release_id in needed for where in one.artifacts.values()}
    served = (workspace / SOURCES).resolve()  # what Feast's sources lead to
    roots = named | set(fresh) | {served} | set(_newest(versions))
    roots |= {version.folder for version in versions if _is_release_of(version, needed)}
    roots |= set(_baselines(versions, known))
    kept = _with_what_they_are_made_from(roots, versions)
    return Garbage(
        releases=tuple(one.release_id for one in known if one.retired_at is None and one.release_id not in needed),
        versions=(
            *(version for version in versions if version.folder not in kept),
            *(Version(additions.KIND, folder, None) for folder in added),
        ),
    )


def _versions(folder: Path, stage: str) -> Iterator[Version]:
    for path in sorted((folder / stage).glob("*")):
        if path.is_dir() and VERSION.fullmatch(path.name):
            try:
                yield Version(stage, path, artifact.read_manifest(path, stage))
            except (artifact.ArtifactMissing, artifact.ArtifactMismatch):
                yield Version(stage, path, None)


def _newest(versions: Iterable[Version]) -> Iterator[Path]:
    finished = [(version.manifest.created_at, version) for version in versions if version.manifest]
    newest = {version.stage: version.folder for _, version in sorted(finished, key=lambda pair: pair[0])}
    yield from newest.values()


def _is_release_of(version: Version, needed: set[str | None]) -> bool:
    return version.manifest is not None and version.manifest.facts.get("release_id") in needed - {None}


def _baselines(versions: Iterable[Version], known: Iterable[releases.Release]) -> Iterator[Path]:
    released = {one.artifacts[TRAINED]["digest"] for one in known if TRAINED in one.artifacts}
    for version in versions:
        if version.stage == TRAINED and version.manifest and artifact.identity(version.manifest) not in released:
            yield version.folder


def _with_what_they_are_made_from(roots: set[Path], versions: Sequence[Version]) -> set[Path]:
    """The folders, and those of their inputs, found by digest, and of theirs; one of several with the same content."""
    of = {version.folder: version for version in versions}
    kept, left = set(roots), sorted(roots)
    while left:
        version = of.get(left.pop())
        for name, digest in (version.manifest.inputs if version and version.manifest else {}).items():
            stage, _, part = name.partition("/")
            found = [other for other in versions if _holds(other, stage, part, digest)]
            if found and not any(other.folder in kept for other in found):
                chosen = max(found, key=lambda other: other.manifest.created_at if other.manifest else "")
                kept.add(chosen.folder)
                left.append(chosen.folder)
    return kept


def _holds(version: Version, stage: str, part: str, digest: str) -> bool:
    if version.stage != stage or version.manifest is None:
        return False
    return artifact.identity(version.manifest, part) == digest


def remove(workspace: Path, garbage: Garbage, *, now: datetime, by: str) -> None:
    """Retire the releases, then remove the versions; killed anywhere and run again, it ends the same.

    A version loses its manifest first: what is half removed is no artifact.
    """
    with writing(releases_url(workspace)) as session:
        additions.remove(
            session, [version.folder.name for version in garbage.versions if version.stage == additions.KIND]
        )
        for release_id in garbage.releases:
            releases.retire(session, release_id, now=now, by=by, why="courier gc")
    for version in garbage.versions:
        (version.folder / artifact.MANIFEST).unlink(missing_ok=True)
        artifact.remove_folder(version.folder)
        key = version.folder.name.partition("-")[0]
        if not any(version.folder.parent.glob(f"{key}*/")):
            version.folder.with_name(f"{key}.json").unlink(missing_ok=True)


def collect(
    workspace: Folder = Path("workspace"),
    keep: Annotated[int, typer.Option(min=1, help="how many of the newest releases stay")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Retire all but the newest releases and remove what no kept one is made of; never the current or the one before.

    Rows of the online store stay.
    """
    with opened(workspace):  # refuses a workspace that has no release
        pass
    asked = open_workspace(workspace)
    with locked(asked.folder), adding(asked.folder):
        fresh = {state.folder for state in stage_states(asked).values() if state.fresh and state.folder}
        garbage = find(asked.folder, fresh, keep=keep)
        freed = garbage.bytes_by_stage()
        if not dry_run:
            remove(asked.folder, garbage, now=datetime.now(UTC), by=by or releases.user_name())
    _tell(garbage, freed, dry_run=dry_run, as_json=as_json)


def _tell(garbage: Garbage, freed: Mapping[str, int], *, dry_run: bool, as_json: bool) -> None:
    answer: dict[str, Any] = {"dry_run": dry_run, "retired": list(garbage.releases), "freed_bytes": dict(freed)}
    if as_json:
        print(strict_json.dumps(answer | {"freed_bytes_in_all": sum(freed.values())}, indent=1))
        return
    table = Table("stage", "versions", "bytes", title="would be removed" if dry_run else "removed")
    for stage, size in freed.items():
        table.add_row(stage, str(sum(version.stage == stage for version in garbage.versions)), f"{size:,}")
    Console().print(table)
    print(f"{sum(freed.values()):,} bytes; releases retired: {', '.join(garbage.releases) or 'none'}")


def main(argv: Sequence[str]) -> None:
    """`courier gc`."""
    call(collect, "courier gc", argv)
