"""The rows of raw files as Arrow record batches, whatever bytes they hold: text, and parquet whose text is none."""

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import IO, Final

import pyarrow as pa
import pyarrow.csv as pc

from jobs.raw import layout as raw_layout
from jobs.raw.folder import RawTableUnusable
from model.artifact import AnyPath

CORRUPT: Final = "_corrupt_record"  # the line itself, where it is no row; else null
FILE: Final = "_file"
LINE: Final = "_line"
# In text, for each run of bytes that is no UTF-8: noncharacters, of which Unicode says that no text has them.
NO_TEXT: Final = "\ufdd0\U0010fffe\ufdef"

LONGEST: Final = 2**25  # bytes of a row; as much is read at a time
BATCH_ROWS: Final = 2**16
NOT_IN_JSON: Final = "\x01"  # a line with this control character is no JSON


def _no_text(error: UnicodeError) -> tuple[str, int]:
    """What stands for bytes that are no UTF-8, once for as many as Java writes one U+FFFD for; and where to go on."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    half_pair = error.object[error.start : error.start + 3]  # of surrogates; Python takes its three bytes one by one
    is_half = half_pair[:1] == b"\xed" and len(half_pair) == 3 and all(0x80 <= byte < 0xC0 for byte in half_pair[1:])
    return NO_TEXT, error.start + 3 if is_half else error.end


codecs.register_error("no_text", _no_text)


@dataclass(frozen=True, slots=True)
class Batches:
    """The rows of files as a stream of Arrow, begun anew whenever it is asked for.

    rows: the rows of a file, in some columns of `schema`; the others are null, but FILE. It raises RawTableUnusable.
    """

    schema: pa.Schema
    files: Sequence[AnyPath]
    rows: Callable[[AnyPath], Iterator[pa.RecordBatch]]

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The rows from the first one on, for whoever speaks Arrow's C stream interface."""
        return pa.RecordBatchReader.from_batches(self.schema, self._batches()).__arrow_c_stream__(requested_schema)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for file in self.files:
            for batch in self.rows(file):
                for start in range(0, len(batch), BATCH_ROWS):
                    yield self._whole(batch.slice(start, BATCH_ROWS), file)

    def _whole(self, batch: pa.RecordBatch, file: AnyPath) -> pa.RecordBatch:
        found = dict(zip(batch.schema.names, batch.columns, strict=True))
        found[FILE] = pa.repeat(pa.scalar(str(file.absolute())), len(batch))
        columns = [found[one.name] if one.name in found else pa.nulls(len(batch), one.type) for one in self.schema]
        return pa.record_batch(columns, schema=self.schema)


def _texts(*names: str) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


# --- text -----------------------------------------------------------------------------------------------------------


def csv_rows(files: Sequence[AnyPath], columns: Sequence[str], wanted: Sequence[str]) -> Batches:
    """The rows of CSV files of these columns: `wanted`, null where nothing stands; CORRUPT, FILE."""
    options = pc.ParseOptions(newlines_in_values=True)
    return Batches(_texts(*wanted, CORRUPT, FILE), files, lambda file: _read(file, columns, wanted, options, head=1))


def lines(files: Sequence[AnyPath]) -> Batches:
    """The lines of text files but the empty ones: LINE, or CORRUPT for one with NOT_IN_JSON; FILE."""
    options = pc.ParseOptions(delimiter=NOT_IN_JSON, quote_char=False)
    return Batches(_texts(LINE, CORRUPT, FILE), files, lambda file: _read(file, [LINE], [LINE], options, head=0))


def _read(
    file: AnyPath, columns: Sequence[str], wanted: Sequence[str], options: pc.ParseOptions, head: int
) -> Iterator[pa.RecordBatch]:
    """The rows of a text file in the columns `wanted`, and in CORRUPT what is no row; without the first `head` rows."""
    broken: SimpleQueue[str] = SimpleQueue()  # Arrow reads ahead in a thread of its own

    def keep(row: pc.InvalidRow) -> str:
        broken.put(row.text)
        return "skip"

    def kept() -> pa.RecordBatch:
        return pa.record_batch({CORRUPT: pa.array([broken.get() for _ in range(broken.qsize())], pa.string())})

    options.invalid_row_handler = keep
    convert = pc.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()),
        include_columns=list(wanted),
        check_utf8=False,  # _Utf8 gives nothing else
        strings_can_be_null=True,
        null_values=[""],
        quoted_strings_can_be_null=False,
    )
    try:
        with raw_layout.open_bytes(file) as stream:
            opened = pc.open_csv(
                _Utf8(stream), pc.ReadOptions(column_names=columns, block_size=LONGEST), options, convert
            )
            for batch in opened:
                yield batch.slice(head)
                head -= min(head, len(batch))
                yield kept()
            yield kept()
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise raw_layout.cut_short(file) from None
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
        raise RawTableUnusable(f"{file} has a row of more than {LONGEST:,} bytes: look for an unclosed quote") from None


@dataclass(slots=True)
class _Utf8:
    """A stream of UTF-8 whose last line ends, so that a quoted cell that nothing closes ends in a line break."""

    stream: IO[bytes]
    rest: bytes = b""  # the beginning of a character whose end has not been read
    ended: bool = False
    closed: bool = False

    def read(self, size: int) -> bytes:
        """Up to about `size` bytes; none at the end."""
        while True:
            read = self.stream.read(size)
            data = self.rest + read
            text, length = codecs.utf_8_decode(data, "no_text", not read)
            self.rest = data[length:]
            if text:
                self.ended = text.endswith(("\n", "\r"))
                return text.encode()
            if not read:
                closing, self.ended = b"" if self.ended else b"\n", True
                return closing

    def close(self) -> None:
        """Leave the stream to whoever has opened it."""
        self.closed = True


# --- parquet --------------------------------------------------------------------------------------------------------


def parquet_rows(files: Sequence[AnyPath], wanted: Sequence[str]) -> Batches:
    """The rows of parquet files that have the columns `wanted` of the same types: these; FILE."""
    with raw_layout.open_parquet(files[0]) as parquet:
        kinds = {name: _plain(parquet.schema_arrow.field(name).type) for name in wanted}

    def rows(file: AnyPath) -> Iterator[pa.RecordBatch]:
        with raw_layout.open_parquet(file) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, columns=list(wanted)):
                yield pa.record_batch({name: _cleaned(batch.column(name), kind) for name, kind in kinds.items()})

    return Batches(pa.schema([*kinds.items(), (FILE, pa.string())]), files, rows)


def _plain(kind: pa.DataType) -> pa.DataType:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.large_string() if pa.types.is_string(kind) else kind


def _cleaned(values: pa.Array, kind: pa.DataType) -> pa.Array:
    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    return _text(values.cast(pa.large_binary())) if pa.types.is_large_string(kind) else values


def _text(values: pa.Array) -> pa.Array:
    """Bytes as text, with NO_TEXT. Few are none: halving finds them without a look at each."""
    try:
        return values.cast(pa.large_string())
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.array([values[0].as_py().decode(errors="no_text")], pa.large_string())
    middle = len(values) // 2
    return pa.concat_arrays([_text(values[:middle]), _text(values[middle:])])
