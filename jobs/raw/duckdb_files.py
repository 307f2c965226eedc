"""The files of a raw table as DuckDB queries of the contract's columns, still as they were read."""

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import duckdb
import pyarrow as pa

from jobs.engines.duckdb_session import literal
from jobs.raw import layout as raw_layout
from jobs.raw.arrow_batches import CORRUPT, FILE, LINE, NO_TEXT, Batches, csv_rows, lines, parquet_rows
from jobs.raw.duckdb_cells import is_blank, is_text
from jobs.raw.duckdb_json import cells_of_lines
from jobs.raw.folder import RawTableMissing, RawTableUnusable, TableFiles, table_files
from model.artifact import AnyPath

UNREADABLE: Final = "_bad_encoding"  # whether bytes of the row are not UTF-8
CAREFUL: Final = "careful_with_text"  # DuckDB's variable: whether parquet may hold text that is no UTF-8

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """Files of one layout.

    query: a SELECT of the contract's columns, CORRUPT, UNREADABLE and FILE.
    kinds: the type of each of the contract's columns, as jobs.raw.layout.parquet_kinds names them.
    """

    query: str
    kinds: Mapping[str, str]


def parts(db: duckdb.DuckDBPyConnection, table: TableFiles) -> list[Part]:
    """The table's files, a part for each layout among them; what uses them is to be run by `reading`.

    A column that need not be there and is not is null. Raises RawTableUnusable.
    """
    raw_layout.check(table)
    read = {"parquet": _parquet_parts, "csv": _csv_parts, "jsonl": _jsonl_parts}[table.format]
    return list(read(db, table))


def reading(db: duckdb.DuckDBPyConnection, raw: AnyPath, step: Callable[[], T]) -> T:
    """What `step` returns, which asks for parts of raw tables and runs queries of them; it may be run a second time.

    Raises RawTableUnusable where a file proves damaged while it is read.
    """
    try:
        return step()
    except duckdb.Error as error:
        if "Invalid string encoding found in Parquet file" not in str(error):
            raise _named(error, raw) from None
    # DuckDB refuses such text, or drops what is wrong with it and tells nobody of which rows. To look first would cost
    # everybody a tenth of the time that reading takes, and those who write parquet see to it that this is rare.
    db.execute(f"SET VARIABLE {CAREFUL} = true")
    try:
        return step()
    except duckdb.Error as error:
        raise _named(error, raw) from None


def _named(error: duckdb.Error, raw: AnyPath) -> Exception:
    """What to say of a failure: which file is damaged, or else the error itself."""
    if said := re.search(r"RawTableUnusable: ([^\n]*)", str(error)):
        return RawTableUnusable(said[1])
    if isinstance(error, (duckdb.ProgrammingError, duckdb.OutOfMemoryException)):
        return error
    return next((found for found in map(_damage, _parquet_files(raw)) if found), error)  # DuckDB names no file


def _parquet_files(raw: AnyPath) -> Iterator[AnyPath]:
    for name in raw_layout.COLUMNS:
        try:
            table = table_files(raw, name)
        except RawTableMissing:
            continue
        yield from table.files if table.format == "parquet" else ()


def _damage(file: AnyPath) -> RawTableUnusable | None:
    try:
        with raw_layout.open_parquet(file) as parquet:
            for _ in parquet.iter_batches():
                pass
    except (pa.ArrowException, OSError) as error:
        said = str(error).partition("\n")[0].rstrip(".")
        return RawTableUnusable(f"{file} is damaged or cut short ({said}): write it again")
    return None


def _names(table: TableFiles) -> list[str]:
    return [column.name for column in raw_layout.COLUMNS[table.name]]


def _registered(db: duckdb.DuckDBPyConnection, batches: Batches) -> str:
    name = f"raw_{uuid.uuid4().hex}"
    db.register(name, batches)
    return name


def _readable(text: str) -> str:
    return f"CASE WHEN {UNREADABLE} THEN replace({text}, {literal(NO_TEXT)}, '\ufffd') ELSE {text} END"


def _has_no_text(names: Sequence[str]) -> str:
    return " OR ".join(f"coalesce(contains({name}, {literal(NO_TEXT)}), FALSE)" for name in names)


# --- CSV ------------------------------------------------------------------------------------------------------------


