"""The canaries pass on the road, and each of three sabotaged roads fails the check that names its leak."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from jobs.canary_road import BORROWED
from jobs.leak_canaries import release_canaries

USERS = 4


@pytest.fixture(scope="module")
def lent(shop):
    """What a workspace lends to the canaries' road; read-only."""
    return {name: getattr(shop, name) for name in BORROWED}


def test_on_the_road_no_canary_is_seen_too_early_and_every_control_sings(lent, tmp_path):
    findings = list(release_canaries(lent, tmp_path, users=USERS))
    assert [one for one in findings if not one.holds] == []
    assert {"canary.rows.history", "canary.rows.truncation", "canary.online"} <= {one.check for one in findings}


def first_broken(lent, scratch):
    return next(one for one in release_canaries(lent, scratch, users=USERS) if not one.holds)


def valid_from_its_own_moment(monkeypatch):
    """Histories hold the click of the very moment: <= where < is meant."""
    from pyspark.sql import functions as F

    from jobs.spark import behavior_sequences, histories

    def early(kept, length):
        earlier = F.timestamp_micros(F.unix_micros("event_timestamp") - 1)
        return honest(kept, length).withColumn("event_timestamp", earlier)

    honest = histories.histories
    monkeypatch.setattr(behavior_sequences, "histories", early)


def counted_from_the_morning(monkeypatch):
    """Statistics hold the day of the request."""
    from pyspark.sql import functions as F

    from jobs.spark import item_statistics

    def early(*frames, **options):
        counted = honest(*frames, **options)
        return counted.withColumn("event_timestamp", F.col("event_timestamp") - F.expr("INTERVAL 1 DAY"))

    honest = item_statistics.statistics
    monkeypatch.setattr(item_statistics, "statistics", early)


def joined_by_the_latest(monkeypatch):
    """Rows join the newest features there are, not those of their moment."""
    from jobs import training_rows

    def latest(store, keys, services):
        place = keys.schema.get_field_index("event_timestamp")
        at_the_end = pa.array([datetime(2100, 1, 1, tzinfo=UTC)] * len(keys), keys.schema.field(place).type)
        return honest(store, keys.set_column(place, "event_timestamp", at_the_end), services)

    honest = training_rows.features_as_of
    monkeypatch.setattr(training_rows, "features_as_of", latest)


@pytest.mark.parametrize(
    ("sabotage", "check"),
    [
        (valid_from_its_own_moment, "canary.rows.history"),
        (counted_from_the_morning, "canary.rows.item_statistics"),
        (joined_by_the_latest, "canary.rows.history"),
    ],
)
def test_a_sabotaged_road_fails_the_check_that_names_its_leak(lent, tmp_path, monkeypatch, sabotage, check):
    sabotage(monkeypatch)
    assert first_broken(lent, tmp_path).check == check
