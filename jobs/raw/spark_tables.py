"""Canonical tables by Spark: what cannot be used is set aside, each with its reason."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import reduce
from typing import Final

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from feature_repo import contract
from jobs.engines.spark_parquet import FILE_PATH, ROW_INDEX, FileUnreadable, Times, read_parquet
from jobs.paths import from_spark
from jobs.raw.canonical import CanonicalTable
from jobs.raw.cells import ABSENT
from jobs.raw.folder import RawTableUnusable
from jobs.raw.typed import FILE, LOST, MOMENTS, NUMBER, REASON, ROW
from jobs.rules import events as logic
from jobs.rules import items as catalogue

AS_JSON: Final = {"ignoreNullFields": "false", "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX"}
TYPES: Final = {"str": "string", "int": "int", "float": "double", "timestamp": "timestamp"}


def read_events(spark: SparkSession, table: CanonicalTable, as_of: datetime) -> DataFrame:
    """The events in the contract's columns, `file`, `number`, and `reason` and `row`, null for an acceptable event.

    Each is judged by itself: jobs.sequences.spark.event_validation goes on.  as_of: the clock that says which lie in
    the future.
    """
    return _with_clock(_rows(spark, table), as_of)


def read_items(spark: SparkSession, table: CanonicalTable) -> DataFrame:
    """The items in the contract's columns, `lost`, `file`, `number`, and `reason` and `row`, null for one accepted."""
    return _repeated(items_alone(spark, table))


def items_alone(spark: SparkSession, table: CanonicalTable) -> DataFrame:
    """As read_items, each row judged without regard to the others."""
    return _rows(spark, table)


def events_between(
    spark: SparkSession, table: CanonicalTable, start: datetime, end: datetime, as_of: datetime
) -> DataFrame:
    """As read_events, and only what happened in [start, end): the row groups that may hold some are read."""

    between = Times("event_time", start, end)
    return _with_clock(_rows(spark, table, between), as_of).filter(between.condition())


def undated_events(spark: SparkSession, table: CanonicalTable, as_of: datetime) -> DataFrame:
    """As read_events, and only the rows whose time is not known or lies in the future."""
    ahead = min(logic.future_from(as_of), logic.LATEST)
    rows = _rows(spark, table, Times("event_time", logic.EARLIEST, ahead, outside=True))
    return _with_clock(rows, as_of).filter(F.col("event_time").isNull())


def event_times(spark: SparkSession, table: CanonicalTable, as_of: datetime) -> DataFrame:
    """The `path` and the `event_time` of each event, as of read_events; no more than that is read."""
    at, ahead = _in_our_time(F.col("event_time")), min(logic.future_from(as_of), logic.LATEST)
    read = read_parquet(spark, table.files, ["event_time"])
    return read.select(F.col(FILE_PATH).alias("path"), F.when(at < ahead, at).alias("event_time"))


def rejected(judged: DataFrame, table: str) -> DataFrame:
    """The rejected rows of a judged table: table, row (JSON), reason."""
    return judged.filter(F.col(REASON).isNotNull()).select(F.lit(table).alias("table"), ROW, REASON)


def count_reasons(judged: DataFrame) -> tuple[int, dict[str, int]]:
    """How many rows of a judged table are accepted, and how many are rejected for each reason that occurs."""
    counts = {row[REASON]: int(row["count"]) for row in judged.groupBy(REASON).count().collect()}
    return counts.pop(None, 0), dict(sorted(counts.items()))


@contextmanager
def damage_named() -> Iterator[None]:
    """Turn Spark's failure over a file that proves damaged while it is read into one RawTableUnusable."""
    try:
        yield
    except (Py4JJavaError, PySparkException) as error:
        by_pyarrow = re.search(rf"{FileUnreadable.__name__}: (.*)", str(error))
        if by_pyarrow is not None:
            raise RawTableUnusable(by_pyarrow[1]) from None
        found = re.search(r"\[FAILED_READ_FILE[^\]]*\][^\n]*?([a-z][a-z0-9+.-]*:/\S+?)\.? ", str(error) + " ")
        if found is None:
            raise
        raise RawTableUnusable(
            f"{from_spark(found[1])} is damaged or cut short, Spark cannot read it to its end: write it again"
        ) from None


