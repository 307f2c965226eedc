"""A day is read from the files and row groups that hold it, and events that the log leaves out are counted and told."""

import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from jobs.config import IngestConfig
from jobs.engines.duckdb_session import connect
from jobs.raw import duckdb_tables, ingest
from jobs.raw.canonical import CanonicalTable, canonical_table
from jobs.raw.folder import file_version
from jobs.rules.events import EPOCH
from jobs.sequences.daily import raw_days_duckdb
from jobs.sequences.daily.log import Watermark, midnight
from jobs.sequences.daily.raw_days import (
    UNDATED,
    FileDays,
    LeftOut,
    file_name,
    files_of,
    index_file,
    indexed,
    left_out,
    read_index,
    rows_a_day,
    sentence,
)

FIRST = date(2024, 3, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(10)]
NOW = datetime(2024, 4, 1, tzinfo=UTC)
MARK = Watermark(first=DAYS[2], last=DAYS[4], config={}, sampled_negatives=False)
HELD = dict.fromkeys(DAYS[2:5], 10)


# --- what is left out -----------------------------------------------------------------------------------------------


def said(raw: dict[date, int]) -> str:
    return sentence(MARK, left_out(MARK, HELD, raw, NOW))


def test_a_log_that_holds_every_event_leaves_nothing_out() -> None:
    assert not left_out(MARK, HELD, HELD, NOW)
    assert said(HELD) == "the daily log holds 2024-03-03 to 2024-03-05, and every raw event of a known day"


def test_days_before_and_after_the_log_and_days_that_have_changed_are_counted_with_their_cure() -> None:
    raw = HELD | {DAYS[0]: 1, DAYS[1]: 2, DAYS[3]: 11, DAYS[5]: 4, DAYS[7]: 5}
    out = left_out(MARK, HELD, raw, NOW)
    assert out.facts() == {"before": 3, "after": 9, "changed": {"2024-03-04": [10, 11]}}
    assert said(raw) == (
        "the daily log holds 2024-03-03 to 2024-03-05; 3 raw events lie before it (since 2024-03-01), "
        "9 raw events lie after it (until 2024-03-08), 1 of its days has changed since (2024-03-04: 10 events then, "
        "11 now): say `courier sequences --from 2024-03-01 --to 2024-03-08` to take in what is to be taken in"
    )


def test_what_lies_in_the_future_of_the_clock_is_rejected_and_not_left_out() -> None:
    tomorrow = {NOW.date(): 1, NOW.date() + timedelta(days=1): 1}
    assert left_out(MARK, HELD, HELD | tomorrow, NOW).after == {NOW.date(): 1}
    assert left_out(MARK, HELD, HELD | tomorrow, NOW + timedelta(hours=23)).after == {NOW.date(): 1}
    assert left_out(MARK, HELD, HELD | tomorrow, NOW + timedelta(hours=23, microseconds=1)).after == tomorrow


def test_a_day_whose_events_are_gone_has_changed_too() -> None:
    raw = {day: rows for day, rows in HELD.items() if day != DAYS[4]}
    assert left_out(MARK, HELD, raw, NOW) == LeftOut(changed={DAYS[4]: (10, 0)})


def test_the_cure_for_later_events_begins_after_the_log_though_their_first_day_is_later() -> None:
    assert "--from 2024-03-06 --to 2024-03-09`" in said(HELD | {DAYS[8]: 1})


def test_no_cure_fills_the_years_between_the_log_and_an_event_of_a_wrong_clock() -> None:
    epoch = {date(1970, 1, 1): 3}
    assert "--from" not in said(HELD | epoch)
    assert "3 raw events lie before it (since 1970-01-01)" in said(HELD | epoch)
    assert "--from 2024-03-06 --to 2024-03-06`" in said(HELD | epoch | {DAYS[5]: 1})


def test_rows_of_all_files_add_up_by_day_without_those_of_no_day() -> None:
    one, two = {"2024-03-02": 2, "2024-03-01": 1, UNDATED: 5}, {"2024-03-02": 4}
    files = [FileDays(version="1", rows=rows) for rows in (one, two)]
    assert rows_a_day(files) == {DAYS[0]: 1, DAYS[1]: 6}
    assert [files[0].holds(DAYS[1], DAYS[5]), files[0].holds(DAYS[2], DAYS[9])] == [True, False]


def test_a_file_of_the_same_size_that_was_written_later_is_another_version(tmp_path) -> None:
    file = tmp_path / "events.csv"
    file.write_text("1", "utf-8")
    version = file_version(file)
    assert file_version(file) == version
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert file_version(file) != version


# --- raw files ------------------------------------------------------------------------------------------------------


