"""The point-in-time join of feature_repo.offline_store by Spark, for what is too much for one machine: equal answers.

Rows that are asked for and rows of a history are put under each other and sorted by key and time; a running window then
hands each asked row the history's last row so far. So no pair is made, and each side is sorted once a key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from typing import TYPE_CHECKING, Final

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from jobs.engines.spark_session import spark_place
from jobs.paths import any_path

if TYPE_CHECKING:
    from feast import FeatureView

MICROSECOND: Final = timedelta(microseconds=1)
# Columns of the rows under each other: whether a row is asked for, its moments, what was asked, what is known.
IS_ASKED, AT, CREATED, ASKED, KNOWN = "__is_asked", "__at", "__created", "__asked", "__known_"


@dataclass(frozen=True, slots=True)
class History:
    """The rows of a feature view.

    rows: keys, the moment `event` from which a row is valid, features, and where `created` is named, the moment at
    which it was made: of rows valid from one moment the one made last counts.
    ttl: event <= moment <= event + ttl; zero: a row is valid until the next one.
    """

    rows: DataFrame
    keys: tuple[str, ...]
    features: tuple[str, ...]
    event: str
    created: str | None
    ttl: timedelta


def history(spark: SparkSession, view: "FeatureView") -> History:
    """The rows of a view that Feast knows, read from its source. Raises ConnectorMissing."""
    source = view.batch_source
    return History(
        rows=spark.read.parquet(spark_place(spark, any_path(source.path))),
        keys=tuple(view.join_keys),
        features=tuple(feature.name for feature in view.features),
        event=source.timestamp_field,
        created=source.created_timestamp_column or None,
        ttl=view.ttl or timedelta(0),
    )


def as_of(asked: DataFrame, histories: Sequence[History], *, moment: str) -> DataFrame:
    """The asked rows, in no order, with the features of each history as of the row's moment; null where there are none.

    asked: the histories' keys, the timestamp `moment`, and whatever shall stand beside the features, by other names.
    Rows of one key are sorted by one task, on its disk where they are many.
    """
    names = [*asked.columns, *(feature for each in histories for feature in each.features)]
    # Histories of the same keys share one sort. Wide ones come last: what has been found is sorted again with the next.
    groups: dict[tuple[str, ...], list[History]] = {}
    for each in histories:
        groups.setdefault(each.keys, []).append(each)
    ordered = sorted(groups.values(), key=lambda group: any(map(_is_wide, group)))
    joined = reduce(lambda rows, group: _joined(rows, group, moment), ordered, asked)
    return joined.select(*names)


def _is_wide(one: History) -> bool:
    return any(field.dataType.typeName() in ("array", "binary") for field in one.rows.select(*one.features).schema)


def _joined(asked: DataFrame, histories: Sequence[History], moment: str) -> DataFrame:
    keys = [f"__key_{n}" for n in range(len(histories[0].keys))]

    def row(names: Sequence[str], is_asked: bool, at: str, *more: Column) -> list[Column]:
        of_row = [F.col(name).alias(key) for name, key in zip(names, keys, strict=True)]
        return [*of_row, F.lit(is_asked).alias(IS_ASKED), F.col(at).alias(AT), *more]

    sides = [asked.select(row(histories[0].keys, True, moment, F.struct(*asked.columns).alias(ASKED)))]
    for n, one in enumerate(histories):
        created = F.col(one.created) if one.created else F.lit(None)
        found = F.struct(F.col(one.event).alias(AT), *one.features).alias(f"{KNOWN}{n}")
        complete = one.rows.dropna(subset=[*one.keys, one.event])  # a null equals nothing
        sides.append(complete.select(row(one.keys, False, one.event, created.cast("timestamp").alias(CREATED), found)))
    together = reduce(lambda a, b: a.unionByName(b, allowMissingColumns=True), sides)
    # What is valid from the very moment is known: false comes before true. A null comes first.
    by_time = Window.partitionBy(*keys).orderBy(AT, IS_ASKED, CREATED)
    so_far = by_time.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    known = [F.last(f"{KNOWN}{n}", ignorenulls=True).over(so_far).alias(f"{KNOWN}{n}") for n in range(len(histories))]
    answered = together.select(AT, IS_ASKED, ASKED, *known).filter(IS_ASKED)
    features = [_fresh(one, n, feature) for n, one in enumerate(histories) for feature in one.features]
    return answered.select(f"{ASKED}.*", *features)


def _fresh(one: History, n: int, feature: str) -> Column:
    value = F.col(f"{KNOWN}{n}.{feature}")
    if one.ttl:
        age = F.unix_micros(AT) - F.unix_micros(f"{KNOWN}{n}.{AT}")
        value = F.when(age <= one.ttl // MICROSECOND, value)
    return value.alias(feature)
