"""The probes pass on the pipeline, and each sabotaged stage or log fails the check that names its leak."""

from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest

from jobs.config import SequencesConfig
from jobs.features.offline import connect
from jobs.leakage.daily_log import grow_log
from jobs.leakage.planted_probes import draw_sample, plant
from jobs.leakage.probe_run import SOURCES, ProbeRun, write_events
from jobs.leakage.probes import check_probes

USERS = 4


@pytest.fixture(scope="module")
def sources(shop):
    """What the probes' run reads of a workspace; read-only."""
    return {name: getattr(shop, name) for name in SOURCES}


def test_no_probe_is_seen_too_early_and_every_positive_control_is_seen(sources, tmp_path):
    results = list(check_probes(sources, tmp_path, users=USERS))
    assert [one for one in results if not one.passed] == []
    assert {
        *("probe.rows.history", "probe.rows.truncation", "probe.online", "probe.rows.midnight_statistics"),
        *("probe.daily_log.future", "probe.daily_log.late", "probe.daily_log.late_reported"),
    } <= {one.name for one in results}


def first_failed(sources, scratch):
    return next(one for one in check_probes(sources, scratch, users=USERS) if not one.passed)


def valid_from_its_own_moment(monkeypatch):
    """Histories hold the click of the very moment: <= where < is meant."""
    from jobs.sequences.duckdb import behavior_sequences

    def early(length):
        rows = honest(length)
        query = f"SELECT * REPLACE (event_timestamp - 1 AS event_timestamp) FROM ({rows.query})"
        return replace(rows, query=query)

    honest = behavior_sequences.histories
    monkeypatch.setattr(behavior_sequences, "histories", early)


def counted_from_the_morning(monkeypatch):
    """Statistics hold the day of the request."""
    from jobs.sequences.duckdb import item_statistics

    def early(*queries, **options):
        a_day_before = f"event_timestamp - {item_statistics.DAY_US} AS event_timestamp"
        return f"SELECT * REPLACE ({a_day_before}) FROM ({honest(*queries, **options)})"

    honest = item_statistics.statistics
    monkeypatch.setattr(item_statistics, "statistics", early)


def joined_by_the_latest(monkeypatch):
    """Rows join the newest features there are, not those of their moment."""
    from jobs.features import training_rows

    def latest(store, asked, services):
        at_the_end = f"SELECT * REPLACE (TIMESTAMPTZ '2100-01-01' AS event_timestamp) FROM ({asked})"
        return honest(store, at_the_end, services)

    honest = training_rows.features_as_of
    monkeypatch.setattr(training_rows, "features_as_of", latest)


@pytest.mark.parametrize(
    ("sabotage", "check"),
    [
        (valid_from_its_own_moment, "probe.rows.history"),
        (counted_from_the_morning, "probe.rows.item_statistics"),
        (joined_by_the_latest, "probe.rows.history"),
    ],
)
def test_a_sabotaged_stage_fails_the_check_that_names_its_leak(sources, tmp_path, monkeypatch, sabotage, check):
    sabotage(monkeypatch)
    assert first_failed(sources, tmp_path).name == check


def reads_a_day_too_far(monkeypatch):
    """A day is added with the events of the day after it, where they lie in the raw folder already."""
    from jobs.sequences import facts
    from jobs.sequences.duckdb import daily_log

    def too_far(db, table, start, end, as_of):
        return honest(db, table, start, end + timedelta(days=1), as_of)

    honest = daily_log.events_between
    monkeypatch.setattr(daily_log, "events_between", too_far)
    monkeypatch.setattr(facts, "_require_all", lambda _: None)  # whose sums would end it before the check is asked


def takes_in_what_is_late(monkeypatch):
    """A day is added with all that lies before it, and what was settled is written anew."""
    from jobs.sequences.daily import log as daily_log

    monkeypatch.setattr(daily_log, "SETTLED_AFTER", timedelta(days=30))


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    """The planted events, all and before the cutoff, each with sequences that were built from them at once."""
    from jobs.sequences.build import build

    def sequences_alone(name, cut):
        workspace = root / name
        raw, out = write_events(connection, workspace / "raw", cut=cut), workspace / "sequences"
        build(ingest=raw, raw=raw, workspace=workspace, out=out, config=SequencesConfig())
        return ProbeRun(workspace=workspace, sequences=out, features=out, rows=out)

    root = tmp_path_factory.mktemp("built")
    with closing(connect()) as connection:
        draw_sample(connection, sources, USERS)
        plant(connection)
        yield connection, {"whole": sequences_alone("whole", cut=False), "before": sequences_alone("before", cut=True)}


@pytest.mark.parametrize(
    ("sabotage", "check"),
    [(reads_a_day_too_far, "probe.daily_log.future"), (takes_in_what_is_late, "probe.daily_log.late")],
)
def test_a_sabotaged_log_fails_the_check_that_names_its_leak(built, tmp_path, monkeypatch, sabotage, check):
    connection, runs = built
    sabotage(monkeypatch)
    results = grow_log(connection, tmp_path, **runs, config=SequencesConfig())
    assert next(one.name for one in results if not one.passed) == check
