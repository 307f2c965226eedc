"""Spark reads parquet by PyArrow where it has no connector for a store: the same rows as by its own reader."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import SequencesConfig
from jobs.engines import spark_parquet
from jobs.engines.spark_parquet import FILE_PATH, ROW_INDEX, FileUnreadable, Times, read_parquet
from jobs.paths import from_spark
from jobs.raw.canonical import canonical_table
from jobs.raw.folder import RawTableUnusable
from model import artifact

US = timedelta(microseconds=1)
START, END = datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 3, 2, tzinfo=UTC)
EDGES = [START - US, START, START + US, END - US, END, END + US]
KINDS = {
    "who": pa.string(),
    "what": pa.large_string(),
    "event_time": pa.timestamp("us", tz="UTC"),
    "place": pa.int16(),
    "price": pa.float32(),
}


def table_of(rows: int, rng: random.Random) -> pa.Table:
    """Rows with nulls everywhere, and moments at every edge of [START, END)."""
    drawn = {
        "who": lambda: rng.choice(["é", "", "a"]),
        "what": lambda: f"thing {rng.randrange(9)}",
        "event_time": lambda: rng.choice(EDGES),
        "place": lambda: rng.randrange(-9, 9),
        "price": lambda: rng.random(),
    }
    columns = {name: [None if rng.random() < 0.2 else draw() for _ in range(rows)] for name, draw in drawn.items()}
    return pa.table({name: pa.array(values, KINDS[name]) for name, values in columns.items()})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of one schema, their row groups of seven rows, one of them with text that is no UTF-8."""
    folder, rng = tmp_path_factory.mktemp("files"), random.Random(5)
    for number in range(3):
        table = table_of(20 + number, rng)
        if number == 2:
            broken = pa.array([b"\xff\xfe"] * len(table)).view(pa.string())
            table = table.set_column(0, "who", broken)
        pq.write_table(table, folder / f"{number} [b].parquet", row_group_size=7)
    return sorted(folder.iterdir())


@pytest.fixture
def no_connector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark_parquet, "connector_missing", lambda *_: "Spark has no connector for it")


def rows_of(frame: Any) -> list[tuple[Any, ...]]:
    """The rows, moments as microseconds and text as bytes, files as we call them, in an order of their own."""
    from pyspark.sql import functions as F

    kinds = {field.name: field.dataType.simpleString() for field in frame.schema}
    plain = [
        F.unix_micros(name).alias(name)
        if kind == "timestamp"
        else F.col(name).cast("binary").alias(name)
        if kind == "string"
        else F.col(name)
        for name, kind in kinds.items()
    ]
    rows = [row.asDict() for row in frame.select(*plain).collect()]
    return sorted((tuple((row | {FILE_PATH: from_spark(row[FILE_PATH].decode())}).values()) for row in rows), key=repr)


@pytest.mark.parametrize("times", [None, Times("event_time", START, END), Times("event_time", START, END, True)])
@pytest.mark.parametrize("columns", [None, ["event_time", "who"]])
def test_both_readers_give_the_same_rows_and_the_same_places(spark, files, times, columns, monkeypatch) -> None:
    by_spark = read_parquet(spark, files, columns, times)
    monkeypatch.setattr(spark_parquet, "connector_missing", lambda *_: "Spark has no connector for it")
    by_pyarrow = read_parquet(spark, files, columns, times)
    assert [(one.name, one.dataType) for one in by_pyarrow.schema] == [
        (one.name, one.dataType) for one in by_spark.schema
    ]
    assert rows_of(by_pyarrow) == rows_of(by_spark)
    assert by_pyarrow.columns[-2:] == [FILE_PATH, ROW_INDEX]
    assert by_spark.count() > 5


moments = st.lists(st.sampled_from([None, *EDGES]), min_size=1, max_size=5)


