"""Raw files read by Python's own csv and json, row by row: the slow twin of ingesting."""

import csv
import gzip
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contract import ITEMS
from jobs.rules.events import WHITE_SPACE
from jobs.rules.items import BAD_ENCODING

NAMES = tuple(column.name for column in ITEMS)
STRAY = re.compile("[\udc80-\udcff]")  # how a byte that is no UTF-8 is read
Row = dict[str, Any]


class Unclosed(Exception):
    """A quote is not closed."""


def rows(path: Path, wanted: Sequence[str] = NAMES) -> Iterator[Row | str]:
    """The rows of one file: {column: value} of these columns, or the line itself where it is no row."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, wanted)
    elif ".json" in path.name.lower():
        yield from _json_rows(path, wanted)
    else:
        yield from _csv_rows(path, wanted)


def _open(path: Path, newline: str | None) -> IO[str]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _row(cells: Mapping[str, Any], *, readable: bool) -> Row:
    return dict(cells) if readable else {**cells, BAD_ENCODING: True}


def _shown(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    with pq.ParquetFile(path, coerce_int96_timestamp_unit="us") as file:
        names = [name for name in wanted if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=names):
            columns = [_values(batch.column(name)) for name in names]
            yield from (_parquet_row(names, values) for values in zip(*columns, strict=True))


def _parquet_row(names: Sequence[str], values: Sequence[Any]) -> Row:
    cells = {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value
        for name, value in zip(names, values, strict=True)
    }
    return _row(cells, readable=not any(isinstance(value, bytes) for value in values))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_timestamp(column.type):
        # Nanoseconds would come as pandas' own class; what lies below a microsecond is not kept anywhere.
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    if pa.types.is_float32(column.type):
        column = column.cast(pa.string()).cast(pa.float64())  # 0.1 is meant, not 0.10000000149011612
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    """A value; bytes for text that is no UTF-8, and text that is no moment for one beyond Python's calendar."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes()
    except (OverflowError, ValueError):
        return f"unreadable {scalar.type} {scalar.value}"


class _Heard:
    """The lines of a text, which remembers those that it has given since it was last asked."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines, self.given, self.heard = lines, 0, list[str]()

    def __iter__(self) -> "_Heard":
        return self

    def __next__(self) -> str:
        self.heard.append(next(self.lines))
        return self.heard[-1]

    def take(self) -> str:
        text, self.given = "".join(self.heard), self.given + len(self.heard)
        self.heard.clear()
        return text


def _csv_rows(path: Path, wanted: Sequence[str]) -> Iterator[Row | str]:
    csv.field_size_limit(2**26)
    with _open(path, newline="") as stream:
        lines = _Heard(stream)
        reader = csv.reader(lines)
        try:
            header = next((cells for cells in reader if cells), [])
            places = {name: header.index(name) for name in wanted if name in header}
            begun, line = 0, lines.take()
            for cells in reader:
                begun, line = lines.given, lines.take()
                if cells:
                    yield _csv_row(cells, line, len(header), places)
            if _is_open(line):
                raise _open_quote(path, begun, "the file ends inside a quoted cell")
        except csv.Error as error:
            raise _open_quote(path, lines.given, str(error)) from None


def _csv_row(cells: Sequence[str], line: str, width: int, places: Mapping[str, int]) -> Row | str:
    # Only a quote that is closed in a wrong place lets the last cell end in a line break.
    while len(cells) > width and not cells[-1]:
        cells = cells[:-1]  # commas at the end of the line
    if len(cells) != width or cells[-1].endswith("\n"):
        return _shown(line.rstrip("\r\n"))
    texts = {name: cells[place].replace("\r\n", "\n") for name, place in places.items()}
    stray = any(STRAY.search(text) for text in texts.values())
    return _row({name: _shown(text) for name, text in texts.items()} if stray else texts, readable=not stray)


def _is_open(row: str) -> bool:
    """Whether a row ends inside a quoted cell: then it takes in the row after it."""
    return len(list(csv.reader(StringIO(row + "\nnext", newline="")))) == 1


def _open_quote(path: Path, line: int, said: str) -> Unclosed:
    return Unclosed(f"{path}, after line {line}: {said}")


def _json_rows(path: Path, wanted: Sequence[str]) -> Iterator[Row | str]:
    with _open(path, newline=None) as stream:
        for line in stream:
            if line.strip(WHITE_SPACE):
                yield from (json_row(one, wanted) for one in _several(line.rstrip("\n")))


def _several(line: str) -> list[str]:
    """The objects of a line that holds nothing else, or the line."""
    found, rest = [], line.strip(WHITE_SPACE)
    try:
        while rest:
            value, end = json.JSONDecoder().raw_decode(rest)
            found.append(rest[:end] if isinstance(value, dict) else None)
            rest = rest[end:].strip(WHITE_SPACE)
    except (ValueError, RecursionError):
        return [line]
    return [line] if None in found else found


def json_row(line: str, wanted: Sequence[str]) -> Row | str:
    """The row that a line of JSON says, or the line itself where it is no JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        return _shown(line)
    return _row({name: _scalar(row.get(name)) for name in wanted}, readable=not STRAY.search(line))


def _scalar(value: Any) -> Any:
    """A JSON value as Spark reads it into a column of text."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # JSON can spell half a surrogate pair, UTF-8 cannot
    if isinstance(value, float):
        return _java_number(value)
    return (
        json.dumps(value, ensure_ascii=False, separators=(",", ":")) if isinstance(value, (bool, list, dict)) else value
    )


def _java_number(value: float) -> str:
    """As Java's Double.toString writes it: an item_id that is a number must be the same text in either engine."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return repr(value)
    sign, digits, _ = Decimal(repr(value)).normalize().as_tuple()
    exponent = Decimal(repr(value)).adjusted()
    first, *others = map(str, digits)
    return f"{'-' * sign}{first}.{''.join(others) or '0'}E{exponent}"
