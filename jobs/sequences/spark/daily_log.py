"""The daily log by Spark: the days of a plan, and the sequences of all days."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config import SequencesConfig
from jobs.engines.parquet_parts import write_parts, write_parts_apart
from jobs.engines.spark_session import spark_place, spark_session
from jobs.paths import spark_uri
from jobs.raw.canonical import CanonicalTable
from jobs.raw.spark_tables import events_between, rejected, undated_events
from jobs.raw.typed import REASON, ROW
from jobs.rules.events import EPOCH, TOO_MANY_CLICKS
from jobs.rules.sequence_tables import TABLES, Table
from jobs.sequences.daily import log as daily_log
from jobs.sequences.daily.engine import DAY, Earlier
from jobs.sequences.daily.log import Plan, midnight
from jobs.sequences.daily.raw_days_spark import count_days
from jobs.sequences.facts import longest
from jobs.sequences.spark.behavior_sequences import ORDER, is_large, tables, write_sequences
from jobs.sequences.spark.event_validation import accepted, cap, day_of, over_cap_users
from jobs.sequences.spark.facts import count_distinct, count_events, count_pages
from jobs.sequences.spark.histories import carry_on, clicks, newest, snapshots
from jobs.sequences.spark.oversized_requests import validate
from jobs.sequences.spark.page_views import pages
from model.artifact import AnyPath, Manifest

STATE: Final = "user_id string, event_time timestamp, history array<struct<at: timestamp, item_id: string>>"
SPARK_TYPES: Final = {"text": "string", "moment": "timestamp", "int8": "tinyint", "int32": "int", "int64": "bigint"}


def schema(table: Table) -> str:
    """A day's table as Spark declares it."""
    return ", ".join(f"{name} {_spark_type(kind)}" for name, kind in table.columns.items())


def _spark_type(kind: str) -> str:
    one = SPARK_TYPES[kind.removeprefix("list of ")]
    return f"array<{one}>" if kind.startswith("list of ") else one


@dataclass(frozen=True, slots=True)
class SparkDays:
    """jobs.sequences.daily.engine.NewDays."""

    frames: Mapping[str, DataFrame]
    kept: DataFrame
    todo: Plan
    facts: Mapping[date, Mapping[str, Any]]

    def write_tables(self, folder: AnyPath) -> None:
        """Write each table's rows of each day that is planned to `folder`/TABLE/day=N."""
        for name, (by, then) in ORDER.items():
            frame = _with_day(name, self.frames[name]).filter(F.col(DAY) >= _number(self.todo.write_from))
            write_parts_apart(frame, folder / name, apart=DAY, by=by, then=then)

    def write_state(self, day: date, folder: AnyPath) -> None:
        """Write each user's last snapshot as of the end of the day."""
        known = newest(self.kept.filter(F.col("event_time") < midnight(day + daily_log.DAY)))
        write_parts(known, folder, by=["user_id"])


