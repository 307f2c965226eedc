"""The raw folder: where the files of its tables lie, and what it says about itself."""

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from upath import UPath

from model.artifact import AnyPath
from model.errors import CourierError

SOURCE = "SOURCE.json"
TABLES: Final = ("events", "items")
FORMATS = dict.fromkeys((".parquet", ".parq", ".pq"), "parquet") | dict.fromkeys((".csv", ".tsv"), "csv")
FORMATS |= dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl")
PACKED = re.compile(r"(.+)\.(?:gz|bz2|xz|zst|zip)", re.IGNORECASE)
# What writers leave behind that is no data, beside what begins with a dot or an underscore.
MARKERS = re.compile(r"(?:.*_\$folder\$|manifest|thumbs\.db|desktop\.ini)", re.IGNORECASE)
LAKES = {"_delta_log": "Delta", ".hoodie": "Hudi", "metadata": "Iceberg"}
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # in a folder's name
TRUTH = "truth*.parquet"  # only the evaluator reads these; what it reads enters no stage before it
EXPECTED = "parquet, CSV or JSON lines"
# How stores name what tells one content of an object from another, the surest first; in a listing, so at no cost.
VERSIONS: Final = ("ETag", "etag", "generation", "checksum", "mtime", "LastModified", "last_modified", "created")


class RawTableUnusable(CourierError):
    """A raw table cannot be read at all; the message names the file, the column and the cure."""


class RawTableMissing(RawTableUnusable):
    """The raw folder holds no such table."""


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The files of one raw table, sorted, and their format by name: `parquet`, `csv`, `jsonl`; empty: unknown."""

    name: str
    path: AnyPath  # the file or the folder that is the table
    format: str
    files: tuple[AnyPath, ...]


def table_files(raw: AnyPath, name: str) -> TableFiles:
    """The files of table `name`: `raw/name` or `raw/name.<format>`, either one file or a folder of files.

    Raises RawTableMissing where there is none, RawTableUnusable where there are two or their format is not clear.
    """
    path = _table_path(raw, name)
    if not path.is_file():
        _refuse_lake(path)
    files = (path,) if path.is_file() else _files_within(path)
    if not files:
        raise RawTableMissing(f"{path} holds no files: put the {name} there as {EXPECTED}")
    return TableFiles(name, path, _common_format(files), files)


def tables_of(raw: AnyPath) -> dict[str, TableFiles]:
    """The raw tables that there are, by name: images can be looked at without clicks, and clicks without items.

    Raises RawTableMissing where there is none, and as table_files.
    """
    found, missing = {}, []
    for name in TABLES:
        try:
            found[name] = table_files(raw, name)
        except RawTableMissing as error:
            missing.append(error)
    if not found:
        raise missing[0]
    return found


def told_by_folders(table: TableFiles, file: AnyPath) -> dict[str, str | None]:
    """The columns that the names of a file's folders tell, as Hive writes them: `event_type=click/part-0.parquet`."""
    below = str(file)[len(str(table.path)) :].strip("/").split("/")[:-1]
    pairs = (folder.partition("=") for folder in below)
    return {name: None if value == NO_VALUE else unquote(value) for name, equals, value in pairs if equals and name}


def _refuse_lake(folder: AnyPath) -> None:
    for name, kind in LAKES.items():
        if (folder / name).is_dir() and (kind != "Iceberg" or any((folder / name).glob("*.metadata.json"))):
            raise RawTableUnusable(
                f"{folder} is {'an' if kind[0] == 'I' else 'a'} {kind} table, whose files hold deleted rows too: "
                "export its current version as parquet"
            )


def require_folder(raw: AnyPath) -> None:
    """Raises RawTableMissing where no raw folder can be seen at this path or URL."""
    try:
        found = raw.is_dir()
    except Exception as error:  # every store's driver raises its own kinds
        if isinstance(raw, Path):
            raise
        said = str(error).partition("\n")[0].rstrip(".")
        raise RawTableMissing(f"{raw} cannot be looked into ({said}): check the address and the credentials") from None
    if not found:
        raise RawTableMissing(f"{raw} is not a folder: give the folder that holds the tables events and items")


def format_of(file: AnyPath) -> str | None:
    """`parquet`, `csv` or `jsonl`, by the file's name; None where it says none of them."""
    return FORMATS.get(_plain(file).suffix.lower())


def _table_path(raw: AnyPath, name: str) -> AnyPath:
    require_folder(raw)
    there: list[AnyPath] = sorted(raw.iterdir(), key=str)
    found = [path for path in there if path.name == name or _is_named(path, name)]
    if not found:  # whatever its form may be
        found = [path for path in there if path.name.partition(".")[0] == name and path.is_file()]
    if not found:
        known = f"add {name}.parquet, {name}.csv or {name}.jsonl"
        raise RawTableMissing(f"{raw} holds no table {name}: {_rename(there, name)}{known}")
    if len(found) > 1:
        both = " and ".join(path.name for path in found)
        raise RawTableUnusable(f"{raw} holds the table {name} more than once ({both}): keep one of them")
    return _reachable(found[0])


