"""Counts over windows: Spark says at every midnight what plain counting says, and is silent where nothing changes."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from feature_repo.contract import ITEM_STATISTICS, WINDOWS_DAYS
from jobs.rules.statistics import changes, count_in_window, midnight_after, smoothed_ctr

D = datetime(2024, 3, 10, tzinfo=UTC)
DAY, MICRO = timedelta(days=1), timedelta(microseconds=1)
EDGES = [-31 * DAY, -30 * DAY, -8 * DAY, -7 * DAY, -DAY, timedelta(0), DAY]


@pytest.mark.parametrize(
    ("offset", "counted"), [(-DAY - MICRO, 0), (-DAY, 1), (-DAY + MICRO, 1), (-MICRO, 1), (timedelta(0), 0)]
)
def test_a_window_holds_its_first_moment_and_not_its_midnight(offset: timedelta, counted: int) -> None:
    assert count_in_window([D + offset], D, 1) == counted


@pytest.mark.parametrize(("end", "midnight"), [(D, D), (D + MICRO, D + DAY), (D + DAY - MICRO, D + DAY)])
def test_the_last_midnight_is_the_first_after_every_event(end: datetime, midnight: datetime) -> None:
    assert midnight_after(end) == midnight


@pytest.mark.parametrize(("shown", "clicked", "ctr"), [(0, 0, 0.05), (20, 1, 0.05), (80, 4, 0.05), (30, 4, 0.1)])
def test_a_smoothed_ctr_starts_as_if_one_of_twenty_had_been_clicked(shown: int, clicked: int, ctr: float) -> None:
    assert smoothed_ctr(shown, clicked) == ctr


def test_a_count_is_written_when_it_rises_and_when_it_falls_back() -> None:
    [rise, fall] = changes({"clicks": [D + MICRO]}, [2], until=D + 9 * DAY)
    assert rise == (D + DAY, {("clicks", 2): 1})
    assert fall == (D + 3 * DAY, {("clicks", 2): 0})


def test_a_count_that_loses_one_and_gains_one_is_not_written_again() -> None:
    assert [at for at, _ in changes({"clicks": [D, D + DAY]}, [1], until=D + 9 * DAY)] == [D + DAY, D + 3 * DAY]


def frame_of(spark, folder: Path, name: str, at: str, rows: list[tuple[str, datetime]]):
    schema = pa.schema([("item_id", pa.string()), (at, pa.timestamp("us", tz="UTC"))])
    table = pa.Table.from_pylist([{"item_id": item, at: time} for item, time in rows], schema=schema)
    pq.write_table(table, folder / name)
    return spark.read.parquet(str(folder / name))


def spark_changes(spark, folder: Path, shown, clicked, until: datetime) -> list[tuple]:
    from pyspark.sql import functions as F

    from jobs.sequences.spark.item_statistics import statistics

    frame = statistics(
        frame_of(spark, folder, "shown.parquet", "shown_at", shown),
        frame_of(spark, folder, "clicked.parquet", "event_time", clicked),
        key="item_id",
        prefix="item",
        windows=WINDOWS_DAYS,
        until=until,
    )
    assert frame.columns == ["item_id", "event_timestamp", *(feature.name for feature in ITEM_STATISTICS.features)]
    micros = F.unix_micros("event_timestamp").alias("at")
    return sorted(tuple(row) for row in frame.select("item_id", micros, *frame.columns[2:]).collect())


def numbers(counts, days: int) -> tuple[int, int, float]:
    shown, clicked = counts["impressions", days], counts["clicks", days]
    return shown, clicked, smoothed_ctr(shown, clicked)


def plain_changes(shown, clicked, until: datetime) -> list[tuple]:
    times: dict[str, dict[str, list[datetime]]] = defaultdict(lambda: {"impressions": [], "clicks": []})
    for what, rows in (("impressions", shown), ("clicks", clicked)):
        for item_id, at in rows:
            times[item_id][what].append(at)
    rows = []
    for item_id, happened in times.items():
        for midnight, counts in changes(happened, WINDOWS_DAYS, until):
            in_order = [number for days in WINDOWS_DAYS for number in numbers(counts, days)]
            rows.append((item_id, int(midnight.timestamp()) * 10**6, *in_order))
    return sorted(rows)


HAPPENED = st.lists(
    st.builds(
        lambda item, edge, micros: (item, D + edge + micros * MICRO),
        st.sampled_from("abcdef"),
        st.sampled_from(EDGES),
        st.sampled_from([-1, 0, 1]),
    ),
    max_size=60,
)


@settings(
    max_examples=4,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(HAPPENED, HAPPENED)
def test_spark_counts_as_plain_counting_does(spark, tmp_path, shown, clicked) -> None:
    until = midnight_after(max((at for _, at in shown + clicked), default=D) + MICRO)
    assert spark_changes(spark, tmp_path, shown, clicked, until) == plain_changes(shown, clicked, until)


def test_quiet_years_cost_no_rows(spark, tmp_path) -> None:
    happened = [("a", D), ("a", D + 8000 * DAY)]
    until = midnight_after(D + 8000 * DAY + MICRO)
    rows = spark_changes(spark, tmp_path, [], happened, until)
    assert rows == plain_changes([], happened, until)
    assert len(rows) == 1 + 3 + 1  # it rises, falls back in each of three windows, and rises again
