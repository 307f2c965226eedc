"""A request_id that is sent with everything is judged as any other, and no task gets all of its events."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from jobs.rules import events as logic
from jobs.rules.events import Event

START = datetime(2024, 3, 1, 12, tzinfo=UTC)
NOW = START + timedelta(days=30)
SECOND = timedelta(seconds=1)


def rows(frame) -> Counter[str]:
    return Counter(map(str, frame.collect()))


@pytest.mark.parametrize("crowd", [25, 0])
def test_crowded_requests_are_judged_as_all_others_are(spark, drawn_events, write_events, tmp_path, crowd) -> None:
    from jobs.raw.spark_tables import read_events
    from jobs.sequences.spark.event_validation import judge_together
    from jobs.sequences.spark.oversized_requests import crowded_requests, judge

    events = drawn_events([n * 7_919_317_003 % 10**12 for n in range(600)])
    blank = Event(user_id="u", item_id="i", event_time=START, event_type="click", request_id=" ")
    read = read_events(spark, write_events(tmp_path, [*events, blank]), NOW)
    sizes = Counter(one.request_id for one in events)
    crowded = crowded_requests(read, crowd)
    assert crowded == sorted(request for request, size in sizes.items() if size > crowd)
    assert 0 < len(crowded) <= len(sizes)
    found = judge(read, crowd=crowd)
    assert found.columns == judge_together(read).columns
    assert rows(found) == rows(judge_together(read))
    fates = logic.out_of_place(events, logic.page_keys(events))
    assert Counter(row["reason"] for row in found.collect()) == Counter(
        ["null_request_id", *(fates.get(one) for one in events)]
    )


def test_no_task_gets_all_events_of_a_crowded_request(spark, write_events, tmp_path) -> None:
    from pyspark.sql import functions as F

    from jobs.raw.spark_tables import read_events
    from jobs.sequences.spark.oversized_requests import judge

    constant = {"request_id": "undefined", "event_type": "impression", "position": 0}
    events = [
        Event(user_id=f"u{n % 7}", item_id=f"i{n % 50}", event_time=START + n * SECOND, **constant) for n in range(2000)
    ]
    read = read_events(spark, write_events(tmp_path, events), NOW)
    eight_tasks = {"spark.sql.adaptive.coalescePartitions.enabled": "false", "spark.sql.shuffle.partitions": "8"}
    before = {name: spark.conf.get(name) for name in eight_tasks}
    for name, value in eight_tasks.items():
        spark.conf.set(name, value)
    try:
        judged = {crowd: judge(read, crowd=crowd) for crowd in (1000, 2000)}
        task, once = F.spark_partition_id(), F.count_if(~F.col("repeat")).alias("events")
        most = {
            crowd: max(row["events"] for row in frame.groupBy(task).agg(once).collect())
            for crowd, frame in judged.items()
        }
    finally:
        for name, value in before.items():
            spark.conf.set(name, value)
    assert most[2000] == 2000  # judged with all others, they are one task's
    assert most[1000] < 500  # else each of eight tasks has about 250


def test_a_crowded_request_is_told(spark, write_events, tmp_path, capsys) -> None:
    from jobs.raw.spark_tables import read_events
    from jobs.sequences.spark.oversized_requests import judge

    clicks = [
        Event(user_id="u", item_id="i", event_time=START + n * SECOND, event_type="click", request_id="undefined")
        for n in range(3)
    ]
    read = read_events(spark, write_events(tmp_path, clicks), NOW)
    judge(read, crowd=3)
    assert "crowded_requests" not in "".join(capsys.readouterr())
    judge(read, crowd=2)
    said = "".join(capsys.readouterr())
    assert "crowded_requests" in said
    assert "undefined" in said
