"""The raw folder: where the files of its tables lie, what it says about itself, and its identity."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = "SOURCE.json"
FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
GZIPPED = re.compile(r"(.+\.(?:csv|jsonl|ndjson|json))\.gz", re.IGNORECASE)  # parquet compresses itself
TRUTH = "truth*.parquet"  # only the evaluator reads these; what it reads enters no stage before it
EXPECTED = "parquet, CSV or JSON lines"


class RawTableUnusable(ValueError):
    """A raw table cannot be read at all; the message names the file, the column and the cure."""


class RawTableMissing(RawTableUnusable, FileNotFoundError):
    """The raw folder holds no such table."""


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The files of one raw table, sorted, and their common format: `parquet`, `csv` or `jsonl`."""

    name: str
    path: Path  # the file or the folder that is the table
    format: str
    files: tuple[Path, ...]


def table_files(raw: Path, name: str) -> TableFiles:
    """The files of table `name`: `raw/name` or `raw/name.<format>`, either one file or a folder of files.

    Raises RawTableMissing where there is none, RawTableUnusable where there are two or their format is not clear.
    """
    path = _table_path(raw, name)
    files = (path,) if path.is_file() else _files_within(path)
    if not files:
        raise RawTableMissing(f"{path} holds no files: put the {name} there as {EXPECTED}")
    return TableFiles(name, path, _common_format(files), files)


def format_of(file: Path) -> str | None:
    """`parquet`, `csv` or `jsonl`, by the file's name; None where it says none of them."""
    return FORMATS.get(_plain(file).suffix.lower())


def is_gzipped(file: Path) -> bool:
    """Whether a CSV or JSON lines file is compressed, by its name, which is what Spark goes by too."""
    return GZIPPED.fullmatch(file.name) is not None


def _table_path(raw: Path, name: str) -> Path:
    if not raw.is_dir():
        raise RawTableMissing(f"{raw} is not a folder: give the folder that holds the tables events and items")
    there = sorted(raw.iterdir())
    found = [path for path in there if path.name == name or _is_named(path, name)]
    if not found:
        known = f"add {name}.parquet, {name}.csv or {name}.jsonl"
        raise RawTableMissing(f"{raw} holds no table {name}: {_rename(there, name)}{known}")
    if len(found) > 1:
        both = " and ".join(path.name for path in found)
        raise RawTableUnusable(f"{raw} holds the table {name} more than once ({both}): keep one of them")
    return _reachable(found[0])


def _is_named(path: Path, name: str) -> bool:
    plain = _plain(path)
    return plain.stem == name and plain.suffix.lower() in FORMATS


def _plain(path: Path) -> Path:
    """`a.csv` for `a.csv.gz`, and any other path as it is."""
    zipped = GZIPPED.fullmatch(path.name)
    return path.with_name(zipped[1]) if zipped else path


def _rename(there: list[Path], name: str) -> str:
    stems = {path.name.partition(".")[0].lower(): path.name for path in there}
    likely = difflib.get_close_matches(name, stems, n=1, cutoff=0.7)
    return f"if {stems[likely[0]]} is meant, save it under another name, or " if likely else ""


def _reachable(path: Path) -> Path:
    if path.is_file() or path.is_dir():
        return path
    if path.is_symlink():
        raise RawTableUnusable(f"{path} is a link that leads nowhere: mend it or take it away")
    raise RawTableUnusable(f"{path} is neither a file nor a folder: take it away")


def _files_within(folder: Path) -> tuple[Path, ...]:
    """The data files below a folder, through links too. Raises RawTableUnusable for a link that loses or doubles data.

    OSError for a folder that may not be read: its files must not be missing in silence.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for path, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        here, facts = Path(path), Path(path).stat()
        if (facts.st_dev, facts.st_ino) in seen:
            raise RawTableUnusable(f"{here} leads to a folder that is read already: take the link away")
        seen.add((facts.st_dev, facts.st_ino))
        # Writers leave markers, checksums and half-written files (_SUCCESS, .part-0.crc, _temporary/) beside the data.
        folders[:] = [name for name in folders if name[0] not in "._"]
        found += [_reachable(here / name) for name in names if name[0] not in "._"]
    return tuple(sorted(found))


def _refuse(error: OSError) -> None:
    raise error


def _common_format(files: tuple[Path, ...]) -> str:
    formats: dict[str, Path] = {}
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


def raw_digest(raw: Path) -> str:
    """The identity of a raw folder: sha256 over the relative path, size and modification time of each of its files.

    The truth files are left out. Raises RawTableMissing where there is no such folder.
    """
    if not raw.is_dir():
        raise RawTableMissing(f"{raw} is not a folder: give the folder that holds the tables events and items")
    seen = hashlib.sha256()
    # Through links, as the tables and the images are read; a link that leads back is not followed twice.
    for path in sorted(_everything(raw, set())):
        if not (path.parent == raw and path.match(TRUTH)):
            facts = path.stat()
            seen.update(f"{path.relative_to(raw).as_posix()}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return seen.hexdigest()


def _everything(folder: Path, above: set[tuple[int, int]]) -> Iterator[Path]:
    facts = folder.stat()
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _everything(path, above | {here})
        elif path.is_file():
            yield path


def truth_digest(raw: Path) -> str:
    """The identity of the truth files of a raw folder, for the evaluator: as raw_digest, over them alone."""
    seen = hashlib.sha256()
    for path in sorted(raw.glob(TRUTH)):
        facts = path.stat()
        seen.update(f"{path.name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return seen.hexdigest()


def source(raw: Path) -> dict[str, Any]:
    """What SOURCE.json says (name, sampled_negatives, description); empty where there is none.

    Raises RawTableUnusable where it is no JSON object.
    """
    try:
        said = json.loads((raw / SOURCE).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RawTableUnusable(f"{raw / SOURCE} is not JSON ({error}): mend it or take it away") from None
    if not isinstance(said, dict):
        raise RawTableUnusable(f"{raw / SOURCE} is not a JSON object: mend it or take it away")
    return said
