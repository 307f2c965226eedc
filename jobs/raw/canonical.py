"""A canonical table: typed parquet that every engine reads, a user's own in its place or what was ingested of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from jobs.raw.cells import ABSENT
from jobs.raw.columns import COLUMNS, Names, told_columns
from jobs.raw.containers import is_parquet
from jobs.raw.folder import RawTableMissing, RawTableUnusable, TableFiles, source, table_files
from jobs.raw.identity import table_digest
from jobs.raw.parquet_layout import parquet_layout, rows_in
from model import artifact
from model.artifact import AnyPath

KIND: Final = "ingest"
# What each kind of column is in parquet that is used in its place; Spark reads all of them, and no other moments.
CANONICAL: Final = {
    "str": ("string", "large_string"),
    "int": ("int8", "int16", "int32", "int64"),
    "float": ("float", "double"),
    "timestamp": ("timestamp[us, tz=UTC]",),
}
CODECS: Final = frozenset({"UNCOMPRESSED", "SNAPPY", "GZIP", "ZSTD", "LZ4"})  # that Spark brings along


@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalTable:
    """A table as engines read it.

    path: the file or the folder that it is, for messages.
    kinds: the type of each of the contract's columns, as of jobs.raw.parquet_layout, where the files are a user's own;
      None where they were ingested, and have the columns of jobs.raw.typed besides.
    rows: how many there are, rejected ones included.
    """

    name: str
    path: AnyPath
    files: tuple[AnyPath, ...]
    kinds: Mapping[str, str] | None
    rows: int


def canonical_table(folder: AnyPath, name: str, raw: AnyPath | None = None) -> CanonicalTable:
    """The table `name` of a folder: an ingest artifact, or a raw folder of canonical parquet.

    raw: the raw folder that an artifact was made of, where tables may be used in their place.
    Raises RawTableMissing, RawTableUnusable where the table must be ingested first.
    """
    if not (folder / artifact.MANIFEST).is_file():
        table = table_files(folder, name)
        found = in_place(table, {})
        if isinstance(found, str):
            raise RawTableUnusable(
                f"{table.path} cannot be read in its place, as {found}: say `python -m jobs.raw.ingest --raw {folder} "
                "--out FOLDER`, and give that FOLDER instead"
            )
        return found
    said = artifact.read(folder, kind=KIND).facts[name]
    if said is None:
        table_files(raw or folder, name)  # says what is missing
        raise RawTableMissing(f"{raw or folder} has come to hold {name}: ingest it again")
    if not said["in_place"]:
        pieces: list[AnyPath] = sorted((folder / name).glob("*.parquet"), key=str)
        path = (raw or Path()) / said["path"]
        return CanonicalTable(name=name, path=path, files=tuple(pieces), kinds=None, rows=said["rows"])
    if raw is None:
        raise RawTableUnusable(f"{folder} uses the table {name} in its place: give the raw folder itself")
    files: tuple[AnyPath, ...] = tuple(raw / file for file in said["files"])
    return CanonicalTable(name=name, path=raw / said["path"], files=files, kinds=said["kinds"], rows=said["rows"])


def inputs_of(folder: AnyPath, name: str) -> dict[str, str]:
    """The identity of a folder's table, for the manifest of what is made of it."""
    if (folder / artifact.MANIFEST).is_file():
        return artifact.digests({f"{KIND}/{name}": folder})
    return {f"raw/{name}": table_digest(folder, name)}


def with_files(table: CanonicalTable, files: tuple[AnyPath, ...]) -> CanonicalTable:
    """Some of a table's files."""
    return replace(table, files=files)


def has_sampled_negatives(folder: AnyPath) -> bool:
    """Whether the items that were not clicked were drawn, not shown: of a raw folder or an ingest artifact of it."""
    if (folder / artifact.MANIFEST).is_file():
        return bool(artifact.read(folder, kind=KIND).facts["sampled_negatives"])
    return bool(source(folder).get("sampled_negatives", False))


def in_place(table: TableFiles, names: Names) -> CanonicalTable | str:
    """The table, where its own files are canonical parquet; else why not.

    Raises RawTableUnusable for a file that is no parquet by its bytes, or lacks a column.
    """
    if table.format != "parquet":
        return f"it is {table.format or 'no parquet by its name'}"
    if any(names.get(column.name, column.name) != column.name for column in COLUMNS[table.name]):
        return "its columns have other names"
    kinds: Mapping[str, str] | None = None
    rows = 0
    for file in table.files:
        if isinstance(file, Path) and not is_parquet(file):
            return f"{file.name} is no parquet by its bytes"
        if file.stat().st_size == 0 or not rows_in(file, file):
            return f"{file.name} is empty"
        told = told_columns(table, file, names)
        layout = parquet_layout(file, file, table.name, names, told)
        why = _not_canonical(table.name, file, layout.kinds, layout.names, layout.codecs, told)
        if why is None and kinds not in (None, layout.kinds):
            why = f"the columns of {file.name} are of other types than those of {table.files[0].name}"
        if why is not None:
            return why
        kinds, rows = layout.kinds, rows + layout.rows
    return CanonicalTable(name=table.name, path=table.path, files=table.files, kinds=kinds, rows=rows)


def _not_canonical(
    table: str,
    file: AnyPath,
    kinds: Mapping[str, str],
    names: Mapping[str, str],
    codecs: frozenset[str],
    told: Mapping[str, str | None],
) -> str | None:
    if any(name != theirs for name, theirs in names.items()):
        return f"the columns of {file.name} have other names"
    if told.keys() & {column.name for column in COLUMNS[table]}:
        return "folders' names tell some of its columns"
    if isinstance(file, Path) and re.search(r"[:?*\[\]{}\\]", str(file.name)):
        return f"Spark takes the name {file.name} for another place"
    if others := codecs - CODECS:
        return f"{file.name} is compressed with {', '.join(sorted(others)).lower()}"
    for column in COLUMNS[table]:
        kind = kinds[column.name]
        if kind not in CANONICAL[column.kind] and not (kind == ABSENT and column.nullable):
            return f"column {column.name} of {file.name} is {kind}"
    return None