@dataclass(frozen=True, slots=True)
class SparkEngine:
    """jobs.sequences.daily.engine.DailyEngine.  master: where Spark runs, if not here."""

    master: str | None = None

    def count_days(self, table: CanonicalTable) -> Mapping[str, Mapping[str, int]]:
        """The rows of each day in each file of events."""
        return count_days(self._session(table), table)

    @contextmanager
    def new_days(
        self, table: CanonicalTable, as_of: datetime, todo: Plan, config: SequencesConfig, earlier: Earlier
    ) -> Iterator[SparkDays]:
        """The days of a plan."""
        spark, written = self._session(table), F.col(DAY) >= _number(todo.write_from)
        start, end = midnight(todo.read_from), midnight(todo.last + daily_log.DAY)
        together = validate(events_between(spark, table, start, end, as_of)).persist()
        over_cap = over_cap_users(together, config.max_clicks_per_day).persist()
        validated = together if over_cap.isEmpty() else cap(together, over_cap)
        own = validated.withColumn(DAY, day_of("event_time")).filter(written)
        shown = pages(accepted(validated)).withColumn(DAY, day_of("request_time")).filter(written).persist()
        fresh = snapshots(clicks(accepted(own)), longest(config))
        kept = carry_on(fresh, _before(spark, earlier, longest(config)), longest(config)).persist()
        frames = tables(own, shown.drop(DAY), kept, config)
        frames["rejected"] = own.filter(F.col(REASON).isNotNull()).select(
            F.lit("events").alias("table"), ROW, REASON, DAY
        )
        try:
            yield SparkDays(frames, kept, todo, _facts(own, shown, over_cap, config.page_view_size))
        finally:
            for frame in (kept, shown, over_cap, together):
                frame.unpersist()

    def write_undated(self, table: CanonicalTable, as_of: datetime, folder: AnyPath) -> Mapping[str, Any]:
        """Write the rejected rows whose time is not known or lies ahead."""
        undated = undated_events(self._session(table), table, as_of).withColumn("repeat", F.lit(False)).persist()
        by, then = ORDER["rejected"]
        write_parts(rejected(undated, "events"), folder, by=by, then=then)
        [facts] = count_events(undated).values()
        undated.unpersist()
        return facts

    def write_sequences(
        self,
        folders: Sequence[AnyPath],
        counted: Mapping[str, Any],
        *,
        out: AnyPath,
        inputs: Mapping[str, str],
        config: SequencesConfig,
    ) -> Manifest:
        """Write the sequences of the days in these folders."""
        spark = spark_session("courier sequences", self.master)
        frames = {name: _read_table(spark, name, folders) for name in ORDER}
        capped = {**counted["capped_users"], "users": _capped(frames["rejected"])}
        who = [frames[name].select("user_id", "item_id") for name in ("impressions", "clicks", "conversions")]
        distinct = count_distinct(who[0].unionByName(who[1]).unionByName(who[2]))
        counts = {**counted, **distinct, "capped_users": capped}
        return write_sequences(frames, frames["page_views"], counts, out=out, inputs=inputs, config=config)

    def _session(self, table: CanonicalTable) -> SparkSession:
        return spark_session("courier sequences", self.master, large=is_large(table))


def _with_day(name: str, frame: DataFrame) -> DataFrame:
    """A table with the UTC day that each of its rows belongs to."""
    days: dict[str, Column] = {
        "impressions": day_of("request_time"),
        "page_views": day_of("request_time"),
        # A snapshot belongs to the day of its click, though it becomes valid a microsecond later.
        "histories": F.unix_date(F.to_date(F.timestamp_micros(F.unix_micros("event_timestamp") - 1))),
        "clicks": day_of("event_time"),
        "conversions": day_of("event_time"),
        "rejected": F.col(DAY),
    }
    return frame.withColumn(DAY, days[name])


def _facts(own: DataFrame, shown: DataFrame, over_cap: DataFrame, size: int) -> dict[date, dict[str, Any]]:
    found: dict[date, dict[str, Any]] = {}
    for counts in (count_events(own, DAY), count_pages(shown, size, DAY)):
        for (number,), facts in counts.items():
            found.setdefault(_date(number), {}).update(facts)
    for row in over_cap.groupBy(DAY).agg(F.max("clicks").alias("most")).collect():
        found.setdefault(_date(row[DAY]), {})["most_clicks"] = row["most"]
    return found


def _before(spark: SparkSession, earlier: Earlier, length: int) -> DataFrame:
    """Each user's last snapshot before the first day to write."""
    if earlier.state is not None:
        return spark.read.schema(STATE).parquet(spark_place(spark, earlier.state))
    return newest(snapshots(_read_table(spark, "clicks", earlier.days), length))


def _read_table(spark: SparkSession, name: str, folders: Sequence[AnyPath]) -> DataFrame:
    """A table of these days' artifacts."""
    files = sorted(spark_uri(path) for folder in folders for path in (folder / name).glob("*.parquet"))
    if not files:
        return spark.createDataFrame([], schema(TABLES[name]))
    return spark.read.schema(schema(TABLES[name])).parquet(*files)


def _capped(refused: DataFrame) -> int:
    """How many users have clicks among the rejected rows that were too many."""
    whose = F.get_json_object(ROW, "$.user_id")
    too_many = refused.filter(F.col(REASON) == TOO_MANY_CLICKS)
    return int(too_many.agg(F.countDistinct(whose).alias("users")).collect()[0]["users"])


def _number(day: date) -> int:
    return (day - EPOCH.date()).days


def _date(number: Any) -> date:
    return EPOCH.date() + int(number) * daily_log.DAY
