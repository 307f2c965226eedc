"""The columns of a parquet file: which of them are the contract's, and of what types."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contract import Column
from jobs.paths import arrow_source
from jobs.raw.cells import ABSENT
from jobs.raw.columns import COLUMNS, NEEDED, Names, placed
from jobs.raw.folder import RawTableUnusable
from model.artifact import AnyPath

WANTED: Final = {"str": "text", "int": "a whole number", "float": "a number", "timestamp": "a timestamp"}


@dataclass(frozen=True, slots=True)
class ParquetLayout:
    """kinds: the type of each of the contract's columns, ABSENT for one that is not there; names: how the file calls
    those that are.  rows: how many there are.  codecs: how they are compressed.
    """

    kinds: Mapping[str, str]
    names: Mapping[str, str]
    rows: int
    codecs: frozenset[str]


def parquet_layout(
    path: AnyPath, file: AnyPath, table: str, names: Names, told: Mapping[str, str | None]
) -> ParquetLayout:
    """What a parquet file of a table says of itself.

    path: where it lies.  file: what it is called.  told: columns that its folders' names tell.
    Raises RawTableUnusable.
    """
    with open_parquet(path, file) as parquet:
        present = parquet.schema_arrow.names
        needed = [name for name in NEEDED[table] if name not in told]
        theirs = {name: present[place] for name, place in placed(file, table, present, names, needed).items()}
        kinds = {
            column.name: _kind(file, parquet, column, theirs[column.name]) if column.name in theirs else ABSENT
            for column in COLUMNS[table]
        }
        facts = parquet.metadata
        codecs = {
            facts.row_group(group).column(place).compression
            for group in range(facts.num_row_groups)
            for place in range(facts.num_columns)
        }
        return ParquetLayout(kinds, theirs, facts.num_rows, frozenset(codecs))


def rows_in(path: AnyPath, file: AnyPath) -> int:
    """How many rows a parquet file has. path: where it lies.  file: what it is called.  Raises RawTableUnusable."""
    with open_parquet(path, file) as parquet:
        return int(parquet.metadata.num_rows)


def open_parquet(path: AnyPath, file: AnyPath | None = None) -> pq.ParquetFile:
    """A parquet file, its footer read. file: what it is called, if not by its path.  Raises RawTableUnusable."""
    source, files = arrow_source(path)
    called = file or path
    try:
        # Of nanoseconds, which INT96 is read as otherwise, there are too few for the years before 1677 and after 2262.
        return pq.ParquetFile(source, filesystem=files, coerce_int96_timestamp_unit="us")
    except PermissionError as error:
        raise PermissionError(error.errno, "Permission denied", str(called)) from None
    except (pa.ArrowException, OSError) as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise RawTableUnusable(f"{called} is not a readable parquet file ({said}): write it again") from None


def _kind(file: AnyPath, parquet: pq.ParquetFile, column: Column, name: str) -> str:
    kind = parquet.schema_arrow.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_timestamp(kind) and column.kind == "timestamp":
        if _is_int96(parquet, name):
            return "int96"  # Hive's and old Spark's instants, in UTC by definition
        if kind.tz is None:
            raise RawTableUnusable(
                f"{file}: column {name} has no time zone, so its moments are not known: write it as UTC"
            )
        return f"timestamp[{kind.unit}, tz=UTC]"
    if not _fits(kind, column.kind):
        cure = _cure(parquet, column, name, kind)
        raise RawTableUnusable(f"{file}: column {name} is {kind}, not {WANTED[column.kind]}: {cure}")
    return "string" if pa.types.is_string_view(kind) else str(kind)


def _is_int96(parquet: pq.ParquetFile, name: str) -> bool:
    schema = parquet.schema
    return any(schema.column(i).path == name and schema.column(i).physical_type == "INT96" for i in range(len(schema)))


def _fits(kind: pa.DataType, wanted: str) -> bool:
    is_view = pa.types.is_string_view(kind)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_view or pa.types.is_null(kind)
    floating = pa.types.is_floating(kind) and not pa.types.is_float16(kind)
    number = pa.types.is_integer(kind) or floating or pa.types.is_decimal(kind)
    if wanted == "str":
        return bool(text or pa.types.is_integer(kind))
    return bool(text or (number and wanted in ("int", "float")))


def _cure(parquet: pq.ParquetFile, column: Column, name: str, kind: pa.DataType) -> str:
    if column.kind != "timestamp" or not pa.types.is_integer(kind):
        return "cast it"
    unit = _unit(parquet, name)
    return f"write it as one, for example with pandas.to_datetime({name}, unit='{unit}', utc=True)"


def _unit(parquet: pq.ParquetFile, name: str) -> str:
    """The unit in which a column of whole numbers can be moments of our time, by its greatest one."""
    facts, schema = parquet.metadata, parquet.schema
    place = next(i for i in range(len(schema)) if schema.column(i).path == name)
    found = [facts.row_group(group).column(place).statistics for group in range(facts.num_row_groups)]
    greatest = max((one.max for one in found if one is not None and one.has_min_max), default=0)
    bounds = ((10**11, "s"), (10**14, "ms"), (10**17, "us"))
    return next((unit for bound, unit in bounds if greatest < bound), "ns")
