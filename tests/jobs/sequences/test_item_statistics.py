"""Counts over windows: engines say at every midnight what plain counting says, and nothing where nothing changes."""

import functools
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from feature_repo.contract import ITEM_STATISTICS, WINDOWS_DAYS
from jobs.engines.duckdb_session import connect
from jobs.rules.statistics import changes, count_in_window, midnight_after, smoothed_ctr
from jobs.sequences.duckdb import item_statistics as on_duckdb

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


def file_of(folder: Path, name: str, at: str, rows: list[tuple[str, datetime]]) -> Path:
    schema = pa.schema([("item_id", pa.string()), (at, pa.timestamp("us", tz="UTC"))])
    table = pa.Table.from_pylist([{"item_id": item, at: time} for item, time in rows], schema=schema)
    pq.write_table(table, folder / name)
    return folder / name


Changes = Callable[[list, list, datetime], list[tuple]]


@pytest.fixture(params=["duckdb", pytest.param("spark", marks=pytest.mark.slow)])
def engine_changes(request, tmp_path) -> Changes:
    """What an engine says changes, of (item, moment) shown and clicked, until a midnight."""
    if request.param == "spark":
        return functools.partial(spark_changes, request.getfixturevalue("spark"), tmp_path)
    return functools.partial(duckdb_changes, tmp_path)


GIVEN = {"key": "item_id", "prefix": "item", "windows": WINDOWS_DAYS}
COLUMNS = ["item_id", "event_timestamp", *(feature.name for feature in ITEM_STATISTICS.features)]


def spark_changes(spark, folder: Path, shown, clicked, until: datetime) -> list[tuple]:
    from pyspark.sql import functions as F

    from jobs.sequences.spark.item_statistics import statistics

    files = file_of(folder, "shown.parquet", "shown_at", shown), file_of(folder, "c.parquet", "event_time", clicked)
    frame = statistics(*(spark.read.parquet(str(file)) for file in files), **GIVEN, until=until)
    assert frame.columns == COLUMNS
    micros = F.unix_micros("event_timestamp").alias("at")
    return sorted(tuple(row) for row in frame.select("item_id", micros, *frame.columns[2:]).collect())


def duckdb_changes(folder: Path, shown, clicked, until: datetime) -> list[tuple]:
    files = file_of(folder, "shown.parquet", "shown_at", shown), file_of(folder, "c.parquet", "event_time", clicked)
    with connect(folder / "spilled") as db:
        found = db.sql(on_duckdb.statistics(*(f"SELECT * FROM '{file}'" for file in files), **GIVEN, until=until))
        assert found.columns == COLUMNS
        return sorted(found.fetchall())


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
    max_examples=8,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(HAPPENED, HAPPENED)
def test_an_engine_counts_as_plain_counting_does(engine_changes, shown, clicked) -> None:
    until = midnight_after(max((at for _, at in shown + clicked), default=D) + MICRO)
    assert engine_changes(shown, clicked, until) == plain_changes(shown, clicked, until)


def test_quiet_years_cost_no_rows(engine_changes) -> None:
    happened = [("a", D), ("a", D + 8000 * DAY)]
    until = midnight_after(D + 8000 * DAY + MICRO)
    rows = engine_changes([], happened, until)
    assert rows == plain_changes([], happened, until)
    assert len(rows) == 1 + 3 + 1  # it rises, falls back in each of three windows, and rises again
