"""Clicks in the online store: merged, never moved back, and the same to the byte as what a batch load writes."""

import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.contract import CTR_HISTORY, EVENT_TIME, PUSH_SOURCES, USER_HISTORY
from feature_repo.definitions import open_store
from feature_repo.online_views import FeastViews
from feature_repo.packed.sqlite_rows import SqliteRows
from jobs.features import materialize
from jobs.features.history_store import HistoryStore, StoreNotReady, as_rows
from jobs.features.offline_sources import point_sources
from jobs.rules.online_histories import EPOCH, merge, reconcile

NOW = 1_720_000_000_000_000  # microseconds; months after the last click of the shop


@pytest.fixture(scope="module")
def workspace(shop, tmp_path_factory):
    """A workspace of its own with the small shop's features loaded."""
    root = tmp_path_factory.mktemp("ws")
    materialize.build(features=shop.features, workspace=root, out=root / "materialize" / "k")
    return root


@pytest.fixture(scope="module")
def emptied(shop, tmp_path_factory):
    """Another one, whose histories nobody else reads."""
    root = tmp_path_factory.mktemp("emptied")
    materialize.build(features=shop.features, workspace=root, out=root / "materialize" / "k")
    return root


@pytest.fixture(scope="module")
def store(workspace):
    return HistoryStore(workspace)


def clicks_of(shop):
    found = {}
    for click in shop.clicks:
        found.setdefault(click["user_id"], []).append(
            (click["item_id"], (click["event_time"] - EPOCH) // timedelta(microseconds=1))
        )
    return found


def stored(workspace):
    """Every stored row of user_history with its moments, as bytes."""
    with sqlite3.connect(workspace / "feast" / "packed.db") as connection:
        return connection.execute("SELECT * FROM courier_user_history ORDER BY entity_key").fetchall()


def test_a_user_nobody_knows_has_an_empty_history(store):
    assert store.read(["nobody"]) == {"nobody": ()}
    assert store.read([]) == {}


def test_clicks_are_merged_with_what_the_batch_load_brought(store, shop):
    before = store.read(["u1"])["u1"]
    assert before == merge((), clicks_of(shop)["u1"], CTR_HISTORY)
    newer, middle, ancient = ("new", NOW), ("late", before[3][1]), ("ancient", 1)
    assert store.add({"u1": [newer, middle, ancient]}) == (1, 0)
    expected = merge(before, [newer, middle, ancient], CTR_HISTORY)
    assert store.read(["u1"])["u1"] == expected
    assert expected[0] == newer
    assert {middle} < set(expected)


def test_a_replay_writes_nothing(store, workspace, monkeypatch):
    clicks = {"replayed": [("a", NOW), ("b", NOW + 1)], "other": [("a", NOW)]}
    assert store.add(clicks) == (2, 0)
    before = stored(workspace)
    monkeypatch.setattr(store, "_write", lambda *_: pytest.fail("a replay was written"))
    assert store.add(clicks) == (0, 2)
    assert store.add({"replayed": [("a", NOW)]}) == (0, 1)
    assert stored(workspace) == before


def test_an_older_click_alone_never_replaces_a_newer_one(store):
    store.add({"ordered": [("new", NOW)]})
    store.add({"ordered": [("old", NOW - 5)]})
    assert store.read(["ordered"])["ordered"] == (("new", NOW), ("old", NOW - 5))


def test_a_pushed_row_states_the_moment_of_the_offline_snapshot():
    rows = as_rows({"u": (("a", 3_000_002), ("b", 1))})
    assert rows.schema.field(EVENT_TIME).type == pa.timestamp("us", tz="UTC")
    assert rows[EVENT_TIME][0].as_py() == datetime(1970, 1, 1, 0, 0, 3, 3, UTC)


def test_streaming_every_click_of_the_offline_tables_gives_the_loaded_store_to_the_byte(shop, loaded_shop, tmp_path):
    point_sources(tmp_path, shop.features)
    materialize._apply(tmp_path)
    assert stored(tmp_path) == []
    clicks = clicks_of(shop)
    store = HistoryStore(tmp_path)
    for part in (1, 0):  # the later half first
        store.add({user: own[part::2] for user, own in clicks.items()})
    assert stored(tmp_path) == stored(loaded_shop.workspace)


def test_a_push_through_feast_writes_the_same_bytes(store, workspace):
    clicks = {"by stream": [("a", NOW), ("b", NOW + 1)]}
    store.add(clicks)
    frame = as_rows({"by feast": merge((), clicks["by stream"], CTR_HISTORY)}).to_pandas()
    open_store(workspace).push(PUSH_SOURCES[USER_HISTORY.name], frame)
    rows = {key: rest for key, *rest in stored(workspace) if key.endswith((b"by stream", b"by feast"))}
    assert len(rows) == 2
    assert len(set(map(tuple, rows.values()))) == 1


def test_a_batch_load_after_the_stream_moves_nobody_back(shop, workspace, store):
    behind, ahead, untouched = "u2", "u3", "u4"
    offline = {user: merge((), own, CTR_HISTORY) for user, own in clicks_of(shop).items()}
    store.add({ahead: [("pushed", NOW), ("pushed late", offline[ahead][1][1])], "stranger": [("pushed", NOW)]})
    store.add({behind: [("disbelieved", offline[behind][0][1] - 1)]})  # older than the newest the tables have read
    materialize.build(features=shop.features, workspace=workspace, out=workspace / "materialize" / "again")
    held = store.read([ahead, behind, untouched, "stranger"])
    assert held[ahead] == merge(offline[ahead], [("pushed", NOW), ("pushed late", offline[ahead][1][1])], CTR_HISTORY)
    assert held[behind] == offline[behind]
    assert held[untouched] == offline[untouched]
    assert held["stranger"] == (("pushed", NOW),)


def test_no_moment_of_a_batch_load_shows_a_user_moved_back(shop, workspace, store, monkeypatch):
    store.add({"u5": [("pushed", NOW)]})
    write, seen = SqliteRows.write, []

    def looking(self, table, batch, **options):
        write(self, table, batch, **options)
        seen.append(store.read(["u5"])["u5"][0])

    monkeypatch.setattr(SqliteRows, "write", looking)
    materialize.build(features=shop.features, workspace=workspace, out=workspace / "materialize" / "looked")
    assert len(seen) >= 6
    assert set(seen) == {("pushed", NOW)}


HISTORIES = st.dictionaries(
    st.sampled_from("uvwxyz"),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=6),
    max_size=6,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HISTORIES, HISTORIES)
