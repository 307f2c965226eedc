"""One raw file, whatever it is written in, as canonical parquet: typed rows in UTC days, each with its number."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.engines.duckdb_session import connect, literal
from jobs.raw.cells import ABSENT
from jobs.raw.columns import COLUMNS, Names
from jobs.raw.containers import is_parquet, local_table, normalised, odd_bytes
from jobs.raw.csv_files import (
    LONGEST,
    MOST_BROKEN,
    Broken,
    CsvLayout,
    Scan,
    csv_layout,
    csv_scan,
    has_loose_quotes,
    is_mixed,
    other_dialects,
    without_broken,
)
from jobs.raw.folder import RawTableUnusable, format_of
from jobs.raw.json_cells import cells_of_lines
from jobs.raw.json_files import (
    LINES,
    JsonLayout,
    damaged_json,
    json_broken,
    json_layout,
    json_rows,
    with_an_object_a_line,
)
from jobs.raw.parquet_files import NOT_UTF8, careful_part, parquet_part
from jobs.raw.parquet_layout import open_parquet, parquet_layout, rows_in
from jobs.raw.typed import (
    AS_IT_STANDS,
    CORRUPT,
    FILE,
    NUMBER,
    REASON,
    UNREADABLE,
    WRITTEN,
    Part,
    broken_rows,
    decimal_commas,
    file_name,
    typed_events,
    typed_items,
    union,
)
from model.artifact import AnyPath

DAY_US: Final = 86_400_000_000
PARQUET: Final = "parquet"
ROWS: Final = 4096  # that are held as Python's at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """A file of a raw table. called: its name below the raw folder.  told: columns that its folders' names tell."""

    file: AnyPath
    called: str
    table: str
    told: Mapping[str, str | None]


def ingest_file(db: duckdb.DuckDBPyConnection, raw: RawFile, names: Names, out: Path, scratch: Path) -> bool:
    """Write the file's rows to `out` as parquet, in order of their UTC days and numbers; False where it has none.

    names: how its columns are called.  scratch: an empty folder for copies.
    Raises RawTableUnusable for a file that is no such table, with the cure.
    """
    path = local_table(raw.file, scratch / "plain")
    if not _has_text(path):
        return False
    if is_parquet(path) or format_of(raw.file) == PARQUET:
        return _parquet(db, raw, names, path, out)
    if (format_of(raw.file) or _guessed(path)) == "jsonl":
        _json(db, raw, names, path, out, scratch)
    else:
        _csv(db, raw, names, path, out, scratch)
    return True


def _has_text(path: Path) -> bool:
    with path.open("rb") as stream:
        while chunk := stream.read(2**16):
            if chunk.strip(b" \t\r\n\xef\xbb\xbf"):
                return True
    return False


def _guessed(path: Path) -> str:
    with path.open("rb") as stream:
        return "jsonl" if stream.read(2**12).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[") else "csv"


def rows_of(file: Path, table: str, names: Names | None = None) -> Iterator[dict[str, Any]]:
    """The rows of one raw file as Python has them: the contract's columns, REASON and ROW.

    names: how its columns are called.  Raises RawTableUnusable.
    """
    with _apart(file) as (db, raw, scratch):
        out = scratch.with_name("rows.parquet")
        if ingest_file(db, raw(table), names or {}, out, scratch):
            with pq.ParquetFile(out) as written:
                for batch in written.iter_batches(ROWS):
                    yield from batch.to_pylist()


def check_file(file: Path, table: str) -> None:
    """Raises RawTableUnusable where a file cannot be opened as one of the table."""
    with _apart(file) as (db, _, scratch):
        path = local_table(file, scratch / "plain")
        if not _has_text(path):
            return
        if is_parquet(path) or format_of(file) == PARQUET:
            parquet_layout(path, file, table, {}, {})
        elif (format_of(file) or _guessed(path)) == "jsonl":
            json_layout(db, path, file, table, {})
        else:
            csv_layout(path, file, table, {})


@contextmanager
def _apart(file: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, Callable[[str], RawFile], Path]]:
    """A database, what makes a RawFile of a table's name, and an empty folder for copies."""
    with TemporaryDirectory() as folder, connect(Path(folder) / "spill") as db:
        db.execute("SET preserve_insertion_order = true")
        scratch = Path(folder) / "read"
        scratch.mkdir()
        yield db, lambda table: RawFile(file=file, called=file.name, table=table, told={}), scratch


