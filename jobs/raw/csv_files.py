"""Delimited text as DuckDB reads it: the dialect of a file, its rows as text, and what of it is no row."""

import csv
import re
import uuid
from collections import deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from itertools import count
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any, Final

import duckdb

from feature_repo.contract import EVENT_TYPES
from jobs.engines.duckdb_session import literal
from jobs.raw.columns import COLUMNS, NEEDED, Names, known, placed
from jobs.raw.folder import RawTableUnusable
from jobs.rules.events import BAD_ENCODING, BAD_ROW, LOCAL_MOMENT
from model.artifact import AnyPath

SAMPLED: Final = 2**18  # bytes of a text file that are looked at: about a thousand lines
PREAMBLE: Final = 100  # lines that may stand before the header
LEAST_KNOWN: Final = 2  # columns of ours by which a line that is not the first is known to be the header
BAD_LINES: Final = 10  # one line in so many may hold bytes that are no UTF-8; with more, the whole file is not
LONGEST: Final = 2**25  # bytes of a row
MOST_BROKEN: Final = 1_000_000  # lines of a file that may be no rows: they are held in memory
DELIMITERS: Final = (",", ";", "\t", "|")
csv.field_size_limit(LONGEST)  # its own of 128 kB refuses what DuckDB reads
LINE_END: Final = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file of rows is written. escape: what lets a quote stand inside of quotes; quote: empty where none is."""

    delimiter: str = ","
    quote: str = '"'
    escape: str = '"'


@dataclass(frozen=True, slots=True)
class CsvLayout:
    """What a file says of itself. before: lines before the header.  header: its cells.  places: our columns' in it."""

    dialect: Dialect
    before: int
    header: tuple[str, ...]
    places: dict[str, int]


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that is no row: the number of its row in the file, why, the line, and whether a quote is wrong in it."""

    number: int
    reason: str
    text: str
    by_quote: bool = False


def csv_layout(path: Path, file: AnyPath, table: str, names: Names, told: Container[str] = ()) -> CsvLayout:
    """How the file is written, and its columns.

    path: where its plain bytes lie.  told: columns that need not be there.  Raises RawTableUnusable.
    """
    with path.open("rb") as stream:
        head = stream.read(SAMPLED)
    lines = _sampled_lines(file, head, whole=len(head) < SAMPLED)
    before, delimiter = _before_header(lines)
    text = [line.decode("utf-8-sig" if not number else "utf-8", "surrogateescape") for number, line in enumerate(lines)]
    delimiters = [delimiter] if delimiter else list(DELIMITERS)
    best, header = _header(table, text[before:], delimiters, names)
    if known(table, header, names) < LEAST_KNOWN:  # a title may stand before it, or a mark of a comment
        for number, line in enumerate(text[:PREAMBLE]):
            other, cells = _header(table, [line.lstrip("# ")], delimiters, names)
            if known(table, cells, names) >= LEAST_KNOWN:
                before, best, header = number, other, cells
                break
    rest = text[before:]
    quote = "'" if header and all(re.fullmatch("'.*'", cell) for cell in header) else '"'
    header = header if quote == '"' else _cells(rest, best, quote)
    if not all(_is_utf8(cell.encode(errors="surrogateescape")) for cell in header):
        raise _not_utf8(file, before + 1)
    _refuse_other_forms(file, header, table, names)
    places = placed(file, table, header, names, [name for name in NEEDED[table] if name not in told])
    return CsvLayout(Dialect(best, quote, quote), before, tuple(header), places)


def _sampled_lines(file: AnyPath, head: bytes, *, whole: bool) -> list[bytes]:
    lines = LINE_END.split(head)
    if not whole and len(lines) > 1:
        lines = lines[:-1]  # the last one goes on
    if lines and b"\0" in lines[0]:
        raise RawTableUnusable(
            f"{file} is not UTF-8 text but UTF-16 without a mark or no text at all, as NUL bytes show: save it as UTF-8"
        )
    bad = [number for number, line in enumerate(lines, start=1) if not _is_utf8(line)]
    if len(bad) * BAD_LINES > len(lines):
        raise _not_utf8(file, bad[0])
    return lines


def _before_header(lines: Sequence[bytes]) -> tuple[int, str | None]:
    """How many lines stand before the header, and the delimiter where one of them names it, as Excel reads it."""
    delimiter = None
    for number, line in enumerate(lines[:PREAMBLE]):
        said = re.fullmatch(rb"(?:\xef\xbb\xbf)?[sS][eE][pP]=(.)", line.strip(b" "))
        if said is not None:
            delimiter = said[1].decode("latin-1")
        elif line.strip() not in (b"", b"\xef\xbb\xbf") and not line.startswith(b"#"):
            return number, delimiter
    return 0, delimiter


def _header(table: str, lines: Sequence[str], delimiters: Sequence[str], names: Names) -> tuple[str, list[str]]:
    """The delimiter by which most of the contract's columns are found in the first row, and its cells."""
    found = {one: _cells(lines, one) for one in delimiters}
    best = max(found, key=lambda one: known(table, found[one], names))
    return best, found[best]


