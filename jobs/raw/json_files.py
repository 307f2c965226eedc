"""JSON as DuckDB reads it: an object a line, objects one after another, or an array of them."""

import json
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from jobs.engines.duckdb_session import literal
from jobs.raw.columns import ALWAYS, COLUMNS, NEEDED, Names, known, placed
from jobs.raw.csv_files import Broken, Scan, is_mixed, text_scan
from jobs.raw.folder import RawTableUnusable
from jobs.raw.json_cells import LINE
from jobs.rules.events import BAD_ENCODING, BAD_ROW
from model.artifact import AnyPath

LARGEST_OBJECT: Final = 2**25  # bytes
PROBED: Final = 1000  # lines that are looked at before all are read
LINES, OBJECTS, ARRAY = "newline_delimited", "unstructured", "array"  # as DuckDB calls them
AS_LINES: Final = "write an object a row, one a line, for example with pandas' to_json(orient='records', lines=True)"


@dataclass(frozen=True, slots=True)
class JsonLayout:
    """How the rows of a file follow each other: LINES, OBJECTS or ARRAY; its keys of the contract's columns.

    order: all keys of its first object, in their order.
    """

    form: str
    keys: dict[str, str]
    order: tuple[str, ...]


def json_layout(
    db: duckdb.DuckDBPyConnection, path: Path, file: AnyPath, table: str, names: Names, told: Container[str] = ()
) -> JsonLayout:
    """What a file says of itself. told: columns that need not be there.

    Raises RawTableUnusable where it holds no objects, or none of the table's.
    """
    with path.open("rb") as stream:
        begun = stream.read(2**12).decode("utf-8-sig", "replace").lstrip()
    if re.match(r"[{\[]\s*'|\{\s*u'", begun):
        raise RawTableUnusable(f"{file} holds Python's literals, not JSON: write each row as JSON, an object a line")
    form = ARRAY if begun.startswith("[") else LINES
    first = _probe(db, path, file, form)
    if not first and form == LINES:
        form = OBJECTS
        first = _probe(db, path, file, form)
    if not first:
        raise RawTableUnusable(f"{file} holds no JSON object in its first lines: write one a line")
    keys = list(dict.fromkeys(key for row in first for key in row))
    if len(first) == 1 and first[0] and all(isinstance(value, (dict, list)) for value in first[0].values()):
        raise RawTableUnusable(
            f"{file} holds one object of {', '.join(keys[:6])}, each a whole column or list: {AS_LINES}"
        )
    needed = ALWAYS if known(table, keys, names) >= len(ALWAYS[table]) else NEEDED  # to say all that is missing at once
    places = placed(file, table, keys, names, [name for name in needed[table] if name not in told])
    # What the first rows leave out may stand in later ones.
    wanted = {column.name: names.get(column.name, column.name) for column in COLUMNS[table] if column.name not in told}
    return JsonLayout(form, wanted | {name: keys[place] for name, place in places.items()}, tuple(first[0]))


def json_rows(path: Path, layout: JsonLayout) -> tuple[str, Scan | None]:
    """A query of the objects in a column LINE, and the scan that keeps what is no line, where there may be some."""
    if layout.form == LINES:
        scan = _lines(path)
        return (
            f"SELECT {LINE} FROM {scan.query} WHERE trim(coalesce({LINE}, ''), chr(32) || chr(9) || chr(13)) <> ''",
            scan,
        )
    return _objects(path, layout.form), None


def with_an_object_a_line(path: Path, aside: Path) -> Path:
    """A copy of a file of lines in which each object has one of its own; a line that is damaged stays as it is.

    It takes longer than DuckDB, and is only needed where a line holds several.
    """
    with path.open("rb") as lines, aside.open("wb") as whole:
        for line in lines:
            whole.writelines(_objects_of(line))
    return aside


def _objects_of(line: bytes) -> Iterator[bytes]:
    """What a line holds, an object a line; the line where it does not hold only those."""
    if not re.search(rb"\}\s*\{", line):
        return iter([line])
    text = line.decode("utf-8", "surrogateescape").strip()
    found, at, decoder = list[str](), 0, json.JSONDecoder()
    while at < len(text):
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return iter([line])
        if not isinstance(value, dict):
            return iter([line])
        found.append(text[at:end] + "\n")
        at = end
        while at < len(text) and text[at].isspace():
            at += 1
    return (one.encode("utf-8", "surrogateescape") for one in found)


def json_broken(scan: Scan, db: duckdb.DuckDBPyConnection) -> list[Broken]:
    """What was no line: a line that is no UTF-8 is no row either, where it is no JSON otherwise."""
    found = scan.broken(db)
    return [
        Broken(one.number, BAD_ENCODING if one.reason == BAD_ENCODING and _is_object(one.text) else BAD_ROW, one.text)
        for one in found
    ]


def damaged_json(file: AnyPath, form: str, error: duckdb.Error) -> Exception:
    """What to say of a file that DuckDB could not read to its end."""
    if not isinstance(error, (duckdb.InvalidInputException, duckdb.ConversionException)):
        return error
    said = re.sub(r"\s+", " ", str(error).partition(":")[2].partition("Try ")[0])[:160].strip()
    what = "one JSON array" if form == ARRAY else "JSON objects without line breaks"
    cure = "jq -c '.[]'" if form == ARRAY else "jq -c ."
    return RawTableUnusable(f"{file} holds {what} and is damaged ({said}): mend it, or write one a line with {cure}")


def _probe(db: duckdb.DuckDBPyConnection, path: Path, file: AnyPath, form: str) -> list[dict[str, Any]]:
    scan = _lines(path) if form == LINES else None
    query = f"SELECT {LINE} FROM {scan.query}" if scan else _objects(path, form)
    try:
        found = db.execute(f"{query} LIMIT {PROBED}").fetchall()
    except duckdb.Error as error:
        if is_mixed(error):
            raise
        if form == ARRAY:
            raise damaged_json(file, form, error) from None
        return []
    finally:
        if scan:
            scan.forget(db)
    return [row for (line,) in found if isinstance(row := _parsed(line or ""), dict)]


def _lines(path: Path) -> Scan:
    # A line with control characters is no JSON, so some of them can part the columns, of which there is one.
    return text_scan(
        path, f"delim = '\x01\x02\x03\x04', quote = '', escape = '', header = false, columns = {{'{LINE}': 'VARCHAR'}}"
    )


def _objects(path: Path, form: str) -> str:
    return (
        f"SELECT json::VARCHAR AS {LINE} FROM read_json_objects({literal(path)}, format = '{form}', "
        f"maximum_object_size = {LARGEST_OBJECT}, compression = 'none')"
    )


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_object(line: str) -> bool:
    return isinstance(_parsed(line), dict)
