"""Look at a raw table's files before anyone reads their rows: their columns, or why one cannot be used and the cure."""

import csv
import difflib
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import IO, Any, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contract import EVENT_TYPES, EVENTS, ITEMS, Column
from jobs.paths import arrow_source
from jobs.raw.folder import RawTableUnusable, TableFiles, is_gzipped
from jobs.rules.events import LOCAL_MOMENT
from model.artifact import AnyPath

COLUMNS: Final = {"events": EVENTS, "items": ITEMS}
# Without these a table of columns is of no use; any other may be absent as a whole, as if it were null in every row.
NEEDED: Final = {"events": tuple(column.name for column in EVENTS), "items": ("item_id", "image_uri")}
SAMPLED: Final = 2**18  # bytes of a text file that are looked at: about a thousand lines
BAD_LINES: Final = 10  # one line in so many may hold bytes that are no UTF-8; with more, the whole file is not
ABSENT: Final = "absent"  # the kind of a parquet column that is not there

DISGUISED: Final = {
    b"PAR1": "is a parquet file: name it .parquet",
    b"\x1f\x8b": "is compressed with gzip: let its name end in .gz",
    b"PK\x03\x04": "is a zip or Excel file: save the table as CSV",
}
SEPARATORS: Final = {";": "semicolons", "\t": "tabs", "|": "bars"}
WANTED: Final = {"str": "text", "int": "a whole number", "float": "a number", "timestamp": "a timestamp"}


def check(table: TableFiles) -> None:
    """Raises RawTableUnusable for the first file whose rows cannot be read as rows of the table."""
    for file in table.files:
        check_file(table.name, table.format, file)
    if table.format == "jsonl" and not any(_head(file).strip() for file in table.files):
        raise RawTableUnusable(f"{table.path} holds no rows: write one JSON object a line")


def check_file(name: str, form: str, file: AnyPath) -> None:
    """As `check`, for one file of the table `name`. form: parquet | csv | jsonl."""
    if form == "parquet":
        parquet_kinds(file, name)
    elif form == "csv":
        csv_header(file, name)
    else:
        check_json_lines(file, name)


def grouped(
    table: TableFiles, layout: Callable[[AnyPath, str], tuple[str, ...]]
) -> dict[tuple[str, ...], list[AnyPath]]:
    """The table's files by their layout, which is what csv_header or parquet_kinds says of a file."""
    groups: dict[tuple[str, ...], list[AnyPath]] = {}
    for file in table.files:
        groups.setdefault(layout(file, table.name), []).append(file)
    return groups


# --- text -----------------------------------------------------------------------------------------------------------


def open_text(file: AnyPath, newline: str | None) -> IO[str]:
    """A CSV or JSON lines file as text, unpacked and without its byte order mark; no UTF-8 is surrogates."""
    return cast(IO[str], _open(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=newline))


def open_bytes(file: AnyPath) -> IO[bytes]:
    """A CSV or JSON lines file as bytes, unpacked."""
    return cast(IO[bytes], _open(file, "rb"))


def _open(file: AnyPath, mode: str, **text: Any) -> Any:
    if not isinstance(file, Path):
        return file.fs.open(file.path, mode, compression="gzip" if is_gzipped(file) else None, **text)
    opener = cast(Any, gzip.open if is_gzipped(file) else open)
    return opener(file, mode, **text)


def _head(file: AnyPath) -> bytes:
    try:
        with open_bytes(file) as stream:
            return stream.read(SAMPLED)
    except gzip.BadGzipFile:
        raise RawTableUnusable(f"{file} is not compressed with gzip: take .gz off its name") from None
    except (EOFError, zlib.error):
        raise cut_short(file) from None


def cut_short(file: AnyPath) -> RawTableUnusable:
    """What to say of a compressed file that does not unpack to its end."""
    return RawTableUnusable(f"{file} is cut short or damaged, as it does not unpack to its end: write it again")


def _text_sample(file: AnyPath) -> str:
    head = _head(file)
    sample = head if len(head) < SAMPLED else head[: head.rfind(b"\n") + 1]  # whole lines
    for magic, said in DISGUISED.items():
        if sample.startswith(magic):
            raise RawTableUnusable(f"{file} {said}")
    lines = sample.splitlines()
    if lines and (b"\0" in lines[0] or sample[:2] in (b"\xff\xfe", b"\xfe\xff")):
        raise RawTableUnusable(
            f"{file} is not UTF-8 text but UTF-16 or no text at all, as NUL bytes show: save it as UTF-8"
        )
    bad = [number for number, line in enumerate(lines, start=1) if not _is_utf8(line)]
    if len(bad) * BAD_LINES > len(lines):
        raise _not_utf8(file, bad[0])
    return sample.decode("utf-8-sig", "surrogateescape")