def _csv_parts(db: duckdb.DuckDBPyConnection, table: TableFiles) -> Iterator[Part]:
    names = _names(table)
    for header, files in raw_layout.grouped(table, raw_layout.csv_header).items():
        # Other columns of the file are named by their place, so that theirs may be the same or empty.
        columns = [name if name in names else f"_{place}" for place, name in enumerate(header)]
        present = [name for name in names if name in columns]
        wanted = dict.fromkeys([*present, columns[-1]])
        # Only a quote that nothing closes, or that is closed in a wrong place, lets the last cell end in a line break.
        corrupt = f"coalesce({CORRUPT}, CASE WHEN ends_with({columns[-1]}, chr(10)) THEN {columns[-1]} END)"
        marked = (
            f"SELECT * REPLACE ({corrupt} AS {CORRUPT}), {_has_no_text([*present, CORRUPT])} AS {UNREADABLE} "
            f"FROM {_registered(db, csv_rows(files, columns, list(wanted)))}"
        )
        cells = [f"{_csv_cell(name) if name in present else 'NULL::VARCHAR'} AS {name}" for name in names]
        query = f"SELECT {', '.join(cells)}, {_readable(CORRUPT)} AS {CORRUPT}, {UNREADABLE}, {FILE} FROM ({marked})"
        yield Part(query, dict.fromkeys(names, "string"))


def _csv_cell(name: str) -> str:
    return f"replace({_readable(name)}, chr(13) || chr(10), chr(10))"


# --- JSON lines -----------------------------------------------------------------------------------------------------


def _jsonl_parts(db: duckdb.DuckDBPyConnection, table: TableFiles) -> Iterator[Part]:
    names = _names(table)
    marked = (
        f"SELECT *, {_has_no_text([LINE, CORRUPT])} AS {UNREADABLE} FROM {_registered(db, lines(table.files))} "
        f"WHERE {CORRUPT} IS NOT NULL OR NOT {is_blank(LINE)}"
    )
    readable = (
        f"SELECT {_readable(LINE)} AS {LINE}, {_readable(CORRUPT)} AS {CORRUPT}, {UNREADABLE}, {FILE} FROM ({marked})"
    )
    yield Part(cells_of_lines(readable, names, [UNREADABLE, FILE]), dict.fromkeys(names, "string"))


# --- parquet --------------------------------------------------------------------------------------------------------


def _parquet_parts(db: duckdb.DuckDBPyConnection, table: TableFiles) -> Iterator[Part]:
    if not isinstance(table.path, Path) and table.path.protocol not in db.list_filesystems():
        db.register_filesystem(table.path.fs)
    [(careful,)] = db.execute(f"SELECT getvariable('{CAREFUL}') IS NOT NULL").fetchall()
    for kinds, files in raw_layout.grouped(table, raw_layout.parquet_kinds).items():
        known = dict(zip(_names(table), kinds, strict=True))
        present = {name: kind for name, kind in known.items() if kind != raw_layout.ABSENT}
        source = _checked_rows(db, files, present) if careful else _rows(files, present)
        columns = [_parquet_column(name, kind) for name, kind in known.items()]
        query = f"SELECT {', '.join(columns)}, NULL::VARCHAR AS {CORRUPT}, {UNREADABLE}, {FILE} FROM ({source})"
        yield Part(query, known)


def _parquet_column(name: str, kind: str) -> str:
    if kind == raw_layout.ABSENT:
        return f"NULL::VARCHAR AS {name}"
    return f"{name}::VARCHAR AS {name}" if kind == "null" else name


def _rows(files: Sequence[AnyPath], present: Iterable[str]) -> str:
    listed = ", ".join(map(_pattern, files))
    read = f"read_parquet([{listed}], filename = '{FILE}', hive_partitioning = false)"
    return f"SELECT {', '.join(present)}, FALSE AS {UNREADABLE}, {FILE} FROM {read}"


def _checked_rows(db: duckdb.DuckDBPyConnection, files: Sequence[AnyPath], present: Mapping[str, str]) -> str:
    texts = [name for name, kind in present.items() if is_text(kind)]
    readable = ", ".join(f"{_readable(name)} AS {name}" for name in texts)
    marked = (
        f"SELECT *, {_has_no_text(texts)} AS {UNREADABLE} FROM {_registered(db, parquet_rows(files, list(present)))}"
    )
    return f"SELECT * REPLACE ({readable}) FROM ({marked})"


def _pattern(file: AnyPath) -> str:
    # On this machine DuckDB tries the name itself first; of a store it asks fsspec, which takes it for a pattern.
    name = str(file.absolute())
    return literal(name if isinstance(file, Path) else re.sub(r"([\[*?])", r"[\1]", name))