def _cells(lines: Sequence[str], delimiter: str, quote: str = '"') -> list[str]:
    text = StringIO("\n".join(lines), newline="")
    try:
        return next((row for row in csv.reader(text, delimiter=delimiter, quotechar=quote) if row), [])
    except csv.Error:  # a cell that ends nowhere
        return []


def _refuse_other_forms(file: AnyPath, header: Sequence[str], table: str, names: Names) -> None:
    columns = [column.name for column in COLUMNS[table]]
    if header and header[0].lstrip().startswith(("{", "[")):
        raise RawTableUnusable(f"{file} holds JSON, not CSV: name it .jsonl")
    if not known(table, header, names) and any(map(_is_value, header)):
        raise RawTableUnusable(f"{file} has no header: let its first line be {','.join(columns)}")


def _is_value(cell: str) -> bool:
    return cell in EVENT_TYPES or bool(re.match(LOCAL_MOMENT, cell) or re.fullmatch(r"-?\d+(\.\d*)?", cell))


def _not_utf8(file: AnyPath, line: int) -> RawTableUnusable:
    return RawTableUnusable(f"{file} is not UTF-8 text (see line {line}; perhaps it is Latin-1): save it as UTF-8")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scan:
    """A reading of a text file by DuckDB. query: its rows, each column as text.  rejects: the table of what is none."""

    query: str
    rejects: str

    def broken(self, db: duckdb.DuckDBPyConnection) -> list[Broken]:
        """What was no row, in order, once the query has run; no more than MOST_BROKEN."""
        rows = db.execute(
            "SELECT line, bool_or(error_type <> 'INVALID ENCODING'), any_value(csv_line), "
            f"bool_or(error_type = 'UNQUOTED VALUE') FROM {self.rejects} "
            f"GROUP BY line ORDER BY line LIMIT {MOST_BROKEN}"
        ).fetchall()
        return [
            Broken(line, BAD_ROW if bad_row else BAD_ENCODING, text or "", by_quote)
            for line, bad_row, text, by_quote in rows
        ]

    def forget(self, db: duckdb.DuckDBPyConnection) -> None:
        """Drop what was kept of the rejected lines."""
        db.execute(f"DROP TABLE IF EXISTS {self.rejects}; DROP TABLE IF EXISTS {self.rejects}_scans")


def csv_scan(path: Path, layout: CsvLayout) -> Scan:
    """The rows of a CSV file as a query of the contract's columns, those that are not there null."""
    width = len(layout.header)
    columns = ", ".join(f"'c{place}': 'VARCHAR'" for place in range(width))
    dialect = layout.dialect
    return text_scan(
        path,
        f"delim = {literal(dialect.delimiter)}, quote = {literal(dialect.quote)}, escape = {literal(dialect.escape)}, "
        f"header = true, skip = {layout.before}, columns = {{{columns}}}",
    )


def text_scan(path: Path, options: str) -> Scan:
    """The lines of a text file, read with these options of DuckDB's read_csv."""
    rejects = f"rejects_{uuid.uuid4().hex}"
    # Nothing is guessed: what DuckDB's sniffer makes of a small or odd file is not what stands in its header.
    query = (
        f"read_csv({literal(path)}, auto_detect = false, strict_mode = true, store_rejects = true, rejects_limit = 0, "
        f"rejects_table = '{rejects}', rejects_scan = '{rejects}_scans', max_line_size = {LONGEST}, "
        f"buffer_size = {LONGEST}, "  # a thread has one at a time; DuckDB's own are sixteen times the longest line
        f"compression = 'none', {options})"
    )
    return Scan(query, rejects)


