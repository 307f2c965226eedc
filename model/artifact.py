"""A saved thing: a directory with a manifest, written aside and then renamed; nothing half-written is ever read.

On an object store (a UPath of s3, gs, ...) nothing can be renamed: an artifact exists once its manifest does, which is
sent last, and an older one ends with the removal of its manifest, before anything else of it is touched.

The manifest is written last. An artifact's identity is its content: the digest covers its kind, its files and its
facts, and neither the moment nor the place of building, nor what it was made from. So a rebuild that gives the same
bytes is the same artifact, and nothing that was made from it is stale. What tells how a building went, its seconds and
clocks, goes into notes and log files, which the digest leaves out. A part of an artifact may have a digest of its own,
for whoever reads no more than that.
"""

import ctypes
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar, cast

from upath import UPath

from model import strict_json
from model.errors import CourierError

AnyPath = Path | UPath  # a place on this machine, or one that a URL names
Folder = TypeVar("Folder", Path, AnyPath)

MANIFEST = "manifest.json"
FORMAT = 2
PARTIAL = ".partial"
REPLACED = ".replaced"


class ArtifactMissing(CourierError):
    """No finished artifact lies at this path."""


class ArtifactMismatch(CourierError):
    """The artifact is not what the loader expects; the message says how to rebuild it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artifact is, what it was made from, and the size and sha256 of each of its files.

    inputs: name -> digest of that input, or "name/part" -> digest of the part that was read.
    facts: what the building found out of its input: counts, metrics, identities; part of the identity.
    notes, log_files: how the building went; not part of it.
    parts: name -> digest of what that part of the artifact holds.
    """

    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    facts: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]  # relative path -> {"bytes", "sha256"}
    created_at: str
    notes: Mapping[str, Any] = field(default_factory=dict)
    log_files: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(slots=True)
class Draft(Generic[Folder]):
    """An artifact being written: put files under `path`, and what Manifest says of itself into the rest."""

    path: Folder
    facts: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    log_files: tuple[str, ...] = ()
    parts: dict[str, str] = field(default_factory=dict)


def write_whole(path: AnyPath, data: bytes) -> None:
    """Write a single file so that whoever reads `path` finds the old bytes or the new, never a part."""
    if not isinstance(path, Path):  # an object store shows an object when all of it has come
        path.fs.pipe_file(path.path, data)
        return
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}{PARTIAL}")
    aside.write_bytes(data)
    aside.replace(path)


def sha256_file(path: AnyPath) -> str:
    """The hex sha256 of a file's bytes."""
    with cast(BufferedReader, path.open("rb")) as stream:  # fsspec's files can readinto() as well, but do not say so
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def write(out: AnyPath, *, kind: str, inputs: Mapping[str, str], config: Mapping[str, Any]) -> Iterator[Draft[Path]]:
    """Write an artifact aside; on a clean exit add its manifest and let it stand at `out`, else leave nothing behind.

    The draft is a folder of this machine. An artifact that already lies at `out` is replaced.
    Raises OSError where the disk or the store refuses.
    """
    with _renamed(out) if isinstance(out, Path) else _sent(out) as aside:
        draft = Draft(aside)
        yield draft
        _finish(draft, kind, inputs, config)


@contextmanager
def write_together(
    out: AnyPath, *, kind: str, inputs: Mapping[str, str], config: Mapping[str, Any]
) -> Iterator[Draft[AnyPath]]:
    """As `write`, for a draft that many machines put files into: all of them can see it if they can see `out`.

    On an object store the draft is `out` itself, so the artifact that lies there ends at once. One writer at a time.
    """
    with _renamed(out) if isinstance(out, Path) else _in_place(out) as folder:
        draft = Draft[AnyPath](folder)
        yield draft
        _finish(draft, kind, inputs, config)


def _finish(draft: Draft[Any], kind: str, inputs: Mapping[str, str], config: Mapping[str, Any]) -> None:
    manifest = Manifest(
        kind=kind,
        config=dict(config),
        inputs=dict(inputs),
        facts=draft.facts,
        files=_files(draft.path),
        created_at=datetime.now(UTC).isoformat(),
        notes=draft.notes,
        log_files=draft.log_files,
        parts=draft.parts,
    )
    _write_synced(draft.path / MANIFEST, strict_json.dumps(asdict(manifest), indent=1, sort_keys=True))


