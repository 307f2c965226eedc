"""Read the raw tables into the contract's columns, and set aside the rows that cannot be used, each with its reason."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from feature_repo import contract
from jobs.logic import catalogue
from jobs.logic import events as logic
from jobs.sources.raw import RawTableUnusable, TableFiles, table_files

REASON: Final = "reason"
ROW: Final = "row"  # a rejected row as JSON, as it was read; null for an accepted one
CORRUPT: Final = "_corrupt_record"
SAMPLED_LINES: Final = 1000  # of a JSON lines file, to see which columns it knows

NUMBER: Final = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True, slots=True)
class Moment:
    """A raw column read as a moment, and whether its text says one without an offset from UTC."""

    at: Column
    absent: Column
    naive: Column


def read_events(spark: SparkSession, raw: Path) -> DataFrame:
    """The events table in the contract's columns, plus `reason` and `row`, both null for an acceptable event.

    Each is judged by itself: jobs.spark.judged_events goes on. Raises RawTableUnusable, RawTableMissing.
    """
    return _union([_judged_event(part) for part in _parts(spark, table_files(raw, "events"), contract.EVENTS)])


def read_items(spark: SparkSession, raw: Path) -> DataFrame:
    """The items table in the contract's columns, plus `reason` and `row`, both null for an accepted item.

    Raises RawTableUnusable, RawTableMissing.
    """
    parts = [_judged_item(part) for part in _parts(spark, table_files(raw, "items"), contract.ITEMS)]
    return _repeated(_union(parts))


def rejected(judged: DataFrame, table: str) -> DataFrame:
    """The rejected rows of a judged table: table, row (JSON), reason."""
    return judged.filter(F.col(REASON).isNotNull()).select(F.lit(table).alias("table"), ROW, REASON)


def count_reasons(judged: DataFrame) -> tuple[int, dict[str, int]]:
    """How many rows of a judged table are accepted, and how many are rejected for each reason that occurs."""
    counts = {row[REASON]: int(row["count"]) for row in judged.groupBy(REASON).count().collect()}
    return counts.pop(None, 0), dict(sorted(counts.items()))


# --- files -> columns as they were read -----------------------------------------------------------------------------


def _parts(spark: SparkSession, table: TableFiles, columns: Sequence[contract.Column]) -> list[DataFrame]:
    """The table's files as frames of the contract's columns, still untyped, one for each layout among the files."""
    read = {"parquet": _parquet_parts, "csv": _csv_parts, "jsonl": _jsonl_parts}[table.format]
    return list(read(spark, table.files, columns))


def _union(parts: Sequence[DataFrame]) -> DataFrame:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.unionByName(part)
    return whole


def _uris(files: Sequence[Path]) -> list[str]:
    # Spark takes a path for a pattern; and on a cluster a bare path would be looked for in its own file system.
    return ["file://" + re.sub(r"([\[\]{}*?\\])", r"\\\1", str(file.absolute())) for file in files]


def _grouped(
    files: Sequence[Path], layout: Callable[[Path], tuple[object, ...]]
) -> dict[tuple[object, ...], list[Path]]:
    groups: dict[tuple[object, ...], list[Path]] = {}
    for file in files:
        groups.setdefault(layout(file), []).append(file)
    return groups


def _require(file: Path, present: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        raise RawTableUnusable(
            f"{file} has no column {missing[0]}: add it; its columns are {', '.join(present) or 'none'}"
        )


def _csv_parts(spark: SparkSession, files: Sequence[Path], columns: Sequence[contract.Column]) -> Iterator[DataFrame]:
    names = [column.name for column in columns]
    for header, group in _grouped(files, _csv_header).items():
        _require(group[0], [str(name) for name in header], names)
        schema = T.StructType([T.StructField(str(name), T.StringType()) for name in (*header, CORRUPT)])
        reader = spark.read.options(
            header=True, quote='"', escape='"', multiLine=True, columnNameOfCorruptRecord=CORRUPT
        )
        yield reader.schema(schema).csv(_uris(group)).select(*names, CORRUPT)


def _csv_header(file: Path) -> tuple[object, ...]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return tuple(next(csv.reader(stream), ()))
    except UnicodeDecodeError:
        raise RawTableUnusable(f"{file} is not UTF-8 text: save it as UTF-8") from None


def _jsonl_parts(spark: SparkSession, files: Sequence[Path], columns: Sequence[contract.Column]) -> Iterator[DataFrame]:
    # JSON writers often leave a null out, so only the columns that must have values are looked for.
    _require(files[0], sorted(_json_keys(files)), [column.name for column in columns if not column.nullable])
    names = [*(column.name for column in columns), CORRUPT]
    schema = T.StructType([T.StructField(name, T.StringType()) for name in names])
    yield spark.read.schema(schema).json(_uris(files)).select(*names)


def _json_keys(files: Sequence[Path]) -> set[str]:
    keys: set[str] = set()
    for file in files:
        try:
            with file.open(encoding="utf-8") as stream:
                for line in islice(stream, SAMPLED_LINES):
                    keys |= _keys_of(line)
        except UnicodeDecodeError:
            raise RawTableUnusable(f"{file} is not UTF-8 text: save it as UTF-8") from None
    return keys


def _keys_of(line: str) -> set[str]:
    try:
        row = json.loads(line)
    except ValueError:
        return set()
    return set(row) if isinstance(row, dict) else set()


# --- parquet --------------------------------------------------------------------------------------------------------


def _parquet_parts(
    spark: SparkSession, files: Sequence[Path], columns: Sequence[contract.Column]
) -> Iterator[DataFrame]:
    names = [column.name for column in columns]
    for kinds, group in _grouped(files, lambda file: _parquet_layout(file, columns)).items():
        frame = spark.read.parquet(*_uris(group)).select(*names)
        units = dict(zip(names, kinds, strict=True))
        nanoseconds = {name: _from_nanoseconds(name) for name, kind in units.items() if kind == "timestamp[ns, tz=UTC]"}
        yield frame.withColumns(nanoseconds).withColumn(CORRUPT, F.lit(None).cast("string"))


def _from_nanoseconds(name: str) -> Column:
    # Floor, as everything finer than microseconds is cut off; integer division alone would round towards zero.
    return F.timestamp_micros(F.expr(f"(`{name}` - pmod(`{name}`, 1000)) div 1000"))


def _parquet_layout(file: Path, columns: Sequence[contract.Column]) -> tuple[object, ...]:
    """What tells one file's types from another's. Raises RawTableUnusable for a column missing or of a wrong type."""
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        said = str(error).splitlines()[0]
        raise RawTableUnusable(f"{file} is not a readable parquet file ({said}): write it again") from None
    with parquet:
        schema = parquet.schema_arrow
        _require(file, schema.names, [column.name for column in columns])
        return tuple(_checked_type(file, parquet, column) for column in columns)


def _checked_type(file: Path, parquet: pq.ParquetFile, column: contract.Column) -> str:
    kind = parquet.schema_arrow.field(column.name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_timestamp(kind) and column.kind == "timestamp":
        if _is_int96(parquet, column.name):
            return "int96"  # Hive's and old Spark's instants, in UTC by definition
        if kind.tz is None:
            raise RawTableUnusable(
                f"{file}: column {column.name} has no time zone, so its moments are not known: write it as UTC"
            )
        return f"timestamp[{kind.unit}, tz=UTC]"
    if not _fits(kind, column.kind):
        raise RawTableUnusable(f"{file}: column {column.name} is {kind}, not {WANTED[column.kind]}: cast it")
    return str(kind)


def _is_int96(parquet: pq.ParquetFile, name: str) -> bool:
    schema = parquet.schema
    return any(schema.column(i).path == name and schema.column(i).physical_type == "INT96" for i in range(len(schema)))


WANTED: Final = {"str": "text", "int": "a whole number", "float": "a number", "timestamp": "a timestamp"}


def _fits(kind: pa.DataType, wanted: str) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if wanted == "str":
        return bool(text or pa.types.is_integer(kind))
    return bool(text or (number and wanted in ("int", "float")))


# --- columns as they were read -> the contract's, with a reason ------------------------------------------------------


def _judged_event(part: DataFrame) -> DataFrame:
    time, position = _moment(part, "event_time"), _text(part, "position")
    reason = first_reason(
        {
            logic.BAD_ROW: F.col(CORRUPT).isNotNull(),
            logic.NULL_USER_ID: _is_blank(_text(part, "user_id")),
            logic.NULL_ITEM_ID: _is_blank(_text(part, "item_id")),
            logic.NULL_REQUEST_ID: _is_blank(_text(part, "request_id")),
            logic.UNKNOWN_EVENT_TYPE: ~F.coalesce(F.col("event_type").isin(*contract.EVENT_TYPES), F.lit(False)),
            logic.NULL_EVENT_TIME: time.absent,
            logic.NAIVE_EVENT_TIME: time.naive,
            logic.BAD_EVENT_TIME: time.at.isNull(),
            logic.BAD_POSITION: ~_is_blank(position) & ~position.rlike(f"^(?:{logic.POSITION})\\z"),
            logic.NULL_POSITION: _is_blank(position) & (F.col("event_type") == logic.IMPRESSION),
        }
    )
    return part.select(
        *(_text(part, name).alias(name) for name in ("user_id", "item_id")),
        time.at.alias("event_time"),
        *(_text(part, name).alias(name) for name in ("event_type", "request_id")),
        _whole_number(position).alias("position"),
        reason.alias(REASON),
        _row_if(reason, [column.name for column in contract.EVENTS]).alias(ROW),
    )


def _judged_item(part: DataFrame) -> DataFrame:
    created, price = _moment(part, "created_at"), F.trim(_text(part, "price"), F.lit(logic.WHITE_SPACE))
    unknown = _is_blank(price) | (F.lower(price) == "nan")
    number = F.when(unknown, None).otherwise(price.try_cast("double"))
    finite = price.rlike(f"^(?:{NUMBER})\\z") & (number >= 0) & (number < float("inf"))
    reason = first_reason(
        {
            catalogue.BAD_ROW: F.col(CORRUPT).isNotNull(),
            catalogue.NULL_ITEM_ID: _is_blank(_text(part, "item_id")),
            catalogue.BAD_PRICE: ~unknown & ~F.coalesce(finite, F.lit(False)),
            catalogue.BAD_CREATED_AT: ~created.absent & created.at.isNull(),
        }
    )
    texts = ("item_id", "image_uri", "category", "title")
    return part.select(
        *(_text(part, name).alias(name) for name in texts),
        number.alias("price"),
        created.at.alias("created_at"),
        reason.alias(REASON),
        _row_if(reason, [column.name for column in contract.ITEMS]).alias(ROW),
        F.to_json(F.struct(*(column.name for column in contract.ITEMS))).alias("_as_read"),
    )


def _text(part: DataFrame, name: str) -> Column:
    # A double's NaN is how pandas writes that there is no value.
    column, kind = F.col(name), part.schema[name].dataType
    known = F.when(~F.isnan(column), column) if isinstance(kind, T.DoubleType | T.FloatType) else column
    return known.cast("string")


def _is_blank(text: Column) -> Column:
    return text.isNull() | (F.trim(text, F.lit(logic.WHITE_SPACE)) == "")


def _whole_number(text: Column) -> Column:
    return F.regexp_extract(text, r"^\d{1,7}", 0).try_cast("int")


def _moment(part: DataFrame, name: str) -> Moment:
    column = F.col(name)
    if isinstance(part.schema[name].dataType, T.TimestampType):
        return Moment(column, column.isNull(), F.lit(False))
    text = column.cast("string")
    whole = text.rlike(f"^{logic.LOCAL_MOMENT}{logic.OFFSET}\\z")
    seconds = F.regexp_replace(text, r"^(.{16})([Z+-])", "$1:00$2")  # Spark reads no moment without them
    naive = F.coalesce(text.rlike(f"^{logic.LOCAL_MOMENT}\\z"), F.lit(False))
    return Moment(F.when(whole, seconds.try_cast("timestamp")), _is_blank(text), naive)


def first_reason(reasons: Mapping[str, Column]) -> Column:
    """The first reason, in their order, whose column is true; null where none is."""
    return F.coalesce(*(F.when(found, F.lit(reason)) for reason, found in reasons.items()))


def _row_if(reason: Column, names: Sequence[str]) -> Column:
    as_read = F.to_json(F.struct(*names), {"ignoreNullFields": "false"})
    return F.when(
        reason.isNotNull(), F.when(F.col(CORRUPT).isNotNull(), F.to_json(F.struct(CORRUPT))).otherwise(as_read)
    )


# --- rows that contradict other rows --------------------------------------------------------------------------------


def reject_also(
    judged: DataFrame, reason: Column, columns: Sequence[contract.Column], keep: Sequence[str] = ()
) -> DataFrame:
    """`judged` in the contract's columns, those of `keep`, reason and row; rejected too where `reason` is not null."""
    names = [column.name for column in columns]
    as_typed = F.to_json(F.struct(*names), {"ignoreNullFields": "false"})
    seconded = judged.withColumn("_second", reason)
    row = F.coalesce(F.col(ROW), F.when(F.col("_second").isNotNull(), as_typed))
    return seconded.select(*names, *keep, F.coalesce(REASON, "_second").alias(REASON), row.alias(ROW))


def _repeated(judged: DataFrame) -> DataFrame:
    """`judged` with all acceptable rows of an item_id rejected but the one that is smallest as JSON."""
    usable = F.col(REASON).isNull()
    item = Window.partitionBy(F.when(usable, F.col("item_id")).otherwise(F.col(ROW)), usable)
    numbered = judged.withColumn("_rank", F.row_number().over(item.orderBy("_as_read")))
    again = F.when(usable & (F.col("_rank") > 1), F.lit(catalogue.DUPLICATE_ITEM_ID))
    return reject_also(numbered, again, contract.ITEMS)