def is_mixed(error: duckdb.Error) -> bool:
    """Whether DuckDB failed over a file whose lines do not all end alike."""
    return "state machine reached an invalid state" in str(error)


def other_dialects(path: Path, layout: CsvLayout, broken: Sequence[Broken]) -> list[CsvLayout]:
    """Ways in which the file at `path` may have been written, where as it was read some lines are no rows."""
    dialect, texts = layout.dialect, [one.text for one in broken]
    others = []
    if any("\\" + dialect.quote in text for text in texts):  # Spark's and MySQL's way
        others.append(replace(dialect, escape="\\"))
    loose = any(dialect.quote in text for text in texts)
    if dialect.delimiter in "\t|" and loose and not _quotes_cells(path, dialect):  # as Hive and COPY write text
        others.append(replace(dialect, quote="", escape=""))
    return [replace(layout, dialect=one) for one in others]


def _quotes_cells(path: Path, dialect: Dialect) -> bool:
    """Whether some cell of the file stands between quotes."""
    quote, delimiter = re.escape(dialect.quote.encode()), re.escape(dialect.delimiter.encode())
    cell = rb"(?:^|[\r\n]|%b)%b[^\r\n%b]*%b(?:[\r\n]|%b|$)" % (delimiter, quote, delimiter, quote, delimiter)
    with path.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
        return re.search(cell, data) is not None


def has_loose_quotes(broken: Sequence[Broken]) -> bool:
    """Whether some of these lines are broken by a quote: then DuckDB may have taken others for a part of them."""
    return any(one.by_quote or LINE_END.search(one.text.encode(errors="replace")) for one in broken)


def without_broken(path: Path, aside: Path, layout: CsvLayout) -> list[Broken]:
    """Write what of a file are rows to `aside`, and return every other line: row by row, so that none costs another.

    It takes longer than DuckDB, and is only needed where quotes are wrong.
    """
    broken, number = [], 0
    with (
        path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream,
        aside.open("w", encoding="utf-8", errors="surrogateescape", newline="") as whole,
    ):
        lines = _Lines(stream)
        whole.writelines(lines.take(layout.before))
        whole.writelines(lines.take(max(1, _row_length(lines, layout))))
        while line := lines.peek():
            if not line.strip("\r\n"):
                lines.take(1)
                continue
            number += 1
            length = _row_length(lines, layout)
            if length:
                whole.writelines(lines.take(length))
            else:
                broken.append(Broken(number, BAD_ROW, lines.take(1)[0].rstrip("\r\n")))
                if len(broken) == MOST_BROKEN:
                    break
    return broken


@dataclass(slots=True)
class _Lines:
    """The lines of a stream, of which some that are still to come can be looked at."""

    stream: IO[str]
    ahead: deque[str] = field(default_factory=deque)

    def peek(self) -> str:
        """The next line; empty at the end."""
        return next(self.coming(), "")

    def coming(self) -> Iterator[str]:
        """The lines to come, of LONGEST bytes in all."""
        seen = 0
        for place in count():
            if place == len(self.ahead):
                self.ahead.append(self.stream.readline())
            seen += len(self.ahead[place])
            if not self.ahead[place] or seen > LONGEST:
                return
            yield self.ahead[place]

    def take(self, number: int) -> list[str]:
        """The next lines, which are no longer to come."""
        return [self.ahead.popleft() if self.ahead else self.stream.readline() for _ in range(number)]


def _row_length(lines: _Lines, layout: CsvLayout) -> int:
    """How many lines the next row has; 0 where the next line is no row, nor the beginning of one."""
    dialect, first = layout.dialect, lines.peek()
    if not dialect.quote or dialect.quote not in first:
        return int(first.rstrip("\r\n").count(dialect.delimiter) + 1 == len(layout.header))
    reader: Any = csv.reader(
        lines.coming(),
        delimiter=dialect.delimiter,
        quotechar=dialect.quote,
        doublequote=dialect.escape == dialect.quote,
        escapechar=None if dialect.escape == dialect.quote else dialect.escape,
        strict=True,
    )
    try:
        cells = next(reader)
    except csv.Error:
        return 0
    return int(reader.line_num) if len(cells) == len(layout.header) else 0