# --- rows, each judged by itself -------------------------------------------------------------------------------------


def _rows(spark: SparkSession, table: CanonicalTable, times: Times | None = None) -> DataFrame:
    """The rows of a table, each with why it is of no use by itself. times: which rows are wanted."""
    if table.kinds is None:
        read = read_parquet(spark, table.files, times=times)
        return read.withColumn(NUMBER, F.coalesce(F.col(NUMBER), F.col(ROW_INDEX) + 1)).drop(FILE_PATH, ROW_INDEX)
    columns = contract.EVENTS if table.name == "events" else contract.ITEMS
    present = [column for column in columns if table.kinds[column.name] != ABSENT]
    names = [column.name for column in present]
    read = read_parquet(spark, table.files, names, times)
    read = read.select(*names, F.col(FILE_PATH).alias(FILE), (F.col(ROW_INDEX) + 1).alias(NUMBER))
    for column in columns:
        if column not in present:
            read = read.withColumn(column.name, F.lit(None).cast(TYPES[column.kind]))
    return _event(read) if table.name == "events" else _item(read)


def _event(read: DataFrame) -> DataFrame:
    lower = F.lower(F.trim("event_type", F.lit(logic.WHITE_SPACE)))
    kind = F.when(lower.isin(*contract.EVENT_TYPES), lower)
    is_shown, fits = kind == logic.IMPRESSION, F.col("position").between(0, logic.LARGEST_POSITION)
    at = _in_our_time(F.col("event_time"))
    reason = first_reason(
        {
            **_damage(read),
            logic.NULL_USER_ID: _is_blank("user_id"),
            logic.NULL_ITEM_ID: _is_blank("item_id"),
            logic.NULL_REQUEST_ID: _is_blank("request_id"),
            logic.UNKNOWN_EVENT_TYPE: kind.isNull(),
            logic.NULL_EVENT_TIME: F.col("event_time").isNull(),
            logic.BAD_EVENT_TIME: at.isNull(),
            logic.BAD_POSITION: is_shown & ~F.coalesce(fits, F.lit(True)),
            logic.NULL_POSITION: is_shown & F.col("position").isNull(),
        }
    )
    return read.select(
        *(_valid(name) for name in ("user_id", "item_id")),
        at.alias("event_time"),
        F.coalesce(kind, _valid("event_type")).alias("event_type"),
        _valid("request_id"),
        F.when(fits, F.col("position")).cast("int").alias("position"),
        reason.alias(REASON),
        _row_if(reason, [column.name for column in contract.EVENTS]).alias(ROW),
        FILE,
        NUMBER,
    )


def _item(read: DataFrame) -> DataFrame:
    moments = {name: _in_our_time(F.col(name)) for name in MOMENTS}
    price = F.when(~F.isnan("price"), F.col("price")).cast("string").cast("double")  # 0.1 of 32 bits means 0.1
    fits = (price >= 0) & (price <= catalogue.LARGEST_PRICE)
    reason = first_reason({**_damage(read), catalogue.NULL_ITEM_ID: _is_blank("item_id")})
    lost = {catalogue.BAD_PRICE: ~F.coalesce(fits, F.lit(True))} | {
        f"bad_{name}": F.col(name).isNotNull() & at.isNull() for name, at in moments.items()
    }
    listed = F.array_compact(F.array(*(F.when(found, F.lit(reason)) for reason, found in lost.items())))
    return read.select(
        _valid("item_id"),
        *(F.when(~_is_blank(name), _valid(name)).alias(name) for name in ("image_uri", "category", "title")),
        F.when(fits, price).alias("price"),
        *(at.alias(name) for name, at in moments.items()),
        reason.alias(REASON),
        _row_if(reason, [column.name for column in contract.ITEMS]).alias(ROW),
        F.when(reason.isNull(), listed).otherwise(F.array().cast("array<string>")).alias(LOST),
        FILE,
        NUMBER,
    )


