"""courier forget over a shop's artifacts, its online store, a release, logs and leftovers: nothing is left, twice."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from feature_repo.contract import ITEM_KEY, USER_HISTORY, USER_KEY, VIEWS
from feature_repo.online_views import open_views
from infra.migrations.migrate import migrate
from jobs.features.history_store import HistoryStore
from jobs.features.materialize import build, is_loaded
from jobs.features.offline_sources import SOURCES
from jobs.forget.command import BadRequest, forget, forget_main
from jobs.raw.forgotten import FORGOTTEN_FILE
from jobs.workspace import open_workspace, releases_url, remember
from model import artifact, releases
from model.release_database import reading, writing
from model.released_items import FOLDER as LOOKUP
from model.released_items import ReleasedItems

RELEASED = ("images", "embed", "cluster", "materialize")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def shop(tmp_path, shop_maker):
    """A shop with a loaded store, a release of some of its artifacts, raw tables, a log and rejected clicks."""
    made = shop_maker(tmp_path / "ws")
    folder = made.workspace
    build(features=made.features, workspace=folder, out=folder / "materialize" / "k")
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = [f"{one['user_id']},{one['item_id']},{one['event_time'].isoformat()},click,r,1" for one in made.clicks]
    text = "\n".join(["user_id,item_id,event_time,event_type,request_id,position", *lines])
    (raw / "events.csv").write_text(text, "utf-8")
    (raw / "items.csv").write_text("item_id,image_uri\ni1,a.jpg\ni5,b.jpg\n", "utf-8")
    remember(open_workspace(folder, raw))
    stages = {stage: folder / stage / "k" for stage in RELEASED}
    named = {
        stage: {"path": path.relative_to(folder).as_posix(), "digest": artifact.digest(path)}
        for stage, path in stages.items()
    }
    migrate(releases_url(folder))
    release = releases.Release(
        release_id="r1",
        created_at=datetime.now(UTC),
        space_id="s",
        ctr_model="m",
        artifacts=named,
        metrics={},
    )
    with writing(releases_url(folder)) as session:
        releases.record(session, release, by="me")
        releases.promote(session, "r1", now=datetime.now(UTC), by="me")
    rejected = folder / "feast" / "rejected_clicks"
    rejected.mkdir()
    row = {"row": {"user_id": "u1", "item_id": "i5"}, "reason": "bad"}
    (rejected / "rejected-1.jsonl").write_text(json.dumps(row) + '\n{"row": {"user_id": "u10"}, "reason": "bad"}\n')
    reports = folder / "reports"
    reports.mkdir()
    (reports / "check.json").write_text(json.dumps({"examples": [json.dumps({"user_id": "u1", "item_id": "i5"})]}))
    return made


def texts(workspace):
    """Every value of every parquet file and every text of a workspace, and the keys and rows of its store."""
    found = []
    for path in sorted(workspace.rglob("*")):
        if path.suffix == ".parquet":
            found += [json.dumps(row, default=str) for row in pq.read_table(path).to_pylist()]
        elif path.suffix in (".json", ".jsonl", ".html"):
            found.append(path.read_text())
    store = open_views(workspace)
    for name, view in store.views.items():
        for key in store.database.find(view.table):
            [[row]] = store.database.read([(view.table, [key])])
            found.append(f"{name} {key!r} {row!r}")
    return found


def held(workspace, one):
    """How many of these name the id, as a value of JSON or in the store's bytes."""
    return sum(f'"{one}"' in text or f"\\x00{one}'" in text or f"\\x00{one}\\x" in text for text in texts(workspace))


@pytest.mark.parametrize(("key", "one"), [(USER_KEY, "u1"), (ITEM_KEY, "i5")])
def test_nothing_is_left_of_whom_was_forgotten_and_a_second_run_finds_nothing(shop, key, one):
    folder = shop.workspace
    assert held(folder, one)
    first = forget(open_workspace(folder), key, one, by="me")
    assert held(folder, one) == 0
    assert (first.left, first.unread_raw) == (0, None)
    assert first.found > 10
    assert [place.done for place in first.places if place.where == "online store"] == ["deleted"]
    second = forget(open_workspace(folder), key, one, by="me")
    assert (second.found, second.left) == (0, 0)
    assert second.raw == first.raw
    rows = sum(click[key] == one for click in shop.clicks)
    assert next(iter(first.raw.values())) == rows


def test_a_user_leaves_nobody_elses_rows_changed(shop):
    folder, others = shop.workspace, [f"u{n}" for n in range(2, 12)]
    views = open_views(folder)
    before = views.read_timed(USER_HISTORY, {USER_KEY: others}, as_of=datetime.now(UTC))
    features = pq.read_table(folder / SOURCES / "user_history")
    forget(open_workspace(folder), USER_KEY, "u1", by="me")
    assert views.read_timed(USER_HISTORY, {USER_KEY: others}, as_of=datetime.now(UTC)).equals(before)
    kept = pq.read_table(folder / SOURCES / "user_history")
    assert kept.to_pylist() == [row for row in features.to_pylist() if row["user_id"] != "u1"]
    assert {view.name: views.count(view) for view in VIEWS if view.keys == (USER_KEY,)} == {
        "user_history": 11,
        "user_statistics": 11,
    }