def rows_of(day: date, rng: random.Random, count: int = 40) -> pa.Table:
    """Events of one day, its first and last microsecond among them; the first of each ten has an unknown type."""
    start, whole = midnight(day), timedelta(days=1) // timedelta(microseconds=1)
    moments = [0, whole - 1, *(rng.randrange(whole) for _ in range(count - 2))]
    at = [start + timedelta(microseconds=one) for one in moments]
    return pa.table(
        {
            "user_id": [f"u{rng.randrange(5)}" for _ in at],
            "item_id": [f"i{rng.randrange(9)}" for _ in at],
            "event_time": pa.array(at, pa.timestamp("us", tz="UTC")),
            "event_type": ["view" if n % 10 == 0 else ("impression", "click")[n % 2] for n in range(count)],
            "request_id": [f"r{day}-{n // 4}" for n in range(count)],
            "position": pa.array([n % 4 for n in range(count)], pa.int32()),
        }
    )


def in_form(table: pa.Table, form: str) -> pa.Table:
    """The same events, their moments in another unit or as text."""
    if form in ("us", "csv", "jsonl"):
        return table
    kind = pa.string() if form == "text" else pa.timestamp(form, tz="UTC")
    at = table.column("event_time")
    told = pa.array([one and one.isoformat() for one in at.to_pylist()]) if form == "text" else at.cast(kind)
    return table.set_column(2, "event_time", told)


