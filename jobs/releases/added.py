"""What was added to releases: which additions are needed no more, are damaged, or hold items that no release has."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from filelock import FileLock
from sqlalchemy.orm import Session

from jobs.workspace import releases_url
from model import additions, artifact, releases
from model.additions import Addition
from model.artifact import ArtifactMismatch, ArtifactMissing
from model.release_database import is_made, reading, writing
from model.releases import Release
from model.vector_index import ITEMS_FILE

LOCK: Final = ".additions.lock"


@contextmanager
def adding(folder: Path) -> Iterator[None]:
    """Wait until nobody else changes what was added in this workspace. A run may be at work meanwhile."""
    with FileLock(folder / LOCK):
        yield


def indexed_items(workspace: Path, release: Release) -> set[str]:
    """The ids of the items that a release's own index holds."""
    table = pq.read_table(workspace / release.artifacts["index"]["path"] / ITEMS_FILE, columns=["item_id"])
    return set(table["item_id"].to_pylist())


def unneeded(session: Session, workspace: Path, kept: Collection[Release]) -> list[Path]:
    """Folders of additions that no kept release needs, and those of which the database knows nothing.

    Needed is what holds an item that a kept release of its space has not; as long as the space is kept, nothing that
    no run has taken up is lost. Only for the holder of `adding`, for a folder is written before it is recorded.
    """
    found = additions.list_additions(session)
    recorded = {workspace / one.path for one in found}
    unknown = [path for path in sorted((workspace / additions.KIND).glob("*/")) if path not in recorded]
    held = {one.release_id: indexed_items(workspace, one) for one in kept} if found else {}
    return [workspace / one.path for one in found if not _is_needed(workspace, one, kept, held)] + unknown


def _is_needed(workspace: Path, addition: Addition, kept: Collection[Release], held: Mapping[str, set[str]]) -> bool:
    of_its_space = [held[one.release_id] for one in kept if one.space_id == addition.space_id]
    items = _items(workspace, addition) if of_its_space else set()
    return any(not items <= of for of in of_its_space)


def _items(workspace: Path, addition: Addition) -> set[str]:
    table = pq.read_table(workspace / addition.path / additions.ITEMS, columns=["item_id"])
    return set(table["item_id"].to_pylist())


def faults(workspace: Path, session: Session, release: Release) -> list[str]:
    """What is wrong with the additions that answer with a release, a sentence each; every byte is read."""
    said = []
    for one in additions.list_additions(session, release.space_id):
        try:
            additions.check(workspace, one, release.space_id)
        except (ArtifactMissing, ArtifactMismatch) as error:
            said.append(str(error))
    return said


def record_rewritten(workspace: Path) -> None:
    """Let the database name the digests of additions that lost items; servers take them up as they do new ones."""
    if not is_made(releases_url(workspace)):
        return
    with reading(releases_url(workspace)) as session:
        known = additions.list_additions(session)
    changed = {}
    for one in known:
        manifest = artifact.read(workspace / one.path, kind=additions.KIND)
        if artifact.identity(manifest) != one.digest and manifest.notes:
            changed[one.addition_id] = (artifact.identity(manifest), int(manifest.facts["items"]))
    if changed:
        with writing(releases_url(workspace)) as session:
            additions.replace_digests(session, changed)


def since_release(workspace: Path) -> dict[str, Any] | None:
    """How many items were added that the release that answers does not hold; None where there are none."""
    if not is_made(releases_url(workspace)):
        return None
    with reading(releases_url(workspace)) as session:
        release = releases.answering(session)
        found: Sequence[Addition] = additions.list_additions(session, release.space_id) if release else []
    if release is None or not found:
        return None
    held = indexed_items(workspace, release)
    added = {item for one in found for item in _items(workspace, one)} - held
    if not added:
        return None
    said = (
        f"{len(added)} items were added since the release: put them into the raw items table before the next "
        "`courier run`, which makes a release that holds them"
    )
    return {"items": len(added), "said": said}
