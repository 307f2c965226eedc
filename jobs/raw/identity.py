"""The identity of raw data: what its bytes are, whatever their names' times, and by whichever path they are reached.

A file of this machine is identified by the BLAKE3 of its bytes, and what was hashed is remembered under the file's
size, times and inode, so that an unchanged file is not read again. An object in a store is identified by its ETag or
whatever else the store says of its version: nothing is downloaded to compare it.
"""

import errno
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from blake3 import blake3
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.raw.folder import (
    SOURCE,
    TRUTH,
    RawTableMissing,
    TableFiles,
    file_version,
    object_versions,
    require_folder,
    source,
    table_files,
    tables_of,
)
from jobs.raw.forgotten import FORGOTTEN_FILE
from model import strict_json
from model.artifact import AnyPath

WATCHED_FROM: Final = 1_000_000_000  # bytes to hash from which a person wants to see a progress bar
# A file whose times are younger may be written again within the same tick of the file system's clock.
SETTLED_NS: Final = 2_000_000_000

Hasher = Callable[[Iterable[Path]], Mapping[Path, str]]


class KnownDigests:
    """The digests of files of this machine, remembered in a SQLite file beside what is made from them."""

    def __init__(self, database: Path) -> None:
        """database: made when the first digest is remembered."""
        self._database = database

    def __call__(self, files: Iterable[Path]) -> dict[Path, str]:
        """Each file's digest, in hex; only files that are new or changed are read."""
        facts = {file: _facts(file) for file in files}
        with closing(self._connect()) as db, db:
            known = {
                path: digest
                for path, digest in ((path, self._recall(db, path, said)) for path, said in facts.items())
                if digest is not None
            }
            read = hash_files(path for path in facts if path not in known)
            settled = time.time_ns() - SETTLED_NS
            rows = [(str(path), *facts[path], digest) for path, digest in read.items() if facts[path][1] < settled]
            db.executemany("insert or replace into digest values (?, ?, ?, ?, ?, ?)", rows)
        return known | read

    def _connect(self) -> sqlite3.Connection:
        self._database.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._database)
        columns = "path text primary key, size int, modified int, changed int, inode int, digest text"
        db.execute(f"create table if not exists digest ({columns}) without rowid")
        return db

    def _recall(self, db: sqlite3.Connection, path: Path, facts: tuple[int, ...]) -> str | None:
        found = db.execute("select size, modified, changed, inode, digest from digest where path = ?", (str(path),))
        row = found.fetchone()
        return row[-1] if row is not None and tuple(row[:-1]) == facts else None


def hash_files(files: Iterable[Path]) -> dict[Path, str]:
    """The BLAKE3 of each file's bytes, in hex, read anew."""
    wanted = list(files)
    total = sum(path.stat().st_size for path in wanted)
    columns = (TextColumn("reading raw files"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=total < WATCHED_FROM) as progress:
        task = progress.add_task("", total=total)
        digests = {}
        for path in wanted:
            try:
                digests[path] = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
            except PermissionError:  # which blake3 raises without a name
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from None
            progress.advance(task, path.stat().st_size)
    return digests


def file_digests(files: Iterable[AnyPath], hasher: Hasher = hash_files) -> dict[AnyPath, str]:
    """What changes of each file exactly when its bytes do."""
    listed = list(files)
    near = hasher(file for file in listed if isinstance(file, Path))
    return {file: near[file] if isinstance(file, Path) else file_version(file) for file in listed}


def tables_inputs(workspace: Path, raw: AnyPath, hasher: Hasher = hash_files) -> dict[str, str]:
    """What ingesting reads: the files of the tables that there are, whether negatives were sampled, who is forgotten.

    Raises RawTableMissing where there is none, RawTableUnusable.
    """
    found = {name: table_digest(raw, name, hasher) for name in tables_of(raw)}
    forgotten = workspace / FORGOTTEN_FILE
    found |= {"forgotten": hash_files([forgotten])[forgotten]} if forgotten.is_file() else {}
    return found | {"sampled_negatives": str(bool(source(raw).get("sampled_negatives", False)))}


def table_digest(raw: AnyPath, name: str, hasher: Hasher = hash_files) -> str:
    """What changes exactly when the bytes of one of the table's files do."""
    files = _names(raw, table_files(raw, name))
    return _digest(_identities(raw, hasher, files.__contains__))


def images_inputs(_: Path, raw: AnyPath, hasher: Hasher = hash_files) -> dict[str, str]:
    """What the images stage is made from beside the items: all files that their references may name.

    Those are all files of the raw folder but the tables, SOURCE.json and the truth. The workspace's folder counts for
    nothing. Raises RawTableMissing, RawTableUnusable.
    """
    tables = {table_files(raw, "items").path.name, _events_name(raw)}

    def may_be_named(name: str) -> bool:
        return name.partition("/")[0] not in tables and not _is_about(name)

    return {"image_files": _digest(_identities(raw, hasher, may_be_named))}


def images_digest(raw: AnyPath) -> str:
    """As images_inputs, in one digest, all files read anew."""
    return "/".join(images_inputs(Path(), raw).values())


def evaluation_inputs(_: Path, raw: AnyPath, hasher: Hasher = hash_files) -> dict[str, str]:
    """What the evaluator reads besides artifacts: SOURCE.json, and the truth of a generated shop."""
    require_folder(raw)
    return {"source_and_truth": _digest(_identities(raw, hasher, _is_about))}


def _is_about(name: str) -> bool:
    return name == SOURCE or ("/" not in name and fnmatchcase(name, TRUTH))


def _names(raw: AnyPath, table: TableFiles) -> set[str]:
    """The relative paths of a table's files."""
    start = len(str(raw).rstrip("/")) + 1
    return {str(file)[start:] for file in table.files}


def _events_name(raw: AnyPath) -> str | None:
    try:
        return table_files(raw, "events").path.name
    except RawTableMissing:  # images can be looked at before there are clicks
        return None


def _identities(raw: AnyPath, hasher: Hasher, wanted: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Of each wanted file of a raw folder: its relative path, and what changes exactly when its bytes do."""
    if not isinstance(raw, Path):
        return [(name, version) for name, version in object_versions(raw).items() if wanted(name)]
    # Through links, as the tables and the images are read; a link that leads back is not followed twice.
    named = {path: path.relative_to(raw).as_posix() for path in _walk(raw, frozenset())}
    hashed = hasher(path for path, name in named.items() if wanted(name))
    return [(named[path], digest) for path, digest in hashed.items()]


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    facts = folder.stat()
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path, above | {here})
        elif path.is_file():
            yield path


def _facts(path: Path) -> tuple[int, int, int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def _digest(identities: Iterable[tuple[str, str]]) -> str:
    return hashlib.sha256(strict_json.dumps(sorted(identities)).encode()).hexdigest()
