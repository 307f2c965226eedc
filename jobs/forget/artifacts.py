"""Artifacts without a user or an item: what nobody needs is removed, what somebody reads gets a successor without them.

An artifact that a release names, or that Feast's sources are, gets another version beside it; then the database names
that one, in one transaction; then the old one goes. So whoever answers does so throughout, and whoever is killed
begins anew. Other versions of stages are removed whole: `courier run` makes them of the raw tables, without the rows.
What no stage can make again, as the days of a log, is replaced where it lies.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from feature_repo.contract import ITEM_KEY
from jobs.features.offline_sources import SOURCES, point_sources
from jobs.forget.reports import count_in_text, write_text_without
from jobs.forget.rows import Entity, count_held, only_of, write_without
from jobs.pipeline import NAMES
from jobs.versions import next_generation
from jobs.workspace import releases_url
from model import artifact, releases, strict_json
from model.additions import ITEMS, VECTORS
from model.additions import KIND as ADDITIONS
from model.artifact import Manifest
from model.ctr.inputs.request_log import LOG_FOLDER
from model.release_database import is_made, reading, writing
from model.released_items import FOLDER as LOOKUP
from model.released_items import IDS, holds
from model.released_items import write_without as write_lookup_without
from model.stored_features import rename_features
from model.vector_index import ITEMS_FILE, VectorIndex

# Among a manifest's notes: part, or "" for the whole -> digest before rows were deleted.
BEFORE: Final = "digests_before"
WITHOUT: Final = ".without"  # ends the name of a file that will replace another
NOT_ARTIFACTS: Final = ("image_store", "feast", "reports")


@dataclass(frozen=True, slots=True)
class Found:
    """An artifact that holds the entity, and how many rows of it do."""

    folder: Path
    rows: int


def artifact_folders(workspace: Path, raw: Path | None) -> list[Path]:
    """Every finished artifact of a workspace, and half-written ones of its stages."""
    found = set()
    for folder in workspace.iterdir():
        if folder.is_dir() and folder.name not in NOT_ARTIFACTS and folder.resolve() != raw:
            found |= {path.parent for path in folder.rglob(artifact.MANIFEST)}
            found |= {path for path in folder.iterdir() if path.is_dir() and folder.name in NAMES}
    return sorted(found)


def sweep(workspace: Path) -> None:
    """Remove what killed writers left. Only for the holder of the workspace's lock."""
    for folder in (workspace, *workspace.glob("*/"), *workspace.glob("days/states/")):
        artifact.sweep(folder)
    for folder in (workspace / "feast", workspace / "reports", workspace / LOG_FOLDER):
        for path in folder.rglob(f".*{WITHOUT}"):
            path.unlink()


def holding(folders: Collection[Path], entity: Entity) -> list[Found]:
    """Those that hold the entity."""
    counted = (Found(folder, count_in(folder, _in(folder, entity))) for folder in folders)
    return [one for one in counted if one.rows]


def _in(folder: Path, entity: Entity) -> Entity:
    """The entity with the pictures that only it has in this artifact, where it is one of images."""
    items = folder / "items.parquet"
    if entity.key != ITEM_KEY or not (folder / "shards").is_dir() or not items.is_file():
        return entity
    return replace(entity, pictures=only_of(items, "image_id", entity.ids[0]))


def count_in(folder: Path, entity: Entity) -> int:
    """How many rows, and texts, of an artifact's files hold the entity."""
    return sum(_count_in_file(path, entity) for path in _files(folder))


def _count_in_file(path: Path, entity: Entity) -> int:
    if path.parent.name == LOOKUP:
        named = path.name == IDS and entity.key == ITEM_KEY
        return sum(holds(path.parent, item_id) for item_id in entity.ids) if named else 0
    return count_held(path, entity) if path.suffix == ".parquet" else count_in_text(path, entity)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != artifact.MANIFEST)


# --- removing -------------------------------------------------------------------------------------------------------


def remove_from(workspace: Path, found: Collection[Found], entity: Entity, *, by: str) -> dict[Path, str]:
    """Take the entity out of these artifacts; of each, whether it was `removed` or `rewritten`."""
    named = _named(workspace)
    sources = (workspace / SOURCES).resolve()
    kept = [one.folder for one in found if one.folder.resolve() in {*named, sources}]
    moved = {folder: _successor(folder, entity) for folder in kept}
    if moved and is_made(releases_url(workspace)):
        _rename(workspace, moved, by)
    if sources in moved:
        point_sources(workspace, moved[sources])
    done = {}
    for folder in (one.folder for one in found):
        if folder in moved:
            done[folder] = "rewritten"
            _remove(folder)
        elif folder.parent.parent == workspace and folder.parent.name in NAMES:
            done[folder] = "removed"
            _remove(folder)
        else:
            done[folder] = "rewritten"
            write_successor(folder, folder, entity)
    return done


def _named(workspace: Path) -> set[Path]:
    if not is_made(releases_url(workspace)):
        return set()
    with reading(releases_url(workspace)) as session:
        known = releases.list_releases(session)
    return {(workspace / where["path"]).resolve() for one in known for where in one.artifacts.values()}


def _successor(folder: Path, entity: Entity) -> Path:
    out = next_generation(folder.with_name(folder.name.partition("-")[0]))
    write_successor(folder, out, entity)
    return out


