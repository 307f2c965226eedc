"""What a workspace remembers of the items tables that it has ingested."""

from datetime import UTC, datetime, timedelta

import duckdb
import pytest
from raw_files import AT, as_csv

from jobs.config import IngestConfig
from jobs.pipeline import run_stages, stage_states
from jobs.raw import profile_history
from jobs.raw.ingest import build, read_tables
from jobs.raw.profile_history import FOLDER, history_inputs, record, remembered, stands, states_in_order
from jobs.workspace import open_workspace

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def ingest(tmp_path):
    """Ingest these items on a day, counted from NOON, and remember them; returns how many states were new."""

    def ingest(day, *rows):
        (tmp_path / "raw").mkdir(exist_ok=True)
        full = [{"image_uri": "a.png", "category": "", "price": "", "created_at": "", **row} for row in rows]
        (tmp_path / "raw" / "items.csv").write_bytes(as_csv(full))
        artifact = tmp_path / "ws" / "ingest" / f"day{day}"
        read_tables(raw=tmp_path / "raw", raw_digest="", out=artifact, config=IngestConfig(), threads=1)
        return record(tmp_path / "ws", artifact, tmp_path / "raw", now=NOON + day * DAY)

    return ingest


def held(workspace, query=remembered):
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        rows = db.execute(
            f"SELECT item_id, price, date_diff('day', TIMESTAMPTZ '{NOON}', first_seen) "
            f"FROM ({query(workspace)}) ORDER BY ALL"
        )
        return rows.fetchall()


def test_a_profile_is_remembered_when_it_is_first_seen_and_again_when_it_has_changed(ingest, tmp_path):
    assert ingest(0, {"item_id": "a", "price": "1"}, {"item_id": "b", "price": "5"}) == 2
    assert ingest(1, {"item_id": "a", "price": "1"}, {"item_id": "b", "price": "5"}) == 0
    assert ingest(2, {"item_id": "a", "price": "2"}, {"item_id": "b", "price": "5"}, {"item_id": "c"}) == 2
    assert ingest(3, {"item_id": "a", "price": "1"}) == 1  # it is back; and what left the table changed nothing
    assert held(tmp_path / "ws") == [("a", 1, 0), ("a", 1, 3), ("a", 2, 2), ("b", 5, 0), ("c", None, 2)]


def test_what_is_no_part_of_the_profile_is_not_remembered(ingest):
    assert ingest(0, {"item_id": "a", "title": "old"}) == 1
    assert ingest(1, {"item_id": "a", "title": "new", "image_uri": "b.png"}) == 0


def test_dated_rows_are_remembered_once_and_again_where_they_are_mended(ingest, tmp_path):
    first, second = (
        {"item_id": "a", "price": price, "updated_at": AT.replace("03-01", day)}
        for price, day in (("1", "03-01"), ("2", "04-01"))
    )
    assert ingest(0, first) == 1
    assert ingest(1, first, second) == 1
    assert ingest(2, first | {"price": "1.5"}, second, {"item_id": "a", "price": "9", "updated_at": ""}) == 1
    assert held(tmp_path / "ws", lambda ws: states_in_order(remembered(ws))) == [("a", 1.5, 2), ("a", 2, 1)]


def test_a_file_that_was_written_is_never_written_again_and_the_digest_follows_the_content(ingest, tmp_path):
    workspace = tmp_path / "ws"
    nothing = history_inputs(workspace, tmp_path)
    ingest(0, {"item_id": "a", "price": "1"})
    first = history_inputs(workspace, tmp_path)
    [file] = (workspace / FOLDER).glob("*.parquet")
    was = file.read_bytes(), file.stat().st_mtime_ns
    ingest(1, {"item_id": "a", "price": "1"})
    assert history_inputs(workspace, tmp_path) == first
    ingest(2, {"item_id": "a", "price": "2"})
    assert (file.read_bytes(), file.stat().st_mtime_ns) == was
    assert len({nothing[FOLDER], first[FOLDER], history_inputs(workspace, tmp_path)[FOLDER]}) == 3


def test_a_clock_that_is_set_back_makes_nothing_older_than_what_was_seen_before(ingest, tmp_path):
    ingest(5, {"item_id": "a", "price": "1"})
    ingest(2, {"item_id": "a", "price": "2"})
    assert held(tmp_path / "ws") == [("a", 1, 5), ("a", 2, 5)]
    with duckdb.connect() as db:
        newest = f"SELECT price FROM ({states_in_order(remembered(tmp_path / 'ws'))}) ORDER BY known_from DESC LIMIT 1"
        assert db.execute(newest).fetchall() == [(2.0,)]


def test_the_stage_stands_while_its_items_are_those_that_were_seen_last(ingest, tmp_path):
    workspace = tmp_path / "ws"
    ingest(0, {"item_id": "a", "price": "1"})
    assert stands(workspace, workspace / "ingest" / "day0", {})
    ingest(1, {"item_id": "a", "price": "2"})
    assert not stands(workspace, workspace / "ingest" / "day0", {})
    assert stands(workspace, workspace / "ingest" / "day1", {})


def test_a_recording_that_was_killed_is_made_up_for(ingest, tmp_path, monkeypatch):
    workspace = tmp_path / "ws"
    ingest(0, {"item_id": "a", "price": "1"})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(profile_history.artifact, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        ingest(1, {"item_id": "a", "price": "2"})
    monkeypatch.undo()
    assert not stands(workspace, workspace / "ingest" / "day1", {})
    assert ingest(2, {"item_id": "a", "price": "2"}) == 0
    assert held(workspace) == [("a", 1, 0), ("a", 2, 1)]


def test_an_ingest_without_items_remembers_nothing(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "events.csv").write_bytes(
        b"user_id,item_id,event_time,event_type,request_id,position\nu,i,2024-03-01T12:00:00Z,click,r,0\n"
    )
    out = tmp_path / "ws" / "ingest" / "k"
    build(raw=tmp_path / "raw", raw_digest="", out=out, config=IngestConfig(), workspace=tmp_path / "ws")
    assert stands(tmp_path / "ws", out, {})
    assert held(tmp_path / "ws") == []


def test_a_table_that_is_as_it_was_before_is_seen_again_although_its_artifact_stands(tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "ws"
    raw.mkdir()
    (raw / "events.csv").write_bytes(
        b"user_id,item_id,event_time,event_type,request_id,position\nu,a,2024-03-01T12:00:00Z,click,r,0\n"
    )
    done = []
    for price in ("1", "2", "1", "1"):
        (raw / "items.csv").write_bytes(as_csv([{"item_id": "a", "image_uri": "a.png", "price": price}]))
        workspace = open_workspace(folder, raw)
        done.append(run_stages(workspace, only="ingest")["ingest"])
    assert done == ["built", "built", "built", "skipped"]
    assert stage_states(workspace, only="ingest")["ingest"].fresh
    with duckdb.connect() as db:
        prices = db.execute(f"SELECT price FROM ({remembered(folder)}) ORDER BY first_seen").fetchall()
    assert prices == [(1,), (2,), (1,)]
