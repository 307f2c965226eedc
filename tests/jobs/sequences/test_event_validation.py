"""Events seen together are validated as plain Python validates them: page views, contradictions, repeats, the cap."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.engines.duckdb_session import connect
from jobs.raw.canonical import canonical_table
from jobs.raw.duckdb_tables import read_events
from jobs.rules import events as logic
from jobs.rules.events import Event
from jobs.sequences.duckdb.event_validation import validate

MIDNIGHT = datetime(2024, 3, 2, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW = datetime(2025, 1, 1, tzinfo=UTC)
DAY, SECOND, MICROSECOND = timedelta(days=1), timedelta(seconds=1), timedelta(microseconds=1)


def event(kind: str = "click", at: datetime = MIDNIGHT, **changed: Any) -> Event:
    given = {"user_id": "u", "item_id": "i", "request_id": "r", "position": 0} | changed
    return Event(event_type=kind, event_time=at, **given)


Agree = Callable[[Path, list[Event], int], None]


@pytest.fixture(params=["duckdb", pytest.param("spark", marks=pytest.mark.slow)])
def assert_agree(request, tmp_path) -> Agree:
    """That an engine says of raw events, with a cap on a user's clicks of a day, what jobs.rules says of them."""
    if request.param == "spark":
        return functools.partial(assert_spark_agrees, request.getfixturevalue("spark"))
    return functools.partial(assert_duckdb_agrees, tmp_path / "spilled")


def assert_duckdb_agrees(spilled: Path, raw: Path, events: list[Event], max_clicks_per_day: int) -> None:
    """Reason, page view and repeats of each event."""
    fates, pages = logic.rejections(events, max_clicks_per_day), logic.page_keys(events)
    with connect(spilled) as db:
        validate(db, read_events(db, canonical_table(raw, "events"), NOW), max_clicks_per_day)
        names = "user_id, item_id, us, event_type, request_id"
        shown = "SELECT opened_by, item_id, us, 'impression', request_id, position FROM seen JOIN opened USING (page)"
        others = f"SELECT {names}, position, reason FROM other"
        seen, other = db.sql(shown).fetchall(), db.sql(others).fetchall()
        once = db.sql(f"SELECT {names}, page IS NOT NULL FROM deed").fetchall()
    found = Counter((moved(row[:5]), row[5], None) for row in seen) + Counter(
        (moved(row[:5]), row[5], row[6]) for row in other
    )
    assert found == Counter((one.identity, one.position, fates.get(one)) for one in events)
    kept = logic.deduplicate([one for one in events if one not in fates])
    opened = {pages[one] for one in events if one.event_type == logic.IMPRESSION}
    deeds = [one for one in kept if one.event_type != logic.IMPRESSION]
    assert sorted((moved(row[:5]), row[5]) for row in once) == [
        (one.identity, pages.get(one) in opened) for one in deeds
    ]


