"""The rows of a canonical table as plain Python, for Beam."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa

from jobs.raw.columns import COLUMNS
from jobs.raw.folder import RawTableUnusable
from jobs.raw.parquet_layout import open_parquet
from jobs.raw.typed import REASON, ROW
from jobs.rules.events import BAD_ENCODING
from model.artifact import AnyPath

BATCH_ROWS: Final = 4096

# Of the contract's columns; REASON and ROW where it was ingested and is of no use; BAD_ENCODING, true, where bytes of
# the row are no UTF-8.
Row = dict[str, Any]


def rows(path: AnyPath, table: str) -> Iterator[Row]:
    """The rows of one file of a canonical table, in order. Raises RawTableUnusable for a file that proves damaged."""
    with open_parquet(path) as file:
        wanted = [*(column.name for column in COLUMNS[table]), REASON, ROW]
        names = [name for name in wanted if name in file.schema_arrow.names]
        try:
            for batch in file.iter_batches(BATCH_ROWS, columns=names):
                columns = [_values(batch.column(name)) for name in names]
                yield from (_row(names, values) for values in zip(*columns, strict=True))
        except (pa.ArrowException, OSError) as error:
            said = str(error).partition("\n")[0].rstrip(".")
            raise RawTableUnusable(f"{path} is damaged ({said}): write it again") from None


def _row(names: Sequence[str], values: Sequence[Any]) -> Row:
    row = {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value
        for name, value in zip(names, values, strict=True)
    }
    return row | {BAD_ENCODING: True} if any(isinstance(value, bytes) for value in values) else row


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
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
