"""Write a frame as a folder of parquet parts whose names and bytes depend on its rows alone."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.engines.spark_session import spark_place
from jobs.paths import arrow_source
from model.artifact import AnyPath

# Spark packs nothing, for every part is written again.
RAW: Final = {"compression": "uncompressed", "parquet.enable.dictionary": "false"}


def write_parts(
    frame: DataFrame, folder: AnyPath, *, by: Sequence[str], then: Sequence[str] = (), placed: bool = False
) -> None:
    """Write the frame to `folder`: rows that agree in `by` in one part, each part sorted by `by` and `then`.

    `by` and `then` together must order the rows fully. There are spark.sql.shuffle.partitions parts; empty ones go.
    placed: whether the rows lie so already: as of by_hash, and sorted.
    """
    rows = frame if placed else _placed(frame, by).sortWithinPartitions(*by, *then)
    rows.write.mode("errorifexists").options(**RAW).parquet(spark_place(frame.sparkSession, folder))
    _settle_all(folder)


def write_parts_apart(
    frame: DataFrame, folder: AnyPath, *, apart: str, by: Sequence[str], then: Sequence[str] = ()
) -> None:
    """Write the rows of each value of the column `apart` to a folder of their own, `folder`/APART=VALUE.

    The column itself is left out. In each such folder lies what write_parts would write of its rows alone.
    """
    placed = _placed(frame, by).sortWithinPartitions(apart, *by, *then)
    place = spark_place(frame.sparkSession, folder)
    placed.write.mode("errorifexists").options(**RAW).partitionBy(apart).parquet(place)
    for path in folder.glob(f"{apart}=*"):
        _settle_all(path)


def _placed(frame: DataFrame, by: Sequence[str]) -> DataFrame:
    # By a struct of the columns, whose hash is the same: by the columns themselves, Spark leaves the shuffle out after
    # an aggregation by them, and merges that one's partitions where they happen to be small.
    return by_hash(frame, F.struct(*by))


def by_hash(frame: DataFrame, key: str | Column) -> DataFrame:
    """The rows in as many partitions as a table has parts, by the hash of the key: row by row as write_parts does."""
    # By hash, not by range: ranges come from a sample, and a sample from the order in which rows happened to arrive.
    return frame.repartition(int(frame.sparkSession.conf.get("spark.sql.shuffle.partitions") or "8"), key)


def _settle_all(folder: AnyPath) -> None:
    with ThreadPoolExecutor() as pool:  # pyarrow works outside Python's lock
        list(pool.map(_settle, sorted(folder.iterdir(), key=str)))


def _settle(part: AnyPath) -> None:
    """Put the same rows in the part's place under a name without Spark's random job id; remove what is no part."""
    if part.name[0] not in "._":  # Spark's checksums and its marker would no longer fit
        _write_again(part)
    part.unlink()


def _write_again(part: AnyPath) -> None:
    # Spark's footers list a column's encodings in the order of a hash set: another one in every Java process.
    settled = part.with_name("-".join(part.name.split("-")[:2]) + ".parquet")
    (there, files), (then, _) = arrow_source(part), arrow_source(settled)
    with pq.ParquetFile(there, filesystem=files) as source:
        schema = pa.schema([_nullable(field) for field in source.schema_arrow])
        with pq.ParquetWriter(then, schema, filesystem=files) as sink:
            for group in range(source.num_row_groups):
                sink.write_table(source.read_row_group(group).cast(schema))


def _nullable(field: pa.Field) -> pa.Field:
    """The field as one that may be null: whether Spark knows that it is not depends on how the rows came about."""
    kind = field.type
    if pa.types.is_list(kind):
        kind = pa.list_(_nullable(kind.value_field))
    elif pa.types.is_struct(kind):
        kind = pa.struct([_nullable(inner) for inner in kind])
    return pa.field(field.name, kind)