@given(moments, st.booleans())
def test_a_row_group_that_is_left_out_holds_no_wanted_row(held, outside) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"event_time": pa.array(held, KINDS["event_time"])}), buffer)
    group = pq.read_metadata(pa.BufferReader(buffer.getvalue())).row_group(0)
    inside = [at is not None and START <= at < END for at in held]
    wanted = [not one for one in inside] if outside else inside
    assert Times("event_time", START, END, outside).may_hold(group) or not any(wanted)
    one_day = Times("event_time", START - timedelta(days=9), START - timedelta(days=8))
    assert one_day.may_hold(group) == (not any(held))  # without a moment there are no statistics to judge by


@pytest.mark.usefixtures("no_connector")
def test_of_a_day_only_the_row_groups_that_may_hold_it_are_read(spark, tmp_path, monkeypatch) -> None:
    file = tmp_path / "events.parquet"
    days = [START + timedelta(days=day) for day in range(10) for _ in range(3)]
    pq.write_table(pa.table({"event_time": pa.array(days, KINDS["event_time"])}), file, row_group_size=3)
    asked, honest = [], spark_parquet._pieces

    def counted(*given: Any) -> Any:
        pieces = list(honest(*given))
        asked.extend(pieces)
        return pieces

    monkeypatch.setattr(spark_parquet, "_pieces", counted)
    found = read_parquet(spark, [file], times=Times("event_time", days[6], days[9])).collect()
    assert [row[ROW_INDEX] for row in found] == [6, 7, 8]
    assert [(one.group, one.first) for one in asked] == [(2, 6)]
    none = read_parquet(spark, [file], times=Times("event_time", END + timedelta(days=99), END + timedelta(days=100)))
    assert none.collect() == []
    assert [field.name for field in none.schema] == ["event_time", FILE_PATH, ROW_INDEX]


@pytest.mark.usefixtures("no_connector")
def test_a_file_that_a_worker_finds_damaged_is_named(spark, tmp_path) -> None:
    from jobs.raw.spark_tables import damage_named

    file = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [f"item {n}" for n in range(9_000)]}), file)
    data = bytearray(file.read_bytes())
    data[4:1004] = bytes(1000)
    file.write_bytes(data)
    with pytest.raises(RawTableUnusable, match=r"items\.parquet is damaged or cut short"), damage_named():
        read_parquet(spark, [file]).collect()
    file.write_bytes(b"PAR1")
    with pytest.raises(FileUnreadable, match=r"items\.parquet is not a readable parquet file"):
        read_parquet(spark, [file])


def test_sequences_of_a_bucket_without_a_connector_are_the_bytes_of_those_of_a_folder(
    spark, bucket, drawn_events, write_events, tmp_path
) -> None:
    from jobs.sequences.spark import behavior_sequences

    assert spark_parquet.connector_missing(spark, bucket) is not None
    raw = write_events(tmp_path / "raw", drawn_events(n * 7_919_317_003 % 10**12 for n in range(400)))
    for file in raw.iterdir():
        (bucket / "raw" / file.name).write_bytes(file.read_bytes())
    made = {}
    for name, folder in {"near": raw, "far": bucket / "raw"}.items():
        events = canonical_table(folder, "events")
        assert events.kinds is not None  # used in their place
        given = {"events": events, "sampled_negatives": False, "inputs": {}, "config": SequencesConfig()}
        behavior_sequences.build(**given, out=tmp_path / name)
        made[name] = artifact.read(tmp_path / name, kind="sequences")
    assert made["far"].files == made["near"].files
    assert len(made["far"].files) > 6


@pytest.mark.usefixtures("no_connector")
def test_a_task_reads_so_many_bytes_and_there_are_no_fewer_tasks_than_cores(spark, files, monkeypatch) -> None:
    pieces = sum(pq.read_metadata(file).num_row_groups for file in files)
    cores = spark.sparkContext.defaultParallelism
    assert read_parquet(spark, files).rdd.getNumPartitions() == cores < pieces
    monkeypatch.setattr(spark_parquet, "TASK_BYTES", 1)
    assert read_parquet(spark, files).rdd.getNumPartitions() == pieces
