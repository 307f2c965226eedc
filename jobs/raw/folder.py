"""The raw folder: where the files of its tables lie, and what it says about itself."""

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from upath import UPath

from model.artifact import AnyPath
from model.errors import CourierError

SOURCE = "SOURCE.json"
FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
GZIPPED = re.compile(r"(.+\.(?:csv|jsonl|ndjson|json))\.gz", re.IGNORECASE)  # parquet compresses itself
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
    """The files of one raw table, sorted, and their common format: `parquet`, `csv` or `jsonl`."""

    name: str
    path: AnyPath  # the file or the folder that is the table
    format: str
    files: tuple[AnyPath, ...]


def table_files(raw: AnyPath, name: str) -> TableFiles:
    """The files of table `name`: `raw/name` or `raw/name.<format>`, either one file or a folder of files.

    Raises RawTableMissing where there is none, RawTableUnusable where there are two or their format is not clear.
    """
    path = _table_path(raw, name)
    files = (path,) if path.is_file() else _files_within(path)
    if not files:
        raise RawTableMissing(f"{path} holds no files: put the {name} there as {EXPECTED}")
    return TableFiles(name, path, _common_format(files), files)


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


def is_gzipped(file: AnyPath) -> bool:
    """Whether a CSV or JSON lines file is compressed, by its name, which is what Spark goes by too."""
    return GZIPPED.fullmatch(file.name) is not None


def _table_path(raw: AnyPath, name: str) -> AnyPath:
    require_folder(raw)
    there: list[AnyPath] = sorted(raw.iterdir(), key=str)
    found = [path for path in there if path.name == name or _is_named(path, name)]
    if not found:
        known = f"add {name}.parquet, {name}.csv or {name}.jsonl"
        raise RawTableMissing(f"{raw} holds no table {name}: {_rename(there, name)}{known}")
    if len(found) > 1:
        both = " and ".join(path.name for path in found)
        raise RawTableUnusable(f"{raw} holds the table {name} more than once ({both}): keep one of them")
    return _reachable(found[0])


def _is_named(path: AnyPath, name: str) -> bool:
    plain = _plain(path)
    return plain.stem == name and plain.suffix.lower() in FORMATS


def _plain(path: AnyPath) -> AnyPath:
    """`a.csv` for `a.csv.gz`, and any other path as it is."""
    zipped = GZIPPED.fullmatch(path.name)
    return path.with_name(zipped[1]) if zipped else path


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
        names = [name for name, _ in _objects(folder) if not any(part[:1] in (".", "_") for part in name.split("/"))]
        return tuple(folder / name for name in names)
    found: list[AnyPath] = []
    seen: set[tuple[int, int]] = set()
    for path, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        here, facts = Path(path), Path(path).stat()
        if (facts.st_dev, facts.st_ino) in seen:
            raise RawTableUnusable(f"{here} leads to a folder that is read already: take the link away")
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = [name for name in folders if name[0] not in "._"]
        found += [_reachable(here / name) for name in names if name[0] not in "._"]
    return tuple(sorted(found))


def _refuse(error: OSError) -> None:
    raise error


def _common_format(files: tuple[AnyPath, ...]) -> str:
    formats: dict[str, AnyPath] = {}
    for file in files:
        form = format_of(file)
        if form is None:
            raise RawTableUnusable(
                f"{file} is not known as {EXPECTED}: name it .parquet, .csv or .jsonl, the latter two also .gz, "
                "or move it away"
            )
        formats.setdefault(form, file)
    if len(formats) > 1:
        one, other = list(formats.values())[:2]
        raise RawTableUnusable(f"{one} and {other} are one table in two formats: keep one format")
    return next(iter(formats))


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