@contextmanager
def _renamed(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes it on a clean exit."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.parent / f".{out.name}-{uuid.uuid4().hex[:8]}{PARTIAL}"
    aside.mkdir()
    try:
        yield aside
        _replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _sent(out: UPath) -> Iterator[Path]:
    """A folder of this machine that is sent to `out` on a clean exit, its manifest last."""
    with TemporaryDirectory() as scratch:
        aside = Path(scratch)
        yield aside
        _remove(out)
        for name in sorted(_sizes(aside), key=lambda name: (name == MANIFEST, name)):
            out.fs.put_file(str(aside / name), (out / name).path)


@contextmanager
def _in_place(out: UPath) -> Iterator[UPath]:
    """`out`, empty; and empty again where the writer fails."""
    _remove(out)
    try:
        yield out
    except BaseException:
        with suppress(Exception):  # what made the writer fail is what its user must read
            _remove(out)
        raise


def _remove(folder: UPath) -> None:
    """Remove all that lies in a folder of an object store, the manifest first."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.is_dir():
        for path in list(folder.iterdir()):
            path.fs.rm(path.path, recursive=True)


def read(path: AnyPath, *, kind: str) -> Manifest:
    """The manifest of the finished artifact at `path`.

    Raises ArtifactMissing if there is none, ArtifactMismatch if it is of another kind or format, or a file of it is
    missing or has another size than the manifest says.
    """
    manifest = read_manifest(path, kind)
    if (manifest.kind, manifest.format) != (kind, FORMAT):
        raise ArtifactMismatch(
            f"{path} is a {manifest.kind} artifact of format {manifest.format}, expected {kind} of {FORMAT}: rebuild it"
        )
    sizes = _sizes(path)
    for name, facts in manifest.files.items():
        if sizes.get(name) != facts["bytes"]:
            raise ArtifactMismatch(
                f"{path / name} is missing or was changed after it was built: rebuild the {kind} artifact"
            )
    return manifest


def verify(path: AnyPath, *, kind: str) -> Manifest:
    """The manifest of an artifact every byte of which was read and is what the manifest says.

    Raises as `read`, and ArtifactMismatch for a file of the right size whose bytes are others.
    """
    manifest = read(path, kind=kind)
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: sha256_file(path / name), manifest.files)
        for (name, facts), sha256 in zip(manifest.files.items(), found, strict=True):
            if sha256 != facts["sha256"]:
                raise ArtifactMismatch(
                    f"{path / name} has other bytes than when it was built: rebuild the {kind} artifact"
                )
    return manifest


def copy(source: AnyPath, out: AnyPath, *, kind: str) -> Manifest:
    """Copy a finished artifact to another place, a folder or a store; it stands there whole or not at all.

    What lies at `out` is replaced. Raises as `read` for the source, and ArtifactMismatch where what arrives at a folder
    has other bytes than the manifest says.
    """
    manifest = read(source, kind=kind)
    with _renamed(out) if isinstance(out, Path) else _in_place(out) as aside:
        for name in (*manifest.files, MANIFEST):  # the manifest last: in a store the artifact exists once it does
            _copy_file(source / name, aside / name)
            if (
                isinstance(aside, Path)
                and name != MANIFEST
                and sha256_file(aside / name) != manifest.files[name]["sha256"]
            ):
                raise ArtifactMismatch(
                    f"{source / name} has other bytes than its manifest says: send the artifact again"
                )
    return manifest


def _copy_file(source: AnyPath, out: AnyPath) -> None:
    if isinstance(out, Path):
        out.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Path):
        shutil.copyfile(source, out) if isinstance(out, Path) else out.fs.put_file(str(source), out.path)
    elif isinstance(out, Path):
        source.fs.get_file(source.path, str(out))
    else:
        out.fs.pipe_file(out.path, source.read_bytes())


def read_manifest(path: AnyPath, kind: str = "") -> Manifest:
    """The manifest of an artifact whose files are not looked at. Raises ArtifactMissing, ArtifactMismatch.

    kind: what is looked for, as the messages call it.
    """
    what = f"{kind} artifact" if kind else "artifact"
    try:
        return Manifest(**json.loads((path / MANIFEST).read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactMissing(f"no finished {what} at {path}: run the stage that builds it") from None
    except (json.JSONDecodeError, TypeError) as error:
        raise ArtifactMismatch(f"{path / MANIFEST} is not a manifest ({error}): rebuild the {what}") from None


def digest(path: AnyPath, part: str = "") -> str:
    """The identity of the finished artifact at `path`, or of a part of it: 64 hex digits.

    Raises ArtifactMissing, and ArtifactMismatch where its manifest is damaged.
    """
    return identity(read_manifest(path), part)


def digests(inputs: Mapping[str, AnyPath]) -> dict[str, str]:
    """The digest of each input of a stage. inputs: "name", or "name/part" for a part of it, -> where its artifact lies.

    Raises ArtifactMissing, ArtifactMismatch.
    """
    return {name: digest(path, name.partition("/")[2]) for name, path in inputs.items()}


def identity(manifest: Manifest, part: str = "") -> str:
    """The digest of what a manifest says that its artifact holds; of a part that it does not name, of the whole."""
    if part in manifest.parts:
        return manifest.parts[part]
    files = {name: facts["sha256"] for name, facts in manifest.files.items() if name not in manifest.log_files}
    content = {"kind": manifest.kind, "format": manifest.format, "files": files, "facts": manifest.facts}
    return hashlib.sha256(strict_json.dumps(content, sort_keys=True, default=dict).encode()).hexdigest()


def sweep(folder: AnyPath) -> int:
    """Remove what killed writers left in `folder`; returns how many. Only for the holder of the workspace's lock.

    An artifact that was stepping aside for a new one when its writer was killed is put back. What they left where an
    artifact shall lie on an object store is no artifact, and goes when that one is written.
    """
    if isinstance(folder, Path) and folder.is_dir():
        _put_back(folder)
    left: list[AnyPath] = [*folder.glob(f".*{PARTIAL}")] if folder.is_dir() else []
    for path in left:
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink()
    return len(left)


@contextmanager
def scratch(folder: AnyPath) -> Iterator[AnyPath]:
    """A new hidden folder in `folder`, for whoever can write there, on any machine; gone when the block ends."""
    aside = folder / f".{uuid.uuid4().hex[:8]}{PARTIAL}"
    if isinstance(aside, Path):
        aside.mkdir(parents=True)
    try:
        yield aside
    finally:
        if aside.is_dir():
            remove_folder(aside)


def move_folder(folder: AnyPath, to: AnyPath) -> None:
    """Put a folder elsewhere in the same file system; a store must copy what lies in it, which it does by itself."""
    if isinstance(folder, Path):
        folder.rename(str(to))
        return
    for name in _sizes(folder):
        folder.fs.cp_file((folder / name).path, (cast(UPath, to) / name).path)
    remove_folder(folder)


def remove_folder(folder: AnyPath) -> None:
    """Remove a folder and all that lies in it."""
    if isinstance(folder, Path):
        shutil.rmtree(folder)
    else:
        _remove(folder)
        if folder.is_dir():  # which in a store without folders it no longer is
            folder.rmdir()


def _files(folder: AnyPath) -> dict[str, dict[str, Any]]:
    # Hadoop's writers leave hidden checksum files; a manifest lists what a reader opens.
    sizes = {name: size for name, size in sorted(_sizes(folder).items()) if not name.rpartition("/")[2].startswith(".")}
    with ThreadPoolExecutor() as pool:  # a store is slow to answer, and hashing works outside Python's lock
        digests = pool.map(lambda name: sha256_file(folder / name), sizes)
        return {name: {"bytes": sizes[name], "sha256": sha256} for name, sha256 in zip(sizes, digests, strict=True)}


def _sizes(folder: AnyPath) -> dict[str, int]:
    """Relative path -> bytes, of every file in a folder."""
    if isinstance(folder, Path):
        return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    found = folder.fs.find(folder.path, detail=True)  # one request for a thousand files
    start = len(folder.path.rstrip("/")) + 1
    return {name[start:]: one["size"] for name, one in found.items() if one["type"] == "file"}


def _write_synced(path: AnyPath, text: str) -> None:
    if not isinstance(path, Path):
        write_whole(path, text.encode())
        return
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _replace(aside: Path, out: Path) -> None:
    """Let `aside` stand at `out`. A crash at any moment leaves the old artifact or the new, at `out` or for `sweep`."""
    if not out.exists():
        aside.rename(out)
    elif not _exchange(aside, out):
        # Where folders cannot change places in one step, the old one steps aside under a name that says whose it is:
        # after a crash between the two renames, sweep() puts it back.
        old = out.parent / f".{out.name}-{uuid.uuid4().hex[:8]}{REPLACED}"
        out.rename(old)
        aside.rename(out)
        shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where this system or its file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux, glibc 2.28; not on NFS
    if rename is None:
        return False
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <linux/fs.h>
    return bool(rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0)


def _put_back(folder: Path) -> None:
    """Rename what a replacing that crashed halfway left aside to where it stood, unless something stands there."""
    for old in folder.glob(f".*{REPLACED}"):
        out = folder / old.name[1 : -len(REPLACED)].rpartition("-")[0]
        if out.exists():
            shutil.rmtree(old)
        else:
            old.rename(out)
