"""A day is read from the files and row groups that hold it, and events that the log leaves out are counted and told."""

import functools
import json
import os
import random
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from jobs.raw.folder import file_version, table_files
from jobs.sequences.daily.log import Watermark, midnight
from jobs.sequences.daily.raw_days import (
    UNDATED,
    FileDays,
    LeftOut,
    files_of,
    indexed,
    left_out,
    read_index,
    rows_a_day,
    sentence,
)
from jobs.sequences.duckdb.daily_log import DuckdbEngine

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


@pytest.mark.parametrize("form", ["us", "ns", "text", "csv", "jsonl"])
def test_what_is_read_of_some_days_or_of_no_day_is_what_all_that_is_read_says_of_them(spark, tmp_path, form) -> None:
    from pyspark.sql import functions as F

    from jobs.raw.spark_tables import events_between, read_events, undated_events
    from jobs.sequences.daily.raw_days_spark import count_days

    raw = raw_folder(tmp_path / "raw", form)
    table = table_files(raw, "events")
    index = indexed(raw, tmp_path / "ws", functools.partial(count_days, spark))
    everything = read_events(spark, raw, NOW)
    start, end = midnight(DAYS[1]), midnight(DAYS[3])
    two_days = events_between(spark, files_of(table, index, lambda file: file.holds(DAYS[1], DAYS[2])), start, end, NOW)
    expected = everything.filter((F.col("event_time") >= start) & (F.col("event_time") < end))
    assert sorted(map(str, two_days.collect())) == sorted(map(str, expected.collect()))
    assert two_days.count() == 80
    assert events_between(spark, table, start, end, NOW).count() == 80  # of files that hold other days, too
    undated = undated_events(spark, files_of(table, index, lambda file: UNDATED in file.rows), NOW)
    expected = everything.filter(F.col("event_time").isNull())
    assert sorted(map(str, undated.collect())) == sorted(map(str, expected.collect()))
    assert undated.count() == {"csv": 5, "jsonl": 5}.get(form, 3)
    by_day = everything.groupBy(F.date_format("event_time", "yyyy-MM-dd").alias("day")).count().collect()
    assert {str(day): rows for day, rows in rows_a_day(index.values()).items()} == {
        row["day"]: row["count"] for row in by_day if row["day"] is not None
    }


def scanned(frame) -> tuple[int, int]:
    """How many files and rows the scans of a frame, now run, have read."""
    frame.collect()
    found = [0, 0]

    def add(plan) -> None:
        if plan.getClass().getSimpleName() == "FileSourceScanExec":
            metrics = plan.metrics()
            for place, name in enumerate(("numFiles", "numOutputRows")):
                found[place] += metrics.get(name).get().value()
        children = plan.children()
        for number in range(children.size()):
            add(children.apply(number))

    add(frame._jdf.queryExecution().executedPlan())
    return found[0], found[1]


def test_a_day_is_read_from_its_own_files_and_row_groups_and_undated_rows_from_those_that_hold_one(
    spark, tmp_path
) -> None:
    from jobs.raw.spark_tables import events_between, undated_events
    from jobs.sequences.daily.raw_days_spark import count_days

    raw, rng = tmp_path / "raw", random.Random(5)
    tables = [rows_of(day, rng).sort_by("event_time") for day in DAYS[:6]]
    lost = tables[0].slice(0, 1).set_column(2, "event_time", pa.nulls(1, pa.timestamp("us", tz="UTC")))
    write(raw / "events" / "one", pa.concat_tables(tables[:3]), "us")  # row groups of ten rows, in order of time
    write(raw / "events" / "two", pa.concat_tables([*tables[3:], lost]), "us")
    table = table_files(raw, "events")
    index = indexed(raw, tmp_path / "ws", functools.partial(count_days, spark))
    files = files_of(table, index, lambda file: file.holds(DAYS[1], DAYS[1]))
    day = events_between(spark, files, midnight(DAYS[1]), midnight(DAYS[2]), NOW)
    assert re.search(r"PushedFilters: \[.*GreaterThanOrEqual\(event_time,2024-03-02", str(day._jdf.queryExecution()))
    assert scanned(day) == (1, 40)
    undated = undated_events(spark, files_of(table, index, lambda file: UNDATED in file.rows), NOW)
    assert scanned(undated) == (1, 1)


def test_files_are_counted_once_and_again_only_when_they_change(tmp_path) -> None:
    counted: list[list[str]] = []

    def spy(table):
        counted.append([file.parent.name for file in table.files])
        return DuckdbEngine(tmp_path).count_days(table)

    raw, workspace = raw_folder(tmp_path / "raw", "us"), tmp_path / "ws"
    first = indexed(raw, workspace, spy)
    assert indexed(raw, workspace, spy) == first
    write(raw / "events" / f"date={DAYS[1]}" / "part-0", rows_of(DAYS[1], random.Random(1), 50), "us")
    write(raw / "events" / f"date={DAYS[5]}" / "part-0", rows_of(DAYS[5], random.Random(1), 60), "us")
    (raw / "events" / f"date={DAYS[4]}" / "part-0.parquet").unlink()
    again = indexed(raw, workspace, spy)
    assert [len(files) for files in counted] == [5, 2]
    assert counted[1] == ["date=2024-03-02", "date=2024-03-06"]
    assert rows_a_day(again.values()) == dict(zip([*DAYS[:4], DAYS[5]], [40, 50, 40, 40, 60], strict=True))
    assert read_index(workspace) == again


# --- the log --------------------------------------------------------------------------------------------------------


def test_late_events_are_told_by_the_log_and_by_the_status_and_taken_in_by_the_command_they_name(
    tmp_path, capsys
) -> None:
    from jobs.cli import stage_main, status_main
    from jobs.config import SequencesConfig
    from jobs.sequences.build import build

    raw, workspace = raw_folder(tmp_path / "raw", "us"), tmp_path / "ws"
    (raw / "items.csv").write_text("item_id,image_uri,category,title,price,created_at\n")

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
    held = json.loads(courier(*status))["log"]
    assert held["left_out"]["changed"] == {"2024-03-03": [40, 47]}
    assert "say `courier sequences --from 2024-03-01 --to 2024-03-05`" in held["said"]
    config = SequencesConfig()
    made = build(raw=raw, raw_digest="", workspace=workspace, out=tmp_path / "out", config=config)
    assert made.notes["left_out"] == held["left_out"]
    assert "events_left_out" not in courier(*add, "--from", "2024-03-01", "--to", "2024-03-05")
    assert json.loads(courier(*status))["log"]["left_out"] is None