def moved(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row's identity with its moment as Python has it."""
    return *row[:2], EPOCH + row[2] * MICROSECOND, *row[3:]


def validated(spark, raw: Path, max_clicks_per_day: int) -> list[dict[str, Any]]:
    from pyspark.sql import functions as F

    from jobs.raw.spark_tables import read_events
    from jobs.sequences.spark.event_validation import cap, over_cap_users, validate_together

    together = validate_together(read_events(spark, canonical_table(raw, "events"), NOW))
    found = cap(together, over_cap_users(together, max_clicks_per_day))
    return [row.asDict() for row in found.withColumn("at", F.unix_micros("event_time")).collect()]


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    at = EPOCH + row["at"] * MICROSECOND
    return row["user_id"], row["item_id"], at, row["event_type"], row["request_id"], row["position"]


def assert_spark_agrees(spark, raw: Path, events: list[Event], max_clicks_per_day: int) -> None:
    """Reason, page view and repeats of each event are those that jobs.rules finds."""
    read = validated(spark, raw, max_clicks_per_day)
    fates, pages = logic.rejections(events, max_clicks_per_day), logic.page_keys(events)
    found = Counter((identity(row), row["reason"], row["page_day"]) for row in read)
    days = {one: (key[1] - EPOCH.date()).days for one, key in pages.items()}
    assert found == Counter(((*one.identity, one.position), fates.get(one), days.get(one)) for one in events)
    stand = sorted(identity(row) for row in read if row["reason"] is None and not row["repeat"])
    kept = logic.deduplicate([one for one in events if one not in fates])
    assert stand == [(*one.identity, one.position) for one in kept]


def test_events_on_both_sides_of_midnights_are_validated_as_plain_python_validates_them(
    assert_agree, drawn_events, write_events, tmp_path
) -> None:
    events = drawn_events([n * 7_919_317_003 % 10**12 for n in range(600)])
    assert set(logic.rejections(events, 2).values()) == {
        "request_of_another_user",
        "click_before_request",
        "too_many_clicks",
    }
    assert_agree(write_events(tmp_path, events), events, 2)


@pytest.mark.parametrize("cap", [1, 2, 3, 4])
def test_of_a_bots_clicks_the_first_of_each_day_stand(assert_agree, write_events, tmp_path, cap) -> None:
    clicks = [event(at=MIDNIGHT + n * SECOND, request_id=f"r{n}") for n in (3, 1, 0, 2)]
    tied = [event(at=MIDNIGHT + DAY - MICROSECOND, item_id=item) for item in "cab"]
    tomorrow = event(at=MIDNIGHT + DAY)
    events = [*clicks, clicks[0], *tied, tomorrow, event(user_id="v"), event(kind="cart")]
    assert_agree(write_events(tmp_path, events), events, cap)


def test_a_request_seen_on_four_days_running_is_several_page_views(assert_agree, write_events, tmp_path) -> None:
    days = [MIDNIGHT + n * DAY for n in range(4)]
    events = [event("impression", at, user_id=f"u{n % 2}", item_id=f"i{n}") for n, at in enumerate(days)]
    events += [event(at=at + part, user_id="u1") for at in (MIDNIGHT - 2 * DAY, *days) for part in (-SECOND, SECOND)]
    assert_agree(write_events(tmp_path, events), events, 1000)


def test_each_task_passes_on_no_more_of_a_bots_clicks_than_may_stand(spark, write_events, tmp_path) -> None:
    from jobs.raw.spark_tables import read_events
    from jobs.sequences.spark.event_validation import over_cap_users, validate_together

    raw = write_events(tmp_path, [event(at=MIDNIGHT + n * SECOND) for n in range(5)])
    plan = (
        over_cap_users(validate_together(read_events(spark, canonical_table(raw, "events"), NOW)), 2000)
        ._jdf.queryExecution()
        .executedPlan()
        .toString()
    )
    assert "WindowGroupLimit" in plan


def told(validated) -> Counter[tuple[Any, ...]]:
    from pyspark.sql import functions as F

    rows = validated.withColumn("at", F.unix_micros("event_time")).collect()
    return Counter((*identity(row.asDict()), row["page_day"], row["repeat"], row["reason"], row["row"]) for row in rows)


@pytest.mark.parametrize("few", [0, 100_000])
@pytest.mark.parametrize("whose", ["several users' requests", "each request one user's"])
def test_all_but_accepted_impressions_are_validated_apart_as_they_are_together(
    spark, drawn_events, write_events, tmp_path, monkeypatch, few, whose
) -> None:
    from pyspark.sql import functions as F

    from jobs.raw.spark_tables import read_events
    from jobs.sequences.spark import oversized_requests as oversized_requests
    from jobs.sequences.spark.event_validation import consistent, openings, validate_together
    from jobs.sequences.spark.oversized_requests import validate_apart

    monkeypatch.setattr(oversized_requests, "FEW", few)
    events = drawn_events([n * 7_919_317_003 % 10**12 for n in range(600)])
    if whose == "each request one user's":
        events = [replace(one, user_id=f"u{one.request_id}") for one in events]
    read = read_events(spark, canonical_table(write_events(tmp_path, events), "events"), NOW).persist()
    opened = openings(read.filter("event_type = 'impression'")).persist()
    assert bool(opened.filter("shared").count()) == (whose == "several users' requests")
    together = validate_together(read).persist()
    accepted = F.col("reason").isNull() & (F.col("event_type") == "impression")
    assert told(validate_apart(read, opened)) == told(together.filter(~accepted))
    names = ["user_id", "item_id", "event_time", "request_id", "position", "page_day"]
    placed, expected = consistent(read.filter("event_type = 'impression'"), opened), together.filter(accepted)
    assert Counter(placed.select(names).collect()) == Counter(expected.select(names).collect())
