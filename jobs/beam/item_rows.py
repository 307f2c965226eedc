"""Read a raw table, parquet, CSV or JSON lines, as plain rows in the order of the table; the items table by default."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contract import ITEMS
from jobs.sources.raw import RawTableUnusable

COLUMNS: Final = tuple(column.name for column in ITEMS)
NEEDED: Final = ("item_id", "image_uri")  # without these two columns the table is not a catalogue of images
BATCH_ROWS: Final = 4096

Row = dict[str, Any]  # of the contract's columns
Raw = Row | str  # or the line itself, where it is no JSON object
Place = tuple[int, int]  # a row's file and its number in that file: the order of the table


def rows(form: str, path: Path, columns: Sequence[str] = COLUMNS) -> Iterator[Raw]:
    """The rows of one file: {column: value} of these columns, or the line itself where it is no row of the table.

    form: parquet | csv | jsonl. CSV values are text; a naive timestamp stays naive. Raises RawTableUnusable.
    """
    return _READERS[form](path, columns)


def check_columns(form: str, path: Path, needed: Sequence[str] = NEEDED) -> None:
    """Raises RawTableUnusable where a file has a header that lacks a needed column, or no readable header at all."""
    if form == "jsonl":
        return
    names = _parquet(path).schema_arrow.names if form == "parquet" else _csv_header(path)
    absent = [name for name in needed if name not in names]
    if absent:
        raise RawTableUnusable(f"{path} has no column {' and no column '.join(absent)}: add it, see README, Raw data")


# --- parquet --------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise RawTableUnusable(f"{path} is not a readable parquet file ({_line(error)}): write it again") from None


def _parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    file = _parquet(path)
    names = [name for name in wanted if name in file.schema_arrow.names]
    try:
        for batch in file.iter_batches(BATCH_ROWS, columns=names):
            columns = [_values(batch.column(name)) for name in names]
            yield from (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))
    except (pa.ArrowInvalid, OSError) as error:
        raise RawTableUnusable(f"{path} is damaged ({_line(error)}): write it again") from None


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_timestamp(column.type):
        # Nanoseconds would come as pandas' own class; what lies below a microsecond is not kept anywhere.
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):
        return f"unreadable {scalar.type} {scalar.value}"


# --- CSV ------------------------------------------------------------------------------------------------------------


def _csv_header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        return next(csv.reader(stream), [])


def _csv_rows(path: Path, wanted: Sequence[str]) -> Iterator[Raw]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        reader = csv.DictReader(stream)
        try:
            for row in reader:
                whole = None not in row and None not in row.values()  # as many cells as the header has
                yield {name: row.get(name) for name in wanted} if whole else json.dumps(row, ensure_ascii=False)
        except csv.Error as error:
            raise RawTableUnusable(
                f"{path}, after line {reader.line_num}: {error}: look for an unclosed quote"
            ) from None


# --- JSON lines -----------------------------------------------------------------------------------------------------


def _json_rows(path: Path, wanted: Sequence[str]) -> Iterator[Raw]:
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        for line in stream:
            if line.strip():
                yield json_row(line.rstrip("\n"), wanted)


def json_row(line: str, wanted: Sequence[str] = COLUMNS) -> Raw:
    """The row that a line of JSON says, or the line itself where it is no JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return {name: _scalar(row.get(name)) for name in wanted} if isinstance(row, dict) else line


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # JSON can spell half a surrogate pair, UTF-8 cannot
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


_READERS: Final[Mapping[str, Callable[[Path, Sequence[str]], Iterator[Raw]]]] = {
    "parquet": _parquet_rows,
    "csv": _csv_rows,
    "jsonl": _json_rows,
}