def _not_utf8(file: AnyPath, line: int) -> RawTableUnusable:
    return RawTableUnusable(f"{file} is not UTF-8 text (see line {line}; perhaps it is Latin-1): save it as UTF-8")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- CSV ------------------------------------------------------------------------------------------------------------


def csv_header(file: AnyPath, name: str) -> tuple[str, ...]:
    """The columns of a CSV file of table `name`, in order. Raises RawTableUnusable."""
    sample = _text_sample(file)
    header = next((row for row in csv.reader(StringIO(sample, newline="")) if row), [])
    if not all(_is_utf8(cell.encode(errors="surrogateescape")) for cell in header):
        raise _not_utf8(file, 1)
    _refuse_other_forms(file, header, name)
    _require_once(file, header, name)
    _require(file, header, NEEDED[name])
    return tuple(header)


def _refuse_other_forms(file: AnyPath, header: Sequence[str], name: str) -> None:
    columns = [column.name for column in COLUMNS[name]]
    for separator, said in SEPARATORS.items():
        if len(header) == 1 and separator in header[0]:
            raise RawTableUnusable(f"{file} is separated by {said}, not by commas: save it with commas")
    if header and header[0].lstrip().startswith(("{", "[")):
        raise RawTableUnusable(f"{file} holds JSON, not CSV: write one object a line and name it .jsonl")
    if not set(header) & set(columns) and any(map(_is_value, header)):
        raise RawTableUnusable(f"{file} has no header: let its first line be {','.join(columns)}")


def _is_value(cell: str) -> bool:
    return cell in EVENT_TYPES or bool(re.match(LOCAL_MOMENT, cell) or re.fullmatch(r"-?\d+(\.\d*)?", cell))


# --- JSON lines -----------------------------------------------------------------------------------------------------


def check_json_lines(file: AnyPath, name: str) -> None:
    """Raises RawTableUnusable where a file is no JSON lines, or where no line of its first ones has a needed column."""
    sample = _text_sample(file).lstrip()
    lines = [line for line in sample.split("\n") if line.strip()]
    if re.match(r"\[\s*(\{|$)", sample):
        raise RawTableUnusable(f"{file} is one JSON array: write one object a line, for example with jq -c '.[]'")
    if _is_spread(sample):
        raise RawTableUnusable(
            f"{file} spreads an object over several lines: write one a line, for example with jq -c ."
        )
    keys = dict.fromkeys(key for line in lines for key in _keys(line))
    if lines and not keys:
        raise RawTableUnusable(f"{file} holds no JSON object in its first {len(lines)} lines: write one a line")
    # JSON writers often leave a null out, so only the columns that must have values are looked for.
    if lines:
        _require(file, list(keys), [column.name for column in COLUMNS[name] if not column.nullable])


def _is_spread(sample: str) -> bool:
    first = sample.partition("\n")[0]
    if not first.startswith("{") or _keys(first) or first.strip() == "{}":
        return False
    try:
        return "\n" in sample[: json.JSONDecoder().raw_decode(sample)[1]]
    except ValueError:
        return first.strip() == "{"


def _keys(line: str) -> tuple[str, ...]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return ()
    return tuple(row) if isinstance(row, dict) else ()


# --- parquet --------------------------------------------------------------------------------------------------------


def parquet_kinds(file: AnyPath, name: str) -> tuple[str, ...]:
    """The type of each of the contract's columns in a parquet file of table `name`; ABSENT for one that it lacks.

    Raises RawTableUnusable.
    """
    with open_parquet(file) as parquet:
        present = parquet.schema_arrow.names
        _require_once(file, present, name)
        _require(file, present, NEEDED[name])
        return tuple(_kind(file, parquet, column) if column.name in present else ABSENT for column in COLUMNS[name])