def write(file: Path, table: pa.Table, form: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if form == "csv":
        pc.write_csv(table, file.with_suffix(".csv"))
        with file.with_suffix(".csv").open("a") as more:
            more.write("too,few\n")
    elif form == "jsonl":
        lines = [json.dumps(row | {"event_time": row["event_time"].isoformat()}) for row in table.to_pylist()]
        file.with_suffix(".jsonl").write_text("\n".join([*lines, "no JSON", ""]), "utf-8")
    else:
        pq.write_table(in_form(table, form), file.with_suffix(".parquet"), row_group_size=10)


def raw_folder(raw: Path, form: str) -> Path:
    """A file for each of five days, in folders named after them; the fourth has rows of no known time, too."""
    rng = random.Random(5)
    for day in DAYS[:5]:
        table = rows_of(day, rng)
        if day == DAYS[3]:
            undated = table.slice(0, 3).set_column(2, "event_time", pa.nulls(3, pa.timestamp("us", tz="UTC")))
            table = pa.concat_tables([table, undated]) if form not in ("csv", "jsonl") else table
        write(raw / "events" / f"date={day}" / "part-0", table, form)
    return raw


def as_read(raw: Path, form: str, folder: Path) -> CanonicalTable:
    """The events as engines read them: in their place, or ingested into a folder where they are of another form."""
    if form == "us":
        return canonical_table(raw, "events")
    ingest.read_tables(raw=raw, raw_digest="", out=folder / "ingested", config=IngestConfig())
    return canonical_table(folder / "ingested", "events", raw)


Row = tuple[Any, ...]


class Spark:
    """Days of raw files as Spark reads and counts them."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def count(self, table: CanonicalTable) -> dict[str, dict[str, int]]:
        from jobs.sequences.daily.raw_days_spark import count_days

        return count_days(self.session, table)

    def events(self, table: CanonicalTable, *between: datetime) -> list[Row]:
        """All events of some files, or what happened in [start, end); moments in microseconds."""
        return [tuple(row) for row in self._frame(table, *between).collect()]

    def undated(self, table: CanonicalTable) -> list[Row]:
        from jobs.raw.spark_tables import undated_events

        return [tuple(row) for row in self._micros(undated_events(self.session, table, NOW)).collect()]

    def scanned(self, table: CanonicalTable, *between: datetime) -> int:
        """How many rows are read to tell those of [start, end), or without it the undated ones."""
        from jobs.raw.spark_tables import undated_events

        frame = self._frame(table, *between) if between else undated_events(self.session, table, NOW)
        frame.collect()
        found = 0

        def add(plan: Any) -> None:
            nonlocal found
            if plan.getClass().getSimpleName() == "FileSourceScanExec":
                found += plan.metrics().get("numOutputRows").get().value()
            children = plan.children()
            for number in range(children.size()):
                add(children.apply(number))

        add(frame._jdf.queryExecution().executedPlan())
        return found

    def _frame(self, table: CanonicalTable, *between: datetime) -> Any:
        from jobs.raw.spark_tables import events_between, read_events

        if between:
            return self._micros(events_between(self.session, table, *between, NOW))
        return self._micros(read_events(self.session, table, NOW))

    def _micros(self, frame: Any) -> Any:
        from pyspark.sql import functions as F

        return frame.withColumn("event_time", F.unix_micros("event_time"))


class DuckDB:
    """Days of raw files as DuckDB reads and counts them."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def count(self, table: CanonicalTable) -> dict[str, dict[str, int]]:
        return raw_days_duckdb.count_days(self.connection, table)

    def events(self, table: CanonicalTable, *between: datetime) -> list[Row]:
        """All events of some files, or what happened in [start, end); moments in microseconds."""
        if between:
            return self._rows(duckdb_tables.events_between(self.connection, table, *between, NOW))
        return self._rows(duckdb_tables.read_events(self.connection, table, NOW))

    def undated(self, table: CanonicalTable) -> list[Row]:
        return self._rows(duckdb_tables.undated_events(self.connection, table, NOW))

    def scanned(self, table: CanonicalTable, *between: datetime) -> int:
        """How many rows the row groups hold that are read to tell those of [start, end), or the undated ones."""
        if between:
            query = duckdb_tables.events_between(self.connection, table, *between, NOW)
        else:
            query = duckdb_tables.undated_events(self.connection, table, NOW)
        [[_, plan]] = self.connection.execute(f"EXPLAIN ANALYZE {query}").fetchall()
        return 10 * sum(map(int, re.findall(r"Row Groups Scanned: (\d+) /", plan)))

    def _rows(self, query: str) -> list[Row]:
        asked = f"SELECT * REPLACE (epoch_us(event_time) AS event_time) FROM ({query})"
        return self.connection.execute(asked).fetchall()


@pytest.fixture(params=["duckdb", "spark"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spark | DuckDB]:
    if request.param == "spark":
        yield Spark(request.getfixturevalue("spark"))
        return
    with connect(tmp_path / "spill") as connection:
        yield DuckDB(connection)


def day_in(row: Row) -> date | None:
    return None if row[2] is None else (EPOCH + timedelta(microseconds=row[2])).date()


@pytest.mark.parametrize("form", ["us", "ns", "text", "csv", "jsonl"])
def test_what_is_read_of_some_days_or_of_no_day_is_what_all_that_is_read_says_of_them(engine, tmp_path, form) -> None:
    table = as_read(raw_folder(tmp_path / "raw", form), form, tmp_path)
    index = indexed(table, tmp_path / "ws", engine.count)
    everything = engine.events(table)
    days = midnight(DAYS[1]), midnight(DAYS[3])
    two_days = engine.events(files_of(table, index, lambda file: file.holds(DAYS[1], DAYS[2])), *days)
    assert sorted(two_days, key=repr) == sorted((row for row in everything if day_in(row) in DAYS[1:3]), key=repr)
    assert len(two_days) == 80
    assert len(engine.events(table, *days)) == 80  # of files that hold other days, too
    undated = engine.undated(files_of(table, index, lambda file: UNDATED in file.rows))
    assert sorted(undated, key=repr) == sorted((row for row in everything if day_in(row) is None), key=repr)
    assert len(undated) == {"csv": 5, "jsonl": 5}.get(form, 3)
    assert rows_a_day(index.values()) == Counter(day_in(row) for row in everything if day_in(row))


@pytest.mark.parametrize("form", ["us", "ns"])
def test_a_day_is_read_from_its_own_files_and_row_groups_and_undated_rows_from_those_that_hold_one(
    engine, tmp_path, form
) -> None:
    raw, rng = tmp_path / "raw", random.Random(5)
    tables = [rows_of(day, rng).sort_by("event_time") for day in DAYS[:6]]
    lost = tables[0].slice(0, 1).set_column(2, "event_time", pa.nulls(1, pa.timestamp("us", tz="UTC")))
    write(raw / "events" / "one", pa.concat_tables(tables[:3]), form)  # row groups of ten rows, in order of time
    write(raw / "events" / "two", pa.concat_tables([*tables[3:], lost]), form)
    table = as_read(raw, form, tmp_path)
    index = indexed(table, tmp_path / "ws", engine.count)
    files = files_of(table, index, lambda file: file.holds(DAYS[1], DAYS[1]))
    assert [[*index[file_name(file)].rows] for file in files.files] == [[day.isoformat() for day in DAYS[:3]]]
    day = midnight(DAYS[1]), midnight(DAYS[2])
    assert len(engine.events(files, *day)) == 40
    undated = files_of(table, index, lambda file: UNDATED in file.rows)
    held = [*(day.isoformat() for day in DAYS[3:6]), UNDATED]
    assert [[*index[file_name(file)].rows] for file in undated.files] == [held]
    assert len(engine.undated(undated)) == 1
    if form == "us":  # what is ingested has row groups of more than these few rows
        assert engine.scanned(files, *day) == 40
        assert engine.scanned(undated) <= 10  # the row group of that one row


def test_files_are_counted_once_and_again_only_when_they_change(engine, tmp_path) -> None:
    counted: list[list[str]] = []

    def count(table: CanonicalTable) -> dict[str, dict[str, int]]:
        counted.append([file.parent.name for file in table.files])
        return engine.count(table)

    raw, workspace = raw_folder(tmp_path / "raw", "us"), tmp_path / "ws"
    first = indexed(canonical_table(raw, "events"), workspace, count)
    assert indexed(canonical_table(raw, "events"), workspace, count) == first
    write(raw / "events" / f"date={DAYS[1]}" / "part-0", rows_of(DAYS[1], random.Random(1), 50), "us")
    write(raw / "events" / f"date={DAYS[5]}" / "part-0", rows_of(DAYS[5], random.Random(1), 60), "us")
    (raw / "events" / f"date={DAYS[4]}" / "part-0.parquet").unlink()
    again = indexed(canonical_table(raw, "events"), workspace, count)
    assert [len(files) for files in counted] == [5, 2]
    assert counted[1] == ["date=2024-03-02", "date=2024-03-06"]
    assert rows_a_day(again.values()) == dict(zip([*DAYS[:4], DAYS[5]], [40, 50, 40, 40, 60], strict=True))
    assert read_index(workspace) == again


@pytest.mark.parametrize("form", ["us", "ns", "text", "csv", "jsonl"])
def test_duckdb_and_spark_write_the_same_index(spark, tmp_path, form) -> None:
    table = as_read(raw_folder(tmp_path / "a b", form), form, tmp_path / "c d")
    with connect(tmp_path / "spill") as connection:
        for name, engine in (("one", Spark(spark)), ("other", DuckDB(connection))):
            indexed(table, tmp_path / name, engine.count)
    assert index_file(tmp_path / "one").read_bytes() == index_file(tmp_path / "other").read_bytes()


# --- the log --------------------------------------------------------------------------------------------------------


def test_late_events_are_told_by_the_log_and_by_the_status_and_taken_in_by_the_command_they_name(
    tmp_path, capsys
) -> None:
    from jobs.cli import stage_main
    from jobs.config import SequencesConfig
    from jobs.sequences.build import build
    from jobs.status import status_main

    raw, workspace = raw_folder(tmp_path / "raw", "us"), tmp_path / "ws"
    (raw / "items.csv").write_text("item_id,image_uri,category,title,price,created_at\ni0,0.png,,,,\n")

    def courier(main, *words: object) -> str:
        """What the command answers on stdout; our log goes there too, as no front door has turned it to stderr."""
        with pytest.raises(SystemExit) as stop:
            main(list(map(str, words)))
        assert stop.value.code in (0, None)
        return capsys.readouterr().out

    add = (stage_main, "sequences", raw, "--workspace", workspace)
    status = (status_main, "--workspace", workspace, "--json")
    assert "40 raw events lie before it" in courier(*add, "--from", DAYS[1], "--to", DAYS[3])
    held = json.loads(courier(*status))["log"]
    assert (held["first"], held["last"]) == ("2024-03-02", "2024-03-04")
    assert held["left_out"] == {"before": 40, "after": 40, "changed": {}}
    write(raw / "events" / "late", rows_of(DAYS[2], random.Random(2), 7), "us")
    courier(stage_main, "ingest", raw, "--workspace", workspace)
    held = json.loads(courier(*status))["log"]
    assert held["left_out"]["changed"] == {"2024-03-03": [40, 47]}
    assert "say `courier sequences --from 2024-03-01 --to 2024-03-05`" in held["said"]
    config = SequencesConfig()
    made = build(ingest=raw, raw=raw, workspace=workspace, out=tmp_path / "out", config=config)
    assert made.notes["left_out"] == held["left_out"]
    assert "events_left_out" not in courier(*add, "--from", "2024-03-01", "--to", "2024-03-05")
    assert json.loads(courier(*status))["log"]["left_out"] is None


def test_ingested_files_are_counted_once_wherever_they_lie(tmp_path) -> None:
    raw, counted = raw_folder(tmp_path / "raw", "csv"), []

    def count(table: CanonicalTable) -> dict[str, dict[str, int]]:
        counted.append(len(table.files))
        with connect(tmp_path / "spill") as connection:
            return raw_days_duckdb.count_days(connection, table)

    before = indexed(as_read(raw, "csv", tmp_path / "one"), tmp_path / "ws", count)
    write(raw / "events" / "date=later" / "part-0", rows_of(DAYS[6], random.Random(6)), "csv")
    table = as_read(raw, "csv", tmp_path / "two")
    after = indexed(table, tmp_path / "ws", count)
    assert counted == [5, 1]
    assert after.keys() == {file_name(file) for file in table.files}
    assert rows_a_day(after.values()) == rows_a_day(before.values()) | {DAYS[6]: 40}
