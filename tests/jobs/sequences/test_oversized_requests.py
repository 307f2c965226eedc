"""A request_id that is sent with everything is validated as any other, and no task gets all of its events."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from jobs.raw.canonical import canonical_table
from jobs.rules import events as logic
from jobs.rules.events import Event

START = datetime(2024, 3, 1, 12, tzinfo=UTC)
NOW = START + timedelta(days=30)
SECOND = timedelta(seconds=1)


def rows(frame) -> Counter[str]:
    return Counter(map(str, frame.collect()))


@pytest.mark.parametrize("larger_than", [25, 0])
def test_oversized_requests_are_validated_as_all_others_are(
    spark, drawn_events, write_events, tmp_path, larger_than
) -> None:
    from jobs.raw.spark_tables import read_events
    from jobs.sequences.spark.event_validation import validate_together
    from jobs.sequences.spark.oversized_requests import oversized_requests, validate

    events = drawn_events([n * 7_919_317_003 % 10**12 for n in range(600)])
    blank = Event(user_id="u", item_id="i", event_time=START, event_type="click", request_id=" ")
    read = read_events(spark, canonical_table(write_events(tmp_path, [*events, blank]), "events"), NOW)
    sizes = Counter(one.request_id for one in events)
    oversized = oversized_requests(read, larger_than)
    assert oversized == sorted(request for request, size in sizes.items() if size > larger_than)
    assert 0 < len(oversized) <= len(sizes)
    found = validate(read, larger_than=larger_than)
    assert found.columns == validate_together(read).columns
    assert rows(found) == rows(validate_together(read))
    fates = logic.inconsistent(events, logic.page_keys(events))
    assert Counter(row["reason"] for row in found.collect()) == Counter(
        ["null_request_id", *(fates.get(one) for one in events)]
    )


def test_no_task_gets_all_events_of_an_oversized_request(spark, write_events, tmp_path) -> None:
    from pyspark.sql import functions as F

    from jobs.raw.spark_tables import read_events
    from jobs.sequences.spark.oversized_requests import validate

    constant = {"request_id": "undefined", "event_type": "impression", "position": 0}
    events = [
        Event(user_id=f"u{n % 7}", item_id=f"i{n % 50}", event_time=START + n * SECOND, **constant) for n in range(2000)
    ]
    read = read_events(spark, canonical_table(write_events(tmp_path, events), "events"), NOW)
    eight_tasks = {"spark.sql.adaptive.coalescePartitions.enabled": "false", "spark.sql.shuffle.partitions": "8"}
    before = {name: spark.conf.get(name) for name in eight_tasks}
    for name, value in eight_tasks.items():
        spark.conf.set(name, value)
    try:
        validated = {larger_than: validate(read, larger_than=larger_than) for larger_than in (1000, 2000)}
        task, once = F.spark_partition_id(), F.count_if(~F.col("repeat")).alias("events")
        most = {
            larger_than: max(row["events"] for row in frame.groupBy(task).agg(once).collect())
            for larger_than, frame in validated.items()
        }
    finally:
        for name, value in before.items():
            spark.conf.set(name, value)
    assert most[2000] == 2000  # validated with all others, they are one task's
    assert most[1000] < 500  # else each of eight tasks has about 250


def test_an_oversized_request_is_told(spark, write_events, tmp_path, capsys) -> None:
    from jobs.raw.spark_tables import read_events
    from jobs.sequences.spark.oversized_requests import validate

    clicks = [
        Event(user_id="u", item_id="i", event_time=START + n * SECOND, event_type="click", request_id="undefined")
        for n in range(3)
    ]
    read = read_events(spark, canonical_table(write_events(tmp_path, clicks), "events"), NOW)
    validate(read, larger_than=3)
    assert "oversized_requests" not in "".join(capsys.readouterr())
    validate(read, larger_than=2)
    said = "".join(capsys.readouterr())
    assert "oversized_requests" in said
    assert "undefined" in said