# --- forms ----------------------------------------------------------------------------------------------------------


def _parquet(db: duckdb.DuckDBPyConnection, raw: RawFile, names: Names, path: Path, out: Path) -> bool:
    if not rows_in(path, raw.file):
        return False  # its types need not be those of the others
    layout = parquet_layout(path, raw.file, raw.table, names, raw.told)
    try:
        _copy(db, _typed(db, raw, _told(raw, parquet_part(path, layout, file_name(raw.called)))), out)
    except duckdb.Error as error:
        if NOT_UTF8 not in str(error):
            raise _damaged_parquet(path, raw.file, error) from None
        _copy(db, _typed(db, raw, _told(raw, careful_part(db, path, layout, file_name(raw.called)))), out)
    _in_days(db, raw, out)
    return True


def _damaged_parquet(path: Path, file: AnyPath, error: duckdb.Error) -> Exception:
    if isinstance(error, (duckdb.ProgrammingError, duckdb.OutOfMemoryException)):
        return error
    try:  # DuckDB says less of it
        with open_parquet(path, file) as parquet:
            for _ in parquet.iter_batches():
                pass
    except (pa.ArrowException, OSError) as found:
        said = str(found).partition("\n")[0].rstrip(".")
        return RawTableUnusable(f"{file} is damaged or cut short ({said}): write it again")
    return error


def _csv(db: duckdb.DuckDBPyConnection, raw: RawFile, names: Names, path: Path, out: Path, scratch: Path) -> None:
    layout = csv_layout(path, raw.file, raw.table, names, raw.told)
    broken = _read_text(path, scratch, partial(_copy_csv, db, raw, layout=layout, out=out))
    aside = out.with_suffix(".other")
    for other in other_dialects(path, layout, broken):
        fewer = _read_text(path, scratch, partial(_copy_csv, db, raw, layout=other, out=aside))
        if len(fewer) < len(broken):
            aside.rename(out)
            layout, broken = other, fewer
        aside.unlink(missing_ok=True)
        if not broken:
            break
    if has_loose_quotes(broken):
        loose = without_broken(path, scratch / "whole", layout)
        taken = [one.number for one in loose]
        read = partial(_copy_csv, db, raw, layout=layout, out=out)
        others = [
            replace(one, number=_nth_of_others(one.number, taken))
            for one in _read_text(scratch / "whole", scratch, read)
        ]
        broken = sorted([*loose, *others], key=lambda one: one.number)
    _refuse_hopeless(raw.file, broken)
    _in_days(db, raw, out, broken)


def _nth_of_others(n: int, taken: Sequence[int]) -> int:
    """The n-th number from 1 on that is not among those taken, which are sorted."""
    for number in taken:
        if number > n:
            break
        n += 1
    return n


def _copy_csv(db: duckdb.DuckDBPyConnection, raw: RawFile, path: Path, *, layout: CsvLayout, out: Path) -> list[Broken]:
    scan = csv_scan(path, layout)
    cells = {name: f"c{place}" for name, place in layout.places.items()}
    odd = odd_bytes(path, spelled=False)
    part = _part_of_text(raw, f"SELECT {_text_cells(raw, cells, odd)} FROM {scan.query}", odd)
    return _copy_text(db, raw, scan, part, out, lambda: scan.broken(db), first=layout.before + 2)


def _json(db: duckdb.DuckDBPyConnection, raw: RawFile, names: Names, path: Path, out: Path, scratch: Path) -> None:
    try:
        layout = json_layout(db, path, raw.file, raw.table, names, raw.told)
    except duckdb.Error as error:
        if not is_mixed(error):
            raise
        path = normalised(path, scratch / "lines")
        layout = json_layout(db, path, raw.file, raw.table, names, raw.told)

    broken = _read_text(path, scratch, partial(_copy_json, db, raw, layout=layout, out=out))
    if layout.form == LINES and _has_several_a_line(db, out):
        one_a_line = with_an_object_a_line(path, scratch / "objects")
        broken = _read_text(one_a_line, scratch, partial(_copy_json, db, raw, layout=layout, out=out))
    _refuse_hopeless(raw.file, broken)
    _in_days(db, raw, out, broken)


