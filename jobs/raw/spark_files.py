"""The files of a raw table as Spark frames of the contract's columns, still as they were read."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Final

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from jobs.paths import from_spark, spark_uri
from jobs.raw import layout as raw_layout
from jobs.raw.folder import RawTableUnusable, TableFiles
from model.artifact import AnyPath

CORRUPT: Final = "_corrupt_record"  # the line itself, where it is no row; else null
UNREADABLE: Final = "_bad_encoding"  # whether bytes of the row are not UTF-8
FILE: Final = "_file"

BYTES: Final = "ISO-8859-1"  # as characters, one for each byte
UNCOMMON: Final = r'^"(NaN|-?Infinity)"$'  # as Spark hands on what JSON, strictly, has no number for


def parts(spark: SparkSession, table: TableFiles) -> list[DataFrame]:
    """The table's files as frames, one for each layout among them: the contract's columns, CORRUPT, UNREADABLE, FILE.

    A column that need not be there and is not is null. Raises RawTableUnusable.
    """
    raw_layout.check(table)
    read = {"parquet": _parquet_parts, "csv": _csv_parts, "jsonl": _jsonl_parts}[table.format]
    return [_marked(part) for part in read(spark, table)]


@contextmanager
def damage_named() -> Iterator[None]:
    """Turn Spark's failure over a file that proves damaged while it is read into one RawTableUnusable."""
    try:
        yield
    except (Py4JJavaError, PySparkException) as error:
        found = re.search(r"\[FAILED_READ_FILE[^\]]*\][^\n]*?([a-z][a-z0-9+.-]*:/\S+?)\.? ", str(error) + " ")
        if found is None:
            raise
        raise RawTableUnusable(
            f"{from_spark(found[1])} is damaged or cut short, Spark cannot read it to its end: write it again"
        ) from None


def _names(table: TableFiles) -> list[str]:
    return [column.name for column in raw_layout.COLUMNS[table.name]]


def _marked(part: DataFrame) -> DataFrame:
    texts = [name for name, kind in part.dtypes if kind == "string" and name not in (CORRUPT, FILE)]
    bad = (F.coalesce(~F.is_valid_utf8(name), F.lit(False)) for name in texts)  # apart: joining them cost more
    unreadable = reduce(Column.__or__, bad, F.col(UNREADABLE))
    return part.withColumns({UNREADABLE: unreadable, CORRUPT: F.make_valid_utf8(CORRUPT)})


def _uris(files: Sequence[AnyPath]) -> list[str]:
    return [re.sub(r"([\[\]{}*?\\])", r"\\\1", spark_uri(file)) for file in files]  # Spark takes a path for a pattern


def _file() -> Column:
    return F.col("_metadata.file_path").alias(FILE)


# --- CSV ------------------------------------------------------------------------------------------------------------


def _csv_parts(spark: SparkSession, table: TableFiles) -> Iterator[DataFrame]:
    for header, group in raw_layout.grouped(table, raw_layout.csv_header).items():
        # Other columns of the file are named by their place, so that theirs may be the same or empty.
        columns = [name if name in _names(table) else f"_{place}" for place, name in enumerate(header)]
        schema = T.StructType([T.StructField(name, T.StringType()) for name in (*columns, CORRUPT)])
        # As UTF-8, Spark would put U+FFFD for a byte that is none, and nobody could tell.
        reader = spark.read.options(
            header=True, quote='"', escape='"', multiLine=True, encoding=BYTES, columnNameOfCorruptRecord=CORRUPT
        )
        # An empty line that ends in CRLF, in a file whose first one ends in LF. Spark refuses to look at CORRUPT alone.
        empty = (F.col(columns[0]) == "\r") & F.col(CORRUPT).isNotNull()
        frame = reader.schema(schema).csv(_uris(group)).filter(~F.coalesce(empty, F.lit(False)))
        cells = {name: _cell(name, last=name == columns[-1]) for name in columns if name in _names(table)}
        wanted = [cells.get(name, F.lit(None).cast("string")).alias(name) for name in _names(table)]
        # A quote that nothing closes takes in the rest of the file: as the last cell it would be no row too short.
        open_end = F.col(columns[-1]).rlike(r"\n\z")
        corrupt = F.coalesce(F.col(CORRUPT), F.when(open_end, F.col(columns[-1])))
        yield frame.select(*wanted, _bytes(corrupt).alias(CORRUPT), F.lit(False).alias(UNREADABLE), _file())


def _cell(name: str, *, last: bool) -> Column:
    cell = _bytes(F.replace(F.col(name), F.lit("\r\n"), F.lit("\n")))
    return F.regexp_replace(cell, r"\r\z", "") if last else cell  # of a file that ends its lines now so, now so


def _bytes(text: Column) -> Column:
    return F.encode(text, BYTES).cast("string")


# --- JSON lines -----------------------------------------------------------------------------------------------------


def _jsonl_parts(spark: SparkSession, table: TableFiles) -> Iterator[DataFrame]:
    row = T.StructType([T.StructField(name, T.StringType()) for name in _names(table)])
    lines = spark.read.text(_uris(table.files)).select("value", _file())
    # Spark stops reading a line where its first object ends. As an array with one more object, nothing may follow it.
    framed = F.concat(F.lit("["), "value", F.lit(",{}]"))
    read = lines.filter(F.col("value").rlike(r"[^ \t\n\r\f\x0b]")).withColumn(
        "_rows", F.from_json(framed, T.ArrayType(row), {"allowSingleQuotes": "false"})
    )
    one = F.when(F.size("_rows") == 2, F.element_at("_rows", 1))
    framed_row = read.withColumn("_row", one)
    yield framed_row.select(
        *(F.regexp_replace(F.col(f"_row.{name}"), UNCOMMON, "$1").alias(name) for name in row.names),
        F.when(F.col("_row").isNull(), F.col("value")).alias(CORRUPT),
        (~F.is_valid_utf8("value")).alias(UNREADABLE),
        FILE,
    )


# --- parquet --------------------------------------------------------------------------------------------------------


def _parquet_parts(spark: SparkSession, table: TableFiles) -> Iterator[DataFrame]:
    names = _names(table)
    for kinds, group in raw_layout.grouped(table, raw_layout.parquet_kinds).items():
        columns = [_parquet_column(name, kind).alias(name) for name, kind in zip(names, kinds, strict=True)]
        yield spark.read.parquet(*_uris(group)).select(
            *columns, F.lit(None).cast("string").alias(CORRUPT), F.lit(False).alias(UNREADABLE), _file()
        )


def _parquet_column(name: str, kind: str) -> Column:
    if kind == raw_layout.ABSENT:
        return F.lit(None).cast("string")
    return _from_nanoseconds(name) if kind == "timestamp[ns, tz=UTC]" else F.col(name)


def _from_nanoseconds(name: str) -> Column:
    # Floor, as everything finer than microseconds is cut off; integer division alone would round towards zero.
    return F.timestamp_micros(F.expr(f"(`{name}` - pmod(`{name}`, 1000)) div 1000"))