def _rename(workspace: Path, moved: Mapping[Path, Path], by: str) -> None:
    digests = {artifact.digest(old): artifact.digest(new) for old, new in moved.items()}
    paths = {
        old.relative_to(workspace).as_posix(): {
            "path": new.relative_to(workspace).as_posix(),
            "digest": artifact.digest(new),
        }
        for old, new in moved.items()
    }
    with writing(releases_url(workspace)) as session:
        releases.replace_artifacts(session, paths, now=datetime.now(UTC), by=by)
        rename_features(session, digests)


def _remove(folder: Path) -> None:
    # Under a name that whoever comes after a crash sweeps: no manifest without its files.
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}{artifact.PARTIAL}")
    folder.rename(aside)
    shutil.rmtree(aside)


# --- successors -----------------------------------------------------------------------------------------------------


def write_successor(folder: Path, out: Path, entity: Entity) -> None:
    """Write an artifact without the entity to `out`, which may be `folder`: what does not hold it is the same file."""
    before = artifact.read_manifest(folder)
    theirs = _in(folder, entity)
    with artifact.write(out, kind=before.kind, inputs=before.inputs, config=before.config) as draft:
        for path in _files(folder):
            if path.parent.name == LOOKUP and entity.key == ITEM_KEY:
                continue  # written whole by _cluster
            to = draft.path / path.relative_to(folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            if not _count_in_file(path, theirs):
                os.link(path, to)
            elif path.suffix == ".parquet":
                write_without(path, to, theirs)
            else:
                write_text_without(path, to, theirs)
        special = _SPECIAL.get(before.kind) if entity.key == ITEM_KEY else None
        draft.facts = {**before.facts, **(special(folder, draft.path, entity.ids[0]) if special else {})}
        earlier = {"": artifact.identity(before), **before.parts}
        draft.parts = {part: _next(digest) for part, digest in before.parts.items()}
        draft.notes = {**before.notes, BEFORE: {**earlier}}
        draft.log_files = before.log_files


def _next(digest: str) -> str:
    return hashlib.sha256(f"{digest} without some rows".encode()).hexdigest()[: len(digest)]


def _embed(folder: Path, draft: Path, item_id: str) -> dict[str, Any]:
    """Drop the vectors that no item has any more."""
    del item_id
    items = pq.read_table(draft / "items.parquet")
    used, rows = np.unique(items["row"].to_numpy(), return_inverse=True)
    place = items.column_names.index("row")
    renumbered = items.set_column(place, items.schema.field("row"), [rows.astype(np.int32)])
    pq.write_table(renumbered, draft / "items.parquet")  # written for this draft, for it held the item
    (draft / "vectors.npy").unlink()
    np.save(draft / "vectors.npy", np.load(folder / "vectors.npy", mmap_mode="r")[used])
    return {"items": len(items), "vectors": len(used)}


def _index(folder: Path, draft: Path, item_id: str) -> dict[str, Any]:
    index = VectorIndex.load(folder)
    index.remove([item_id])
    columns = pq.read_table(draft / ITEMS_FILE, columns=["image_id"]).to_pydict()
    for name in ("index.faiss", ITEMS_FILE):
        (draft / name).unlink()
    index.save(draft, columns)
    return {"items": len(index)}


def _cluster(folder: Path, draft: Path, item_id: str) -> dict[str, Any]:
    if (folder / LOOKUP).is_dir():  # a release of before there were lookups has none
        write_lookup_without(folder / LOOKUP, draft / LOOKUP, item_id)
    return {"items": pq.read_metadata(draft / "items.parquet").num_rows}


def _additions(folder: Path, draft: Path, item_id: str) -> dict[str, Any]:
    kept = [item != item_id for item in pq.read_table(folder / ITEMS, columns=[ITEM_KEY])[ITEM_KEY].to_pylist()]
    (draft / VECTORS).unlink()
    np.save(draft / VECTORS, np.load(folder / VECTORS)[kept])
    return {"items": sum(kept)}


_SPECIAL: Final[dict[str, Callable[[Path, Path, str], dict[str, Any]]]] = {
    "embed": _embed,
    "index": _index,
    "cluster": _cluster,
    ADDITIONS: _additions,
}


def name_successors(folders: Collection[Path]) -> None:
    """Let the manifests of what was made from an artifact name its successor; an artifact's digest leaves that out."""
    manifests = {folder: artifact.read_manifest(folder) for folder in folders if (folder / artifact.MANIFEST).is_file()}
    successors = {}
    for manifest in manifests.values():
        for part, digest in manifest.notes.get(BEFORE, {}).items():
            successors[digest] = artifact.identity(manifest, part)
    for folder, manifest in manifests.items():
        inputs = {name: _last(successors, digest) for name, digest in manifest.inputs.items()}
        if inputs != manifest.inputs:
            _write_manifest(folder, replace(manifest, inputs=inputs))


def _last(successors: Mapping[str, str], digest: str) -> str:
    while digest in successors:
        digest = successors[digest]
    return digest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    text = strict_json.dumps(asdict(manifest), indent=1, sort_keys=True)
    artifact.write_whole(folder / artifact.MANIFEST, text.encode())