def _copy_json(
    db: duckdb.DuckDBPyConnection, raw: RawFile, path: Path, *, layout: JsonLayout, out: Path
) -> list[Broken]:
    objects, scan = json_rows(path, layout)
    odd = odd_bytes(path, spelled=True)
    named = _text_cells(raw, {name: name for name in layout.keys}, odd, CORRUPT)
    query = f"SELECT {named} FROM ({cells_of_lines(objects, layout.keys, layout.order)})"
    part = _part_of_text(raw, query, odd)
    try:
        return _copy_text(db, raw, scan, part, out, lambda: json_broken(scan, db) if scan else [], first=1)
    except duckdb.Error as error:
        raise error if is_mixed(error) else damaged_json(raw.file, layout.form, error) from None


def _has_several_a_line(db: duckdb.DuckDBPyConnection, out: Path) -> bool:
    """Whether some line that is no row may hold several objects."""
    several = (
        f"SELECT 1 FROM read_parquet({literal(out)}) WHERE {REASON} IS NOT NULL AND regexp_matches(row, '}}\\s*{{')"
    )
    return bool(db.execute(f"{several} LIMIT 1").fetchall())


def _text_cells(raw: RawFile, cells: Mapping[str, str], odd: Container[str], corrupt: str = "NULL::VARCHAR") -> str:
    """The contract's columns of text, with what a Part has beside them.

    cells: column -> expression.  odd: as odd_bytes finds it.
    """
    columns = COLUMNS[raw.table]
    told = {name: literal(value) if value is not None else "NULL" for name, value in raw.told.items()}
    read = {**told, **cells}
    listed = [f"{_cell(read.get(one.name), one.nullable, odd)} AS {one.name}" for one in columns]
    others = {CORRUPT: corrupt, UNREADABLE: "FALSE", FILE: file_name(raw.called), NUMBER: AS_IT_STANDS}
    return ", ".join([*listed, *(f"{sql} AS {name}" for name, sql in others.items())])


def _cell(read: str | None, nullable: bool, odd: Container[str]) -> str:
    if read is None:
        return "NULL::VARCHAR"
    # \N is how MySQL and Hive write that there is no value; as an id it may be one.
    known = f"nullif({read}, '\\N')" if nullable else read
    return f"replace({known}, chr(13) || chr(10), chr(10))" if "\r" in odd else known


def _part_of_text(raw: RawFile, query: str, odd: Container[str]) -> Part:
    return Part(query, dict.fromkeys((one.name for one in COLUMNS[raw.table]), "string"), "\0" in odd)


def _read_text(path: Path, scratch: Path, read: Callable[[Path], list[Broken]]) -> list[Broken]:
    """What `read` returns of the file, or of a copy whose lines end alike, which DuckDB needs."""
    try:
        return read(path)
    except duckdb.Error as error:
        if not is_mixed(error):
            raise
    return read(normalised(path, scratch / "lines"))


def _copy_text(
    db: duckdb.DuckDBPyConnection,
    raw: RawFile,
    scan: Scan | None,
    part: Part,
    out: Path,
    broken: Callable[[], list[Broken]],
    *,
    first: int,
) -> list[Broken]:
    try:
        _copy(db, _typed(db, raw, part), out)
        return [replace(one, number=one.number - first + 1, text=one.text.strip("\r\n")) for one in broken()]
    finally:
        if scan:
            scan.forget(db)


def _refuse_hopeless(file: AnyPath, broken: Sequence[Broken]) -> None:
    if len(broken) >= MOST_BROKEN:
        first = broken[0]
        raise RawTableUnusable(
            f"{file} has {MOST_BROKEN:,} lines or more that are no rows, the first of them row {first.number} "
            f"({first.text[:80]!r}): write it again"
        )
    if endless := next((one for one in broken if len(one.text.encode()) >= LONGEST), None):
        raise RawTableUnusable(
            f"{file} has a row of more than {LONGEST:,} bytes, row {endless.number}: look for an unclosed quote"
        )


