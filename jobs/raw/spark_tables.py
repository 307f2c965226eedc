"""Read the raw tables into the contract's columns, and set aside the rows that cannot be used, each with its reason."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Final

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from feature_repo import contract
from jobs.raw.folder import TableFiles, table_files
from jobs.raw.spark_files import CORRUPT, FILE, UNREADABLE, parts
from jobs.rules import events as logic
from jobs.rules import items as catalogue
from model.artifact import AnyPath

REASON: Final = "reason"
AS_JSON: Final = {"ignoreNullFields": "false", "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX"}
ROW: Final = "row"  # a rejected row as JSON, as it was read; null for an accepted one

NUMBER: Final = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True, slots=True)
class Moment:
    """A raw column read as a moment, and whether its text says one without an offset from UTC."""

    at: Column
    absent: Column
    naive: Column


@dataclass(frozen=True, slots=True)
class Position:
    """A raw column read as a place on the page, and whether there is none or it is none."""

    number: Column
    absent: Column
    bad: Column


def read_events(spark: SparkSession, raw: AnyPath, as_of: datetime) -> DataFrame:
    """The events table in the contract's columns, plus `reason` and `row`, both null for an acceptable event.

    Each is judged by itself: jobs.sequences.spark.event_validation goes on.  as_of: the clock that says which lie in
    the future. Raises RawTableUnusable, RawTableMissing.
    """
    return judged_alone(spark, raw, "events", as_of).drop(FILE)


def read_items(spark: SparkSession, raw: AnyPath) -> DataFrame:
    """The items table in the contract's columns, plus `reason` and `row`, both null for an accepted item.

    Raises RawTableUnusable, RawTableMissing.
    """
    return _repeated(_judged(spark, table_files(raw, "items"), _judged_item).drop(FILE))


def judged_alone(spark: SparkSession, raw: AnyPath, table: str, as_of: datetime) -> DataFrame:
    """As read_events and read_items, plus the `_file` of each row, and each row judged without regard to the others.

    table: events | items. Raises RawTableUnusable, RawTableMissing.
    """
    if table == "items":
        return _judged(spark, table_files(raw, table), _judged_item)
    return judged_events(spark, table_files(raw, table), as_of)


def judged_events(
    spark: SparkSession, table: TableFiles, as_of: datetime, only: Callable[[Column], Column] | None = None
) -> DataFrame:
    """As judged_alone, of some files of events.

    only: of the column event_time as it was read, where it is a moment already, which rows are wanted: then Spark reads
    no more than the parquet row groups that may hold one. Where it is text, `only` is not asked.
    """
    return _judged(spark, table, lambda part: _judged_event(_narrowed(part, only), as_of))


def events_between(
    spark: SparkSession, table: TableFiles, start: datetime, end: datetime, as_of: datetime
) -> DataFrame:
    """As read_events, of some files of events, and only what happened in [start, end)."""

    def between(at: Column) -> Column:
        return (at >= start) & (at < end)

    return judged_events(spark, table, as_of, between).drop(FILE).filter(between(F.col("event_time")))


def undated_events(spark: SparkSession, table: TableFiles, as_of: datetime) -> DataFrame:
    """As read_events, of some files of events, and only the rows whose time is not known or lies in the future."""
    ahead = min(logic.future_from(as_of), logic.LATEST)
    read = judged_events(spark, table, as_of, lambda at: at.isNull() | (at < logic.EARLIEST) | (at >= ahead))
    return read.drop(FILE).filter(F.col("event_time").isNull())


def rejected(judged: DataFrame, table: str) -> DataFrame:
    """The rejected rows of a judged table: table, row (JSON), reason."""
    return judged.filter(F.col(REASON).isNotNull()).select(F.lit(table).alias("table"), ROW, REASON)


def count_reasons(judged: DataFrame) -> tuple[int, dict[str, int]]:
    """How many rows of a judged table are accepted, and how many are rejected for each reason that occurs."""
    counts = {row[REASON]: int(row["count"]) for row in judged.groupBy(REASON).count().collect()}
    return counts.pop(None, 0), dict(sorted(counts.items()))


def _judged(spark: SparkSession, table: TableFiles, judge: Callable[[DataFrame], DataFrame]) -> DataFrame:
    return reduce(DataFrame.unionByName, [judge(part) for part in parts(spark, table)])


# --- columns as they were read -> the contract's, with a reason ------------------------------------------------------


def _judged_event(part: DataFrame, as_of: datetime) -> DataFrame:
    time, position = _moment(part, "event_time"), _position(part)
    ahead = F.unix_micros(time.at) >= logic.micros(logic.future_from(as_of))
    reason = first_reason(
        {
            logic.BAD_ROW: _is_bad_row(part),
            logic.BAD_ENCODING: F.col(UNREADABLE),
            logic.NULL_USER_ID: _is_blank(_text(part, "user_id")),
            logic.NULL_ITEM_ID: _is_blank(_text(part, "item_id")),
            logic.NULL_REQUEST_ID: _is_blank(_text(part, "request_id")),
            logic.UNKNOWN_EVENT_TYPE: ~F.coalesce(F.col("event_type").isin(*contract.EVENT_TYPES), F.lit(False)),
            logic.NULL_EVENT_TIME: time.absent,
            logic.NAIVE_EVENT_TIME: time.naive,
            logic.BAD_EVENT_TIME: time.at.isNull(),
            logic.FUTURE_EVENT_TIME: ahead,
            logic.BAD_POSITION: position.bad,
            logic.NULL_POSITION: position.absent & (F.col("event_type") == logic.IMPRESSION),
        }
    )
    return part.select(
        *(_text(part, name).alias(name) for name in ("user_id", "item_id")),
        F.when(~ahead, time.at).alias("event_time"),  # what lies in the future belongs to no day yet
        *(_text(part, name).alias(name) for name in ("event_type", "request_id")),
        position.number.alias("position"),
        reason.alias(REASON),
        _row_if(reason, [column.name for column in contract.EVENTS]).alias(ROW),
        FILE,
    )


def _judged_item(part: DataFrame) -> DataFrame:
    created, price = _moment(part, "created_at"), F.trim(_text(part, "price"), F.lit(logic.WHITE_SPACE))
    unknown = _is_blank(price) | (F.lower(price) == "nan")
    number = F.when(unknown, None).otherwise(price.try_cast("double"))
    finite = price.rlike(f"^(?:{NUMBER})\\z") & (number >= 0) & (number < float("inf"))
    reason = first_reason(
        {
            catalogue.BAD_ROW: _is_bad_row(part),
            catalogue.BAD_ENCODING: F.col(UNREADABLE),
            catalogue.NULL_ITEM_ID: _is_blank(_text(part, "item_id")),
            catalogue.BAD_PRICE: ~unknown & ~F.coalesce(finite, F.lit(False)),
            catalogue.BAD_CREATED_AT: ~created.absent & created.at.isNull(),
        }
    )
    texts = {name: _text(part, name) for name in ("image_uri", "category", "title")}
    return part.select(
        _text(part, "item_id").alias("item_id"),
        *(F.when(~_is_blank(text), text).alias(name) for name, text in texts.items()),
        number.alias("price"),
        created.at.alias("created_at"),
        reason.alias(REASON),
        _row_if(reason, [column.name for column in contract.ITEMS]).alias(ROW),
        FILE,
    )


def _narrowed(part: DataFrame, only: Callable[[Column], Column] | None) -> DataFrame:
    is_timed = only and isinstance(part.schema["event_time"].dataType, T.TimestampType)
    return part.filter(only(F.col("event_time"))) if only and is_timed else part


def _is_bad_row(part: DataFrame) -> Column:
    # No text has a NUL: it stands in blocks that a crash left unwritten, and no database takes it.
    nul = (F.col(name).contains("\0") for name, kind in part.dtypes if kind == "string" and name != CORRUPT)
    return reduce(Column.__or__, (F.coalesce(found, F.lit(False)) for found in nul), F.col(CORRUPT).isNotNull())


def _text(part: DataFrame, name: str) -> Column:
    # A double's NaN is how pandas writes that there is no value.
    column, kind = F.col(name), part.schema[name].dataType
    known = F.when(~F.isnan(column), column) if isinstance(kind, T.DoubleType | T.FloatType) else column
    return known.cast("string")


def _is_blank(text: Column) -> Column:
    # Only what stands at the left is looked at: trimming the right end of every key cost more than reading the file.
    return text.isNull() | (F.ltrim(text, F.lit(logic.WHITE_SPACE)) == "")


def _position(part: DataFrame) -> Position:
    column = F.col("position")
    if isinstance(part.schema["position"].dataType, T.IntegralType):  # three regular expressions cheaper than its text
        fits = column.between(0, logic.LARGEST_POSITION)
        return Position(F.when(fits, column).cast("int"), column.isNull(), ~F.coalesce(fits, F.lit(True)))
    text = _text(part, "position")
    number = F.regexp_extract(text, r"^\d{1,7}", 0).try_cast("int")
    absent = _is_blank(text)
    return Position(number, absent, ~absent & ~text.rlike(f"^(?:{logic.POSITION})\\z"))


def _moment(part: DataFrame, name: str) -> Moment:
    column = F.col(name)
    if isinstance(part.schema[name].dataType, T.TimestampType):
        return Moment(_in_our_time(column), column.isNull(), F.lit(False))
    text = column.cast("string")
    whole = text.rlike(f"^{logic.LOCAL_MOMENT}{logic.OFFSET}\\z")
    seconds = F.regexp_replace(text, r"^(.{16})([Z+-])", "$1:00$2")  # Spark reads no moment without them
    naive = F.coalesce(text.rlike(f"^{logic.LOCAL_MOMENT}\\z"), F.lit(False))
    return Moment(_in_our_time(F.when(whole, seconds.try_cast("timestamp"))), _is_blank(text), naive)


def _in_our_time(at: Column) -> Column:
    since = F.unix_micros(at)
    return F.when((since >= logic.micros(logic.EARLIEST)) & (since < logic.micros(logic.LATEST)), at)


def first_reason(reasons: Mapping[str, Column]) -> Column:
    """The first reason, in their order, whose column is true; null where none is."""
    return F.coalesce(*(F.when(found, F.lit(reason)) for reason, found in reasons.items()))


def _row_if(reason: Column, names: Sequence[str]) -> Column:
    as_read = F.to_json(F.struct(*names), AS_JSON)
    return F.when(
        reason.isNotNull(), F.when(F.col(CORRUPT).isNotNull(), F.to_json(F.struct(CORRUPT))).otherwise(as_read)
    )


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
    usable = F.col(REASON).isNull()
    item = Window.partitionBy(F.when(usable, F.col("item_id")).otherwise(F.col(ROW)), usable)
    order = [F.col(name).asc_nulls_last() for name in catalogue.PRECEDENCE]
    numbered = judged.withColumn("_rank", F.row_number().over(item.orderBy(*order)))
    again = F.when(usable & (F.col("_rank") > 1), F.lit(catalogue.DUPLICATE_ITEM_ID))
    return reject_also(numbered, again, contract.ITEMS)