def test_loading_many_users_at_once_is_the_rule_of_reconcile_for_each(emptied, online, offline):
    store = HistoryStore(emptied)
    store._views.database.drop("courier_user_history")
    store._views.database.create("courier_user_history")
    held, brought = (
        {user: merge((), clicks, CTR_HISTORY) for user, clicks in side.items()} for side in (online, offline)
    )
    store.add(held)
    if brought:
        store.load(as_rows(brought), as_of=datetime(2024, 1, 1, tzinfo=UTC))
    expected = {user: reconcile(held.get(user, ()), brought.get(user, ()), CTR_HISTORY) for user in brought}
    assert store.read(list("uvwxyz")) == {user: expected.get(user, held.get(user, ())) for user in "uvwxyz"}


def test_a_store_that_is_busy_for_a_moment_is_tried_again(store, monkeypatch):
    write, failures = store._write, [sqlite3.OperationalError("database is locked")]

    def once_busy(rows, as_of):
        if failures:
            raise failures.pop()
        write(rows, as_of)

    monkeypatch.setattr(store, "_write", once_busy)
    assert store.add({"patient": [("a", NOW)]}) == (1, 0)
    assert store.read(["patient"])["patient"] == (("a", NOW),)


def test_a_bug_is_not_tried_again(store, monkeypatch):
    tried = []

    def bug(*_):
        tried.append(1)
        raise TypeError("a bug")

    monkeypatch.setattr(store, "_write", bug)
    with pytest.raises(TypeError):
        store.add({"hasty": [("a", NOW)]})
    assert tried == [1]


WRITER = """
import sys
from pathlib import Path
from jobs.features.history_store import HistoryStore
store = HistoryStore(Path(sys.argv[1]))
for n in range(40):
    store.add({"shared": [(sys.argv[2], n)]})
"""


def test_two_streams_at_once_lose_nothing(workspace, store):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, workspace, name]) for name in ("a", "b")]
    assert [writer.wait(timeout=200) for writer in writers] == [0, 0]
    every = [(name, n) for name in ("a", "b") for n in range(40)]
    assert store.read(["shared"])["shared"] == merge((), every, CTR_HISTORY)


def test_feasts_redis_is_told_to_write_what_is_merged_even_at_the_same_moment():
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig

    store = SimpleNamespace(config=SimpleNamespace(online_store=RedisOnlineStoreConfig()))
    FeastViews(store)
    assert store.config.online_store.skip_dedup


def test_a_workspace_without_a_feature_store_is_refused_with_the_cure(tmp_path):
    with pytest.raises(StoreNotReady, match="run courier materialize first"):
        HistoryStore(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "feast").mkdir()  # one that nothing was loaded into
    with pytest.raises(StoreNotReady, match="run courier materialize first"):
        HistoryStore(tmp_path)