def test_a_forgotten_item_is_in_no_ones_history(shop):
    folder, users = shop.workspace, [f"u{n}" for n in range(12)]
    before = HistoryStore(folder).read(users)
    assert any(item == "i5" for history in before.values() for item, _ in history)
    forget(open_workspace(folder), ITEM_KEY, "i5", by="me")
    without = {user: tuple(click for click in history if click[0] != "i5") for user, history in before.items()}
    assert HistoryStore(folder).read(users) == without


@pytest.mark.parametrize(("key", "one"), [(USER_KEY, "u1"), (ITEM_KEY, "i5")])
def test_the_release_names_whole_artifacts_without_it_and_the_store_still_holds_its_features(shop, key, one):
    folder = shop.workspace
    forget(open_workspace(folder), key, one, by="me")
    with reading(releases_url(folder)) as session:
        release = releases.answering(session)
        acts = [act.act for act in releases.acts(session, "r1")]
    for stage, where in release.artifacts.items():
        artifact.verify(folder / where["path"], kind=stage)
        assert artifact.digest(folder / where["path"]) == where["digest"]
    assert is_loaded(folder, (folder / SOURCES).resolve())
    assert ("rows_deleted" in acts) == (key == ITEM_KEY)  # none of this release's artifacts knows users
    assert not (folder / "sequences" / "k").exists()


def test_vectors_are_those_of_the_items_that_are_left(shop):
    folder = shop.workspace
    forget(open_workspace(folder), ITEM_KEY, "i5", by="me")
    with reading(releases_url(folder)) as session:
        embed = folder / releases.answering(session).artifacts["embed"]["path"]
    vectors, items = np.load(embed / "vectors.npy"), pq.read_table(embed / "items.parquet").to_pylist()
    assert {row["item_id"] for row in items} == shop.vectors.keys() - {"i5"}
    assert len(vectors) == len(shop.vectors) - 1
    assert all((vectors[row["row"]] == shop.vectors[row["item_id"]]).all() for row in items)


def test_what_a_server_maps_has_the_vectors_of_the_items_that_are_left(shop):
    folder = shop.workspace
    forget(open_workspace(folder), ITEM_KEY, "i5", by="me")
    with reading(releases_url(folder)) as session:
        named = releases.answering(session).artifacts
    embed, cluster = (folder / named[stage]["path"] for stage in ("embed", "cluster"))
    items = ReleasedItems("s", "c", cluster / LOOKUP, embed / "vectors.npy")
    left = sorted(shop.vectors.keys() - {"i5"})
    assert items.find(["i5"]).tolist() == [-1]
    assert np.array_equal(items.vectors(items.find(left)), np.stack([shop.vectors[item] for item in left]))


KILLER = """
import os, random, signal, sys, threading
from datetime import datetime
from pathlib import Path
from jobs.forget import artifacts, command
from jobs.workspace import open_workspace

calls = int(sys.argv[4])
def die_at(event, arguments):
    global calls
    if event in ("os.rename", "os.remove", "os.link", "os.rmdir", "os.mkdir", "shutil.rmtree", "sqlite3.connect"):
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die_at)
command.forget(open_workspace(Path(sys.argv[1])), sys.argv[2], sys.argv[3], by="me")
"""


@pytest.mark.parametrize("calls", [2, 10, 40])
def test_killed_anywhere_and_run_again_it_ends_the_same(shop, calls):
    folder = shop.workspace
    argv = [sys.executable, "-c", KILLER, str(folder), ITEM_KEY, "i5", str(calls)]
    done = subprocess.run(argv, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with reading(releases_url(folder)) as session:  # whoever answers still can
        named = dict(releases.answering(session).artifacts)
    for stage, where in named.items():
        artifact.verify(folder / where["path"], kind=stage)
        assert artifact.digest(folder / where["path"]) == where["digest"]
    assert forget(open_workspace(folder), ITEM_KEY, "i5", by="me").left == 0
    assert held(folder, "i5") == 0
    assert forget(open_workspace(folder), ITEM_KEY, "i5", by="me").found == 0
    assert not list(folder.rglob(f"*{artifact.PARTIAL}"))


def test_the_command_answers_with_its_proof_and_names_nobody_in_the_list(shop, capsys):
    try:
        forget_main(["--user", "u1", "--workspace", str(shop.workspace), "--json"])
    except SystemExit as stop:
        assert not stop.code  # noqa: PT017
    said = json.loads(capsys.readouterr().out)
    assert (said["left"], said["entity_id"]) == (0, "u1")
    assert "0 are left" in said["sentence"]
    assert "u1" not in (shop.workspace / FORGOTTEN_FILE).read_text()


def test_whom_to_forget_must_be_said_once(shop):
    for argv in ([], ["--user", "u1", "--item", "i1"]):
        with pytest.raises(BadRequest, match="give --user ID or --item ID"):
            forget_main([*argv, "--workspace", str(shop.workspace)])