def _is_named(path: AnyPath, name: str) -> bool:
    plain = _plain(path)
    return plain.stem == name and (plain.suffix.lower() in FORMATS or (plain != path and not plain.suffix))


def _plain(path: AnyPath) -> AnyPath:
    """`a.csv` for `a.csv.gz`, and so on, and any other path as it is."""
    packed = PACKED.fullmatch(path.name)
    return path.with_name(packed[1]) if packed else path


def _rename(there: list[AnyPath], name: str) -> str:
    stems = {path.name.partition(".")[0].lower(): path.name for path in there}
    likely = difflib.get_close_matches(name, stems, n=1, cutoff=0.7)
    return f"if {stems[likely[0]]} is meant, save it under another name, or " if likely else ""


def _reachable(path: AnyPath) -> AnyPath:
    if path.is_file() or path.is_dir():
        return path
    if path.is_symlink():
        raise RawTableUnusable(f"{path} is a link that leads nowhere: mend it or take it away")
    raise RawTableUnusable(f"{path} is neither a file nor a folder: take it away")


def _files_within(folder: AnyPath) -> tuple[AnyPath, ...]:
    """The data files below a folder, through links too. Raises RawTableUnusable for a link that loses or doubles data.

    OSError for a folder that may not be read: its files must not be missing in silence.
    """
    # Writers leave markers, checksums and half-written files (_SUCCESS, .part-0.crc, _temporary/) beside the data.
    if not isinstance(folder, Path):
        names = [name for name, _ in _objects(folder) if not any(map(_is_marker, name.split("/")))]
        return tuple(folder / name for name in names)
    found: list[AnyPath] = []
    seen: set[tuple[int, int]] = set()
    for path, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        here, facts = Path(path), Path(path).stat()
        if (facts.st_dev, facts.st_ino) in seen:
            raise RawTableUnusable(f"{here} leads to a folder that is read already: take the link away")
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = [name for name in folders if not _is_marker(name)]
        found += [_reachable(here / name) for name in names if not _is_marker(name)]
    return tuple(sorted(found))


def _is_marker(name: str) -> bool:
    return name[:1] in (".", "_") or MARKERS.fullmatch(name) is not None


def _refuse(error: OSError) -> None:
    raise error


def _common_format(files: tuple[AnyPath, ...]) -> str:
    formats: dict[str, AnyPath] = {}
    for file in files:
        formats.setdefault(format_of(file) or "", file)
    named = {form: file for form, file in formats.items() if form}
    if len(named) > 1:
        one, other = list(named.values())[:2]
        raise RawTableUnusable(f"{one} and {other} are one table in two formats: keep one format")
    return next(iter(named), "")


def file_version(file: AnyPath) -> str:
    """What changes when the bytes of a raw file do."""
    if isinstance(file, Path):
        return _facts(file)
    info = file.fs.info(file.path)
    return f"{info['size']}\0{_version(file.parent, file.name, info)}"


def _facts(path: Path) -> str:
    facts = path.stat()
    return f"{facts.st_size}\0{facts.st_mtime_ns}"


def object_versions(folder: UPath) -> dict[str, str]:
    """Of each object below a folder of a store, by its relative path: what changes when its bytes do."""
    return {name: f"{info['size']}\0{_version(folder, name, info)}" for name, info in _objects(folder)}


def _objects(folder: UPath) -> list[tuple[str, dict[str, Any]]]:
    """What a store says of each object below a folder, sorted by its relative path."""
    found = folder.fs.find(folder.path, detail=True)  # one request for a thousand of them
    start = len(folder.path.rstrip("/")) + 1
    return sorted((name[start:], info) for name, info in found.items() if info["type"] == "file")


def _version(raw: UPath, name: str, info: Mapping[str, Any]) -> str:
    said = next((info[key] for key in VERSIONS if info.get(key) is not None), None)
    return str(raw.fs.ukey((raw / name).path) if said is None else said)


def source(raw: AnyPath) -> dict[str, Any]:
    """What SOURCE.json says (name, sampled_negatives, description); empty where there is none.

    Raises RawTableUnusable where it is no JSON object.
    """
    try:
        said = json.loads((raw / SOURCE).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RawTableUnusable(f"{raw / SOURCE} is not JSON ({error}): mend it or take it away") from None
    if not isinstance(said, dict):
        raise RawTableUnusable(f"{raw / SOURCE} is not a JSON object: mend it or take it away")
    return said