def open_parquet(file: AnyPath) -> pq.ParquetFile:
    """A parquet file, its footer read. Raises RawTableUnusable."""
    source, files = arrow_source(file)
    try:
        # Of nanoseconds, which INT96 is read as otherwise, there are too few for the years before 1677 and after 2262.
        return pq.ParquetFile(source, filesystem=files, coerce_int96_timestamp_unit="us")
    except PermissionError as error:
        raise PermissionError(error.errno, "Permission denied", str(file)) from None
    except (pa.ArrowException, OSError) as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise RawTableUnusable(f"{file} is not a readable parquet file ({said}): write it again") from None


def _kind(file: AnyPath, parquet: pq.ParquetFile, column: Column) -> str:
    kind = parquet.schema_arrow.field(column.name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_timestamp(kind) and column.kind == "timestamp":
        if _is_int96(parquet, column.name):
            return "int96"  # Hive's and old Spark's instants, in UTC by definition
        if kind.tz is None:
            raise RawTableUnusable(
                f"{file}: column {column.name} has no time zone, so its moments are not known: write it as UTC"
            )
        return f"timestamp[{kind.unit}, tz=UTC]"
    if not _fits(kind, column.kind):
        cure = _cure(parquet, column, kind)
        raise RawTableUnusable(f"{file}: column {column.name} is {kind}, not {WANTED[column.kind]}: {cure}")
    return str(kind)


def _is_int96(parquet: pq.ParquetFile, name: str) -> bool:
    schema = parquet.schema
    return any(schema.column(i).path == name and schema.column(i).physical_type == "INT96" for i in range(len(schema)))


def _fits(kind: pa.DataType, wanted: str) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    floating = pa.types.is_floating(kind) and not pa.types.is_float16(kind)  # Spark reads no half floats
    number = pa.types.is_integer(kind) or floating or pa.types.is_decimal(kind)
    if wanted == "str":
        return bool(text or pa.types.is_integer(kind))
    return bool(text or (number and wanted in ("int", "float")))


def _cure(parquet: pq.ParquetFile, column: Column, kind: pa.DataType) -> str:
    if column.kind != "timestamp" or not pa.types.is_integer(kind):
        return "cast it"
    unit = _unit(parquet, column.name)
    return f"write it as one, for example with pandas.to_datetime({column.name}, unit='{unit}', utc=True)"


def _unit(parquet: pq.ParquetFile, name: str) -> str:
    """The unit in which a column of whole numbers can be moments of our time, by its greatest one."""
    facts, schema = parquet.metadata, parquet.schema
    place = next(i for i in range(len(schema)) if schema.column(i).path == name)
    found = [facts.row_group(group).column(place).statistics for group in range(facts.num_row_groups)]
    greatest = max((one.max for one in found if one is not None and one.has_min_max), default=0)
    bounds = ((10**11, "s"), (10**14, "ms"), (10**17, "us"))
    return next((unit for bound, unit in bounds if greatest < bound), "ns")


# --- columns --------------------------------------------------------------------------------------------------------


def _require_once(file: AnyPath, present: Sequence[str], name: str) -> None:
    times = Counter(present)
    for column in (column.name for column in COLUMNS[name]):
        if times[column] > 1:
            raise RawTableUnusable(f"{file} has the column {column} {times[column]} times: keep one of them")
        alike = [one for one in present if one.lower() == column]
        if column in present and len(alike) > 1:
            raise RawTableUnusable(f"{file} has the columns {' and '.join(sorted(alike))}, one for Spark: rename one")


def _require(file: AnyPath, present: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in present]
    if not missing:
        return
    if not present:
        raise RawTableUnusable(
            f"{file} is empty and has no column {missing[0]}: write it again, with {','.join(needed)}"
        )
    likely = {name: _likely(name, [one for one in present if one not in needed]) for name in missing}
    renamed = [f"rename {_shown(one)} to {name}" for name, one in likely.items() if one is not None]
    cures = renamed + ["add it" if len(missing) == 1 else "add them"] * (len(renamed) < len(missing))
    there = ", ".join(_shown(one) for one in present[:20])
    raise RawTableUnusable(
        f"{file} has no column {' and no column '.join(missing)}: {', '.join(cures)}; its columns are {there}"
    )


def _likely(name: str, present: Sequence[str]) -> str | None:
    spelled = {re.sub(r"[^a-z0-9]+", "_", one.lower()).strip("_"): one for one in present}
    found = difflib.get_close_matches(name, spelled, n=1, cutoff=0.7)
    return spelled[found[0]] if found else None


def _shown(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]{1,40}", name) else repr(name[:40])