def _with_clock(judged: DataFrame, as_of: datetime) -> DataFrame:
    """`judged` without a time, and rejected, for what lies in the future: it belongs to no day yet."""
    ahead = F.unix_micros("event_time") >= logic.micros(min(logic.future_from(as_of), logic.LATEST))
    found = reject_also(judged, F.when(ahead, F.lit(logic.FUTURE_EVENT_TIME)), contract.EVENTS, keep=[FILE, NUMBER])
    return found.withColumn("event_time", F.when(~ahead, F.col("event_time")))


def _damage(read: DataFrame) -> dict[str, Column]:
    texts = [name for name, kind in read.dtypes if kind == "string" and name != FILE]
    # No text has a NUL: it stands in blocks that a crash left unwritten, and no database takes it.
    nul = [F.coalesce(F.col(name).contains("\0"), F.lit(False)) for name in texts]
    bad = [F.coalesce(~F.is_valid_utf8(name), F.lit(False)) for name in texts]
    return {logic.BAD_ROW: reduce(Column.__or__, nul), logic.BAD_ENCODING: reduce(Column.__or__, bad)}


def _valid(name: str) -> Column:
    return F.make_valid_utf8(name).alias(name)


def _is_blank(name: str) -> Column:
    # Only what stands at the left is looked at: trimming the right end of every key cost more than reading the file.
    return F.col(name).isNull() | (F.ltrim(name, F.lit(logic.WHITE_SPACE)) == "")


def _in_our_time(at: Column) -> Column:
    since = F.unix_micros(at)
    return F.when((since >= logic.micros(logic.EARLIEST)) & (since < logic.micros(logic.LATEST)), at)


def first_reason(reasons: Mapping[str, Column]) -> Column:
    """The first reason, in their order, whose column is true; null where none is."""
    return F.coalesce(*(F.when(found, F.lit(reason)) for reason, found in reasons.items()))


def _row_if(reason: Column, names: Sequence[str]) -> Column:
    return F.when(reason.isNotNull(), F.to_json(F.struct(*names), AS_JSON))


# --- rows that contradict other rows --------------------------------------------------------------------------------


def reject_also(
    judged: DataFrame, reason: Column, columns: Sequence[contract.Column], keep: Sequence[str] = ()
) -> DataFrame:
    """`judged` in the contract's columns, those of `keep`, reason and row; rejected too where `reason` is not null."""
    names = [column.name for column in columns]
    as_typed = F.to_json(F.struct(*names), AS_JSON)
    seconded = judged.withColumn("_second", reason)
    row = F.coalesce(F.col(ROW), F.when(F.col("_second").isNotNull(), as_typed))
    return seconded.select(*names, *keep, F.coalesce(REASON, "_second").alias(REASON), row.alias(ROW))


def _repeated(judged: DataFrame) -> DataFrame:
    """`judged` with all acceptable rows of an item_id rejected but the first by catalogue.precedence."""
    usable, at = F.col(REASON).isNull(), F.col("updated_at")
    order = [F.col(name).asc_nulls_last() for name in (*catalogue.PRECEDENCE, FILE, NUMBER)]
    item = Window.partitionBy(F.when(usable, F.col("item_id")).otherwise(F.col(ROW)), usable).orderBy(
        at.desc_nulls_last(), *order
    )
    numbered = judged.withColumn("_rank", F.row_number().over(item)).withColumn("_before", F.lag(at).over(item))
    why = F.when(at.eqNullSafe(F.col("_before")), catalogue.DUPLICATE_ITEM_ID).otherwise(catalogue.SUPERSEDED)
    again = F.when(usable & (F.col("_rank") > 1), why)
    return reject_also(numbered, again, contract.ITEMS, keep=[LOST, FILE, NUMBER])
