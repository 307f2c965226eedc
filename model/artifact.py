"""A saved thing: a directory with a manifest, written aside and then renamed; nothing half-written is ever read.

The manifest is written last. The digest of its bytes is the artifact's identity: it covers every file, every input and
the moment of building, so a rebuilt artifact is a new one and whatever was made from the old one is stale.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1
PARTIAL = ".partial"


class ArtifactMissing(FileNotFoundError):
    """No finished artifact lies at this path."""


class ArtifactMismatch(ValueError):
    """The artifact is not what the loader expects; the message says how to rebuild it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artifact is, what it was made from, and the size and sha256 of each of its files."""

    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]  # name -> digest of that input
    facts: Mapping[str, Any]  # what the building found out: counts, metrics, identities
    files: Mapping[str, Mapping[str, Any]]  # relative path -> {"bytes", "sha256"}
    created_at: str
    format: int = FORMAT


@dataclass(slots=True)
class Draft:
    """An artifact being written: put files under `path` and findings into `facts`."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)


def write_whole(path: Path, data: bytes) -> None:
    """Write a single file so that whoever reads `path` finds the old bytes or the new, never a part."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}{PARTIAL}")
    aside.write_bytes(data)
    aside.replace(path)


def sha256_file(path: Path) -> str:
    """The hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def write(out: Path, *, kind: str, inputs: Mapping[str, str], config: Mapping[str, Any]) -> Iterator[Draft]:
    """Write an artifact aside; on a clean exit add its manifest and rename it to `out`, else leave nothing behind.

    An artifact that already lies at `out` is replaced. Raises OSError where the disk refuses.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.parent / f".{out.name}-{uuid.uuid4().hex[:8]}{PARTIAL}"
    aside.mkdir()
    draft = Draft(aside)
    try:
        yield draft
        manifest = Manifest(
            kind=kind,
            config=dict(config),
            inputs=dict(inputs),
            facts=draft.facts,
            files=_files(aside),
            created_at=datetime.now(UTC).isoformat(),
        )
        _write_synced(aside / MANIFEST, json.dumps(asdict(manifest), indent=1, sort_keys=True))
        _replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read(path: Path, *, kind: str) -> Manifest:
    """The manifest of the finished artifact at `path`.

    Raises ArtifactMissing if there is none, ArtifactMismatch if it is of another kind or format, or a file of it is
    missing or has another size than the manifest says.
    """
    try:
        manifest = Manifest(**json.loads((path / MANIFEST).read_text()))
    except FileNotFoundError:
        raise ArtifactMissing(f"no finished {kind} artifact at {path}: run the stage that builds it") from None
    except (json.JSONDecodeError, TypeError) as error:
        raise ArtifactMismatch(f"{path / MANIFEST} is not a manifest ({error}): rebuild the {kind} artifact") from None
    if (manifest.kind, manifest.format) != (kind, FORMAT):
        raise ArtifactMismatch(
            f"{path} is a {manifest.kind} artifact of format {manifest.format}, expected {kind} of {FORMAT}: rebuild it"
        )
    for name, facts in manifest.files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            raise ArtifactMismatch(f"{file} is missing or was changed after it was built: rebuild the {kind} artifact")
    return manifest


def digest(path: Path) -> str:
    """The identity of the finished artifact at `path`: the sha256 of its manifest. Raises ArtifactMissing."""
    try:
        return sha256_file(path / MANIFEST)
    except FileNotFoundError:
        raise ArtifactMissing(f"no finished artifact at {path}") from None


def sweep(folder: Path) -> int:
    """Remove what killed writers left in `folder`; returns how many. Only for the holder of the workspace's lock."""
    left = [path for path in folder.glob(f".*{PARTIAL}") if path.is_dir()] if folder.is_dir() else []
    for path in left:
        shutil.rmtree(path)
    return len(left)


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    # Hadoop's writers leave hidden checksum files; a manifest lists what a reader opens.
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in paths}


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _replace(aside: Path, out: Path) -> None:
    # A directory cannot be renamed over another: the old one steps aside first, under a name that sweep() removes.
    if out.exists():
        old = out.parent / f".{out.name}-{uuid.uuid4().hex[:8]}{PARTIAL}"
        out.rename(old)
        aside.rename(out)
        shutil.rmtree(old)
    else:
        aside.rename(out)
