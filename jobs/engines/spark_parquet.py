"""Parquet files as Spark reads them: by its own reader, or by PyArrow in its Python workers where it has none for them.

Spark opens a store by a connector of Hadoop's that is no part of PySpark. PyArrow opens it by the fsspec driver that
the rest of courier uses, so a raw folder in a bucket needs nothing but the Python environment; a cluster that brings
the connector reads by that, which needs no Python workers.
"""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
from pyspark.sql.types import LongType, StringType, StructType

from jobs.engines.spark_session import connector_missing
from jobs.paths import any_path, arrow_source, from_spark, spark_uri
from model.artifact import AnyPath
from model.errors import CourierError

log = structlog.get_logger()

ROW_INDEX: Final = "row_index"  # of a row in its file; 0 is the first
FILE_PATH: Final = "file_path"  # as Spark names it: jobs.paths.from_spark
TASK_BYTES: Final = 128 * 2**20  # of compressed columns: as much as Spark's own reader gives a task
FOOTERS_AT_ONCE: Final = 32  # a store answers in some 50 ms, whoever else asks
BATCH_ROWS: Final = 65_536
STORE_ACCESS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
)


class FileUnreadable(CourierError):
    """A parquet file that a Python worker cannot read to its end."""


@dataclass(frozen=True, slots=True)
class Times:
    """Rows of interest by a column of moments: those in [start, end), or, `outside`, the others and unknown ones."""

    column: str
    start: datetime
    end: datetime
    outside: bool = False

    def condition(self) -> Column:
        """The same in Spark's words."""
        at = F.col(self.column)
        if self.outside:
            return at.isNull() | (at < self.start) | (at >= self.end)
        return (at >= self.start) & (at < self.end)

    def may_hold(self, group: pq.RowGroupMetaData) -> bool:
        """Whether a row group may hold such rows, by its statistics."""
        columns = (group.column(place) for place in range(group.num_columns))
        found = next((one.statistics for one in columns if one.path_in_schema == self.column), None)
        if found is None or not found.has_min_max or not found.has_null_count:
            return True
        if self.outside:
            return bool(found.null_count or found.min < self.start or found.max >= self.end)
        return bool(found.max >= self.start and found.min < self.end)


class Piece(NamedTuple):
    """A row group of a file: the file's URL, the group, the place of its first row in the file, its bytes."""

    url: str
    group: int
    first: int
    size: int


def read_parquet(
    spark: SparkSession, files: Sequence[AnyPath], columns: Sequence[str] | None = None, times: Times | None = None
) -> DataFrame:
    """The rows of parquet files of one schema, with FILE_PATH and ROW_INDEX.

    columns: those that are wanted; None for all.  times: the rows that are wanted; row groups that cannot hold any are
    not read.  Raises CourierError where a file's footer cannot be read.
    """
    missing = connector_missing(spark, files[0])
    if missing is None:
        read = _by_spark(spark, files, columns)
    else:
        log.info("spark_reads_by_pyarrow", files=len(files), why=missing)
        read = _by_pyarrow(spark, files, columns, times)
    return read.filter(times.condition()) if times else read


def _by_spark(spark: SparkSession, files: Sequence[AnyPath], columns: Sequence[str] | None) -> DataFrame:
    # Spark takes a path for a pattern.
    uris = [re.sub(r"([\[\]{}*?\\])", r"\\\1", spark_uri(file)) for file in files]
    place = [F.col("_metadata.file_path").alias(FILE_PATH), F.col("_metadata.row_index").alias(ROW_INDEX)]
    return spark.read.parquet(*uris).select(*(columns or "*"), *place)


def _by_pyarrow(
    spark: SparkSession, files: Sequence[AnyPath], columns: Sequence[str] | None, times: Times | None
) -> DataFrame:
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        footers = list(pool.map(_footer, files))
    pieces = [piece for file, footer in zip(files, footers, strict=True) for piece in _pieces(file, footer, times)]
    kinds = from_arrow_schema(footers[0].schema.to_arrow_schema(), prefer_timestamp_ntz=True)
    names = list(columns or kinds.names)
    schema = StructType([kinds[name] for name in names])
    schema = schema.add(FILE_PATH, StringType(), False).add(ROW_INDEX, LongType(), False)
    tasks = min(len(pieces), max(spark.sparkContext.defaultParallelism, sum(one.size for one in pieces) // TASK_BYTES))
    if not tasks:
        return spark.createDataFrame([], schema)
    arrow = to_arrow_schema(schema, timezone="UTC")

    # What Spark hands on to its own connector's workers, too (SparkHadoopUtil), and the region.
    spark.sparkContext.environment.update({name: os.environ[name] for name in STORE_ACCESS if name in os.environ})

    def read(places: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in places:
            for place in batch.column(0).to_pylist():
                yield from _batches(pieces[place], names, arrow)

    return spark.range(0, len(pieces), 1, tasks).mapInArrow(read, schema)


def _footer(file: AnyPath) -> pq.FileMetaData:
    source, store = arrow_source(file)
    try:
        return pq.read_metadata(source, filesystem=store)
    except (pa.ArrowException, OSError) as error:
        raise FileUnreadable(f"{file} is not a readable parquet file ({error}): write it again") from None


def _pieces(file: AnyPath, footer: pq.FileMetaData, times: Times | None) -> Iterator[Piece]:
    first = 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        if times is None or times.may_hold(group):
            size = sum(group.column(place).total_compressed_size for place in range(group.num_columns))
            yield Piece(str(file), number, first, size)
        first += group.num_rows


def _batches(piece: Piece, names: Sequence[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    # In a worker: a row group, some rows at a time.
    file, first = any_path(piece.url), piece.first
    source, store = arrow_source(file)
    path = quote(spark_uri(file), safe=":/")
    try:
        with pq.ParquetFile(source, filesystem=store) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[piece.group], columns=list(names)):
                rows = len(batch)
                kept = [batch.column(name) for name in names]
                place = [pa.repeat(path, rows), pa.array(range(first, first + rows), pa.int64())]
                yield pa.Table.from_arrays([*kept, *place], [*names, FILE_PATH, ROW_INDEX]).cast(schema).to_batches()[0]
                first += rows
    except (pa.ArrowException, OSError) as error:
        said = str(error).partition("\n")[0]
        raise FileUnreadable(f"{from_spark(path)} is damaged or cut short ({said}): write it again") from None
