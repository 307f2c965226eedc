"""The rows of parquet files as DuckDB reads them, whatever bytes their text holds."""

import codecs
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from jobs.engines.duckdb_session import literal
from jobs.raw.cells import ABSENT, is_text
from jobs.raw.parquet_layout import ParquetLayout, open_parquet
from jobs.raw.typed import AS_IT_STANDS, CORRUPT, FILE, NUMBER, UNREADABLE, Part

BATCH_ROWS: Final = 2**16
# In text, for each run of bytes that is no UTF-8: noncharacters, of which Unicode says that no text has them.
NO_TEXT: Final = "\ufdd0\U0010fffe\ufdef"
NOT_UTF8: Final = "Invalid string encoding found in Parquet file"  # as DuckDB says it


def _no_text(error: UnicodeError) -> tuple[str, int]:
    """What stands for bytes that are no UTF-8, and where to go on."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return NO_TEXT, error.end


codecs.register_error("no_text", _no_text)


def parquet_part(path: Path, layout: ParquetLayout, file: str) -> Part:
    """The rows of a parquet file. file: an expression of what it is called."""
    columns = [
        "NULL::VARCHAR AS " + name if kind == ABSENT else _named(layout.names[name], name, kind)
        for name, kind in layout.kinds.items()
    ]
    source = f"read_parquet({literal(path)}, hive_partitioning = false)"
    return Part(
        f"SELECT {', '.join(columns)}, NULL::VARCHAR AS {CORRUPT}, FALSE AS {UNREADABLE}, {file} AS {FILE}, "
        f"{AS_IT_STANDS} AS {NUMBER} FROM {source}",
        layout.kinds,
    )


def careful_part(db: duckdb.DuckDBPyConnection, path: Path, layout: ParquetLayout, file: str) -> Part:
    """As parquet_part, of a file whose text may be no UTF-8: Arrow reads it, for DuckDB refuses all of it.

    It takes longer, and those who write parquet see to it that this is rare.
    """
    name = f"raw_{uuid.uuid4().hex}"
    db.register(name, _Batches(path, layout))
    present = [one for one, kind in layout.kinds.items() if kind != ABSENT]
    texts = [one for one in present if is_text(layout.kinds[one])]
    marked = " OR ".join(f"coalesce(contains({one}, {literal(NO_TEXT)}), FALSE)" for one in texts) or "FALSE"
    columns = [
        f"NULL::VARCHAR AS {one}"
        if kind == ABSENT
        else f"replace({one}, {literal(NO_TEXT)}, '\ufffd') AS {one}"
        if is_text(kind)
        else one
        for one, kind in layout.kinds.items()
    ]
    return Part(
        f"SELECT {', '.join(columns)}, NULL::VARCHAR AS {CORRUPT}, {marked} AS {UNREADABLE}, {file} AS {FILE}, "
        f"{AS_IT_STANDS} AS {NUMBER} FROM {name}",
        layout.kinds,
    )


def _named(theirs: str, name: str, kind: str) -> str:
    quoted = '"' + theirs.replace('"', '""') + '"'
    return f"{quoted}::VARCHAR AS {name}" if kind == "null" else f"{quoted} AS {name}"


@dataclass(frozen=True, slots=True)
class _Batches:
    """The rows of a parquet file as a stream of Arrow, begun anew whenever it is asked for."""

    path: Path
    layout: ParquetLayout

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        with open_parquet(self.path) as parquet:
            schema = pa.schema(
                (name, _plain(parquet.schema_arrow.field(theirs).type)) for name, theirs in self.layout.names.items()
            )
        return pa.RecordBatchReader.from_batches(schema, self._rows(schema)).__arrow_c_stream__(requested_schema)

    def _rows(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with open_parquet(self.path) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, columns=list(self.layout.names.values())):
                columns = [_cleaned(batch.column(theirs), schema.field(name).type) for name, theirs in self._names()]
                yield pa.record_batch(columns, schema=schema)

    def _names(self) -> Sequence[tuple[str, str]]:
        return list(self.layout.names.items())


def _plain(kind: pa.DataType) -> pa.DataType:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.large_string() if pa.types.is_string(kind) or pa.types.is_string_view(kind) else kind


def _cleaned(values: pa.Array, kind: pa.DataType) -> pa.Array:
    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    if not pa.types.is_large_string(kind):
        return values
    return _text(values.cast(pa.binary_view() if pa.types.is_string_view(values.type) else pa.large_binary()))


def _text(values: pa.Array) -> pa.Array:
    """Bytes as text, with NO_TEXT. Few are none: halving finds them without a look at each."""
    try:
        return values.cast(pa.large_string())
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.array([values[0].as_py().decode(errors="no_text")], pa.large_string())
    middle = len(values) // 2
    return pa.concat_arrays([_text(values[:middle]), _text(values[middle:])])
