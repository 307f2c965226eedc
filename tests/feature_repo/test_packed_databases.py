"""SQLite, PostgreSQL and Redis hold packed rows alike: the newest of each key, whoever writes and in whatever order."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.contract import Feature, View
from feature_repo.packed.database import Asked, Batch, ConnectionUnknown, newest, open_database, table_name
from feature_repo.packed.keys import entity_keys, entity_of, key_part
from feature_repo.packed.reader import Lookup, PackedView, delete_expired, read_rows
from feature_repo.packed.rows import NO_TIME, Layout, cells_of

LAYOUT = Layout([Feature("n", "int")])
KEYS = [b"a", b"b", b"\0", b"\xff%*[", b""]
MOMENTS = [-(2**63) + 1, -(2**32), -1, 0, 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**53 + 1, 2**63 - 1]
WRITES = st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(MOMENTS), st.sampled_from([NO_TIME, *MOMENTS])))


@pytest.fixture
def database(connection):
    opened = open_database(connection)
    for table in ("t", "t_", "t_u", "p_v"):
        opened.drop(table)
    opened.create("t")
    yield opened
    opened.close()


def batch(writes):
    """Rows (key, event time, created time, number)."""
    keys, event, created, numbers = zip(*writes, strict=True) if writes else ((), (), (), ())
    times = np.array(event, np.int64), np.array(created, np.int64)
    return Batch(list(keys), *times, LAYOUT.pack(*times, {"n": cells_of("int", numbers)}))


def numbers(database, table, keys):
    [rows] = database.read([Asked(table, keys)])
    unpacked = LAYOUT.unpack(rows)
    return [number if found else None for number, found in zip(unpacked.values["n"], unpacked.found, strict=True)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(WRITES, max_size=3))
def test_each_key_holds_its_newest_row_and_of_two_alike_the_last_written(database, batches):
    database.drop("t")
    database.create("t")
    held, count = {}, 0
    for writes in batches:
        numbered = [(*write, count + place) for place, write in enumerate(writes)]
        count += len(writes)
        database.write("t", batch(numbered))
        for key, event, created, number in numbered:
            if key not in held or held[key][:2] <= (event, created):
                held[key] = (event, created, number)
    assert numbers(database, "t", KEYS) == [held[key][2] if key in held else None for key in KEYS]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(WRITES, WRITES, st.sampled_from(MOMENTS))
def test_a_batch_as_of_a_moment_replaces_what_is_held_up_to_it_and_nothing_later(database, first, second, as_of):
    database.drop("t")
    database.create("t")
    database.write("t", batch([(*write, place) for place, write in enumerate(first)]))
    database.write("t", batch([(*write, 100 + place) for place, write in enumerate(second)]), as_of=as_of)
    held, new = {}, {}
    for number, rows, into in ((0, first, held), (100, second, new)):
        for place, (key, *times) in enumerate(rows):
            if key not in into or into[key][0] <= times:
                into[key] = (times, number + place)
    for key, (times, number) in new.items():
        if key not in held or held[key][0] <= times or held[key][0][0] <= as_of:
            held[key] = (times, number)
    assert numbers(database, "t", KEYS) == [held[key][1] if key in held else None for key in KEYS]


def test_rows_are_counted_and_one_is_shown(database):
    assert (database.count("t"), database.some_row("t"), database.some_row("no table")) == (0, None, None)
    rows = batch([(key, 1, 1, 7) for key in KEYS])
    database.write("t", rows)
    assert database.count("t") == len(KEYS)
    assert database.some_row("t") == rows.rows[0]


def test_many_writers_at_once_leave_the_newest(connection, database):
    rng = np.random.default_rng(0)
    keys = [b"k%d" % number for number in range(40)]
    moments = rng.permutation(16 * 5 * 40).reshape(16, 5, 40)

    def write(worker):
        own = open_database(connection)
        for round_ in moments[worker]:
            order = rng.permutation(40).tolist()
            own.write("t", batch([(keys[place], int(round_[place]), NO_TIME, int(round_[place])) for place in order]))
        own.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(16)))
    assert numbers(database, "t", keys) == moments.max(axis=(0, 1)).tolist()


def test_several_tables_are_read_at_once_each_key_in_its_place(database):
    database.create("t_u")
    database.write("t", batch([(b"a", 1, 1, 1), (b"b", 1, 1, 2)]))
    database.write("t_u", batch([(b"a", 1, 1, 3)]))
    read = database.read([Asked("t", [b"b", b"x", b"a", b"b"]), Asked("t_u", [b"b", b"a"]), Asked("t", [])])
    found = [[row and LAYOUT.unpack([row]).values["n"][0] for row in rows] for rows in read]
    assert found == [[2, None, 1, 2], [None, 3], []]
    assert database.read([]) == []


def test_a_table_dropped_is_empty_when_it_is_made_again_and_no_other_is_touched(database):
    database.create("t_")
    for table in ("t", "t_"):
        database.write(table, batch([(key, 1, 1, 7) for key in KEYS]))
    database.create("t")
    assert numbers(database, "t", KEYS) == [7] * len(KEYS)
    database.drop("t")
    database.drop("t")
    database.create("t")
    assert numbers(database, "t", KEYS) == [None] * len(KEYS)
    assert numbers(database, "t_", KEYS) == [7] * len(KEYS)


def test_more_keys_than_one_query_takes(database):
    keys = [b"%06d" % number for number in range(2_500)]
    database.write("t", batch([(key, 1, 1, number) for number, key in enumerate(keys)]))
    assert numbers(database, "t", keys[::-1]) == list(range(2_500))[::-1]


@pytest.mark.parametrize("limit", [*MOMENTS, -5])
def test_rows_before_a_moment_are_deleted_and_counted(database, limit):
    rows = [(b"%d" % moment, moment, NO_TIME, place) for place, moment in enumerate(MOMENTS)]
    database.write("t", batch(rows))
    assert database.delete_before("t", limit) == sum(moment < limit for moment in MOMENTS)
    kept = [place if moment >= limit else None for place, moment in enumerate(MOMENTS)]
    assert numbers(database, "t", [key for key, *_ in rows]) == kept


def test_rows_are_found_by_what_their_key_and_their_bytes_hold_and_deleted(database):
    columns = {"item_id": ["a", "ab", "s", "item_id"], "space_id": ["s", "s", "a", "\0\xe9%"]}
    keys = entity_keys(columns)
    database.write("t", batch([(key, 5, NO_TIME, 256 * 7 + place) for place, key in enumerate(keys)]))
    assert [entity_of(key) for key in keys] == [
        dict(zip(columns, pair, strict=True)) for pair in zip(*columns.values(), strict=False)
    ]
    assert set(database.find("t", in_key=key_part("a"))) == {keys[0], keys[2]}  # of any join key; entity_of tells which
    assert database.find("t", in_key=key_part("a"), in_row=b"\x02\x07\0") == [keys[2]]
    assert set(database.find("t", in_row=b"\x07\0")) == set(database.find("t")) == set(keys)
    assert database.find("t", in_row=b"none") == database.find("t_u", in_key=b"") == []
    assert database.delete("t", [keys[2], keys[0], b"none"]) == 2
    assert database.delete("t", [keys[2]]) == database.delete("t", []) == database.delete("t_u", [keys[2]]) == 0
    assert set(database.find("t")) == {keys[1], keys[3]}


def test_what_was_deleted_from_sqlite_is_not_in_its_files(tmp_path):
    database = open_database("sqlite:///rows.db", tmp_path)
    database.create("t")
    database.write("t", batch([(b"somebody", 1, 1, 1), (b"another", 1, 1, 1)]))
    assert database.delete("t", [b"somebody"]) == 1
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"somebody" not in kept
    assert b"another" in kept


def test_a_row_older_than_its_views_ttl_is_not_there_and_can_be_deleted(database):
    as_of = datetime(2024, 3, 1, tzinfo=UTC)
    limit = (as_of - timedelta(days=1) - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
    view = View("v", ("item_id",), (Feature("n", "int"),))
    kept, held = PackedView.of(view, "p"), PackedView.of(replace(view, ttl=timedelta(days=1)), "p")
    keys = {"item_id": ["old", "edge", "none"]}
    database.create(held.table)
    database.write(held.table, batch(list(zip(entity_keys(keys), [limit - 1, limit], [0, 0], [1, 2], strict=False))))
    expiring, lasting = read_rows(database, [Lookup(held, keys), Lookup(kept, keys)], as_of=as_of)
    assert (expiring.found.tolist(), lasting.found.tolist()) == ([False, True, False], [True, True, False])
    assert (expiring.values["n"].tolist(), expiring.valid["n"].tolist()) == ([0, 2, 0], [False, True, False])
    assert delete_expired(database, [held], as_of=as_of) == {held.table: 1}
    assert delete_expired(database, [kept], as_of=as_of) == {}
    [left] = read_rows(database, [Lookup(kept, keys)], as_of=as_of)
    assert left.found.tolist() == [False, True, False]


def test_a_batch_that_fails_in_the_middle_writes_nothing(tmp_path):
    path = tmp_path / "online.db"
    database = open_database(f"sqlite:///{path}")
    database.create("t")
    good = batch([(b"a", 1, 1, 1), (b"b", 1, 1, 2)])
    with pytest.raises(sqlite3.IntegrityError):
        database.write("t", good._replace(rows=[good.rows[0], None]))
    assert numbers(database, "t", [b"a"]) == [None]
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_lost_connection_is_made_anew(postgresql_server):
    import psycopg

    database = open_database(f"{postgresql_server}/postgres")
    database.create("lost")
    with psycopg.connect(f"{postgresql_server}/postgres", autocommit=True) as server:
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    with pytest.raises(psycopg.OperationalError):
        numbers(database, "lost", [b"a"])
    assert numbers(database, "lost", [b"a"]) == [None]
    database.drop("lost")
    database.close()


def test_newest_keeps_of_each_key_the_last_in_time():
    writes = [(b"b", 2, 1, 0), (b"a", 1, 1, 1), (b"b", 2, 2, 2), (b"b", 2, 2, 3), (b"b", 1, 9, 4)]
    kept = newest(batch(writes))
    assert kept.keys == [b"a", b"b"]
    assert LAYOUT.unpack(kept.rows).values["n"].tolist() == [1, 3]


@pytest.mark.parametrize("wrong", ["", "online.db", "mysql://h/d", "sqlite://", "sqlite:///", "sqlite://h/p"])
def test_a_connection_string_that_names_no_database_is_refused_and_not_shown(wrong):
    with pytest.raises(ConnectionUnknown, match="give sqlite:///PATH"):
        open_database(wrong)
    with pytest.raises(ConnectionUnknown) as refusal:
        open_database("mysql://user:secret@host/d")
    assert "secret" not in str(refusal.value)


def test_long_names_of_views_stay_apart():
    names = {table_name("courier", "é" * 60 + tail) for tail in "ab"}
    assert len(names) == 2
    assert all(len(name.encode()) <= 63 for name in names)
    assert table_name("courier", "item_profile") == "courier_item_profile"