# --- rows -----------------------------------------------------------------------------------------------------------


def _typed(db: duckdb.DuckDBPyConnection, raw: RawFile, part: Part) -> str:
    if raw.table == "events":
        return typed_events(part)
    [[comma]] = db.execute(decimal_commas(part)).fetchall() if part.kinds["price"] == "string" else [[False]]
    return typed_items(part, decimal_comma=comma)


def _told(raw: RawFile, part: Part) -> Part:
    """A part with the columns that only the folders' names tell."""
    told = {name: value for name, value in raw.told.items() if part.kinds.get(name) == ABSENT}
    if not told:
        return part
    values = [f"{'NULL' if value is None else literal(value)}::VARCHAR AS {name}" for name, value in told.items()]
    return Part(f"SELECT * REPLACE ({', '.join(values)}) FROM ({part.query})", part.kinds)


def _copy(db: duckdb.DuckDBPyConnection, query: str, out: Path) -> None:
    db.execute(f"COPY ({query}) TO {literal(out)} ({WRITTEN})")


def _in_days(db: duckdb.DuckDBPyConnection, raw: RawFile, out: Path, broken: Sequence[Broken] = ()) -> None:
    """Put what was no row beside the rows of `out`, number all as they stand in the file, and sort them into days."""
    if not broken and (raw.table == "items" or _is_in_days(db, out)):
        return
    rows = [_numbered(db, out, [one.number for one in broken])]
    if broken:
        table = {
            NUMBER: [one.number for one in broken],
            REASON: [one.reason for one in broken],
            CORRUPT: [one.text.encode(errors="replace").decode() for one in broken],
        }
        db.register("broken", pa.table(table))
        rows.append(broken_rows(COLUMNS[raw.table], f"SELECT *, {literal(raw.called)} AS {FILE} FROM broken"))
    day = f"epoch_us(event_time) // {DAY_US}, " if raw.table == "events" else ""
    aside = out.with_suffix(".sorted")
    _copy(db, f"SELECT * FROM ({union(rows)}) ORDER BY {day}{NUMBER}", aside)
    aside.rename(out)


def _numbered(db: duckdb.DuckDBPyConnection, out: Path, taken: Sequence[int]) -> str:
    """The rows of `out`, which stand as in the raw file. taken: the numbers of what else stands there."""
    read = f"read_parquet({literal(out)}, file_row_number = true)"
    numbered = f"SELECT * EXCLUDE file_row_number REPLACE (file_row_number + 1 AS {NUMBER}) FROM {read}"
    if not taken:
        return numbered
    # Row g of those that were read comes after the j-th that was not, exactly if fewer than g rows stand before that.
    before = [number - place for place, number in enumerate(taken, start=1)]
    db.register("taken", pa.table({"before": before, "others": list(range(1, len(taken) + 1))}))
    return (
        f"SELECT rows.* REPLACE (rows.{NUMBER} + coalesce(others, 0) AS {NUMBER}) "
        f"FROM ({numbered}) rows "
        f"ASOF LEFT JOIN (SELECT before, max(others) AS others FROM taken GROUP BY before) ON rows.{NUMBER} > before"
    )


def _is_in_days(db: duckdb.DuckDBPyConnection, out: Path) -> bool:
    """Whether the row groups of `out` follow each other in time, as far as days go."""
    least, most = (f"epoch_us(try_cast(stats_{which}_value AS TIMESTAMPTZ)) // {DAY_US}" for which in ("min", "max"))
    [[ordered]] = db.execute(
        f"SELECT coalesce(bool_and(least >= earlier), TRUE) FROM (SELECT {least} AS least, "
        f"max({most}) OVER (ORDER BY row_group_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS earlier "
        f"FROM parquet_metadata({literal(out)}) WHERE path_in_schema = 'event_time')"
    ).fetchall()
    return bool(ordered)
