"""Loading the online store: idempotent, safe to kill, compared before it counts, spaces side by side."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo.contract import EVENT_TIME, ITEM_PROFILE, VIEWS
from feature_repo.definitions import open_store
from feature_repo.online_views import Asked, PackedViews, StoreNotLoaded, open_views
from feature_repo.store_settings import FILE_VARIABLE, REPOSITORY
from jobs.features import materialize, offline
from jobs.features.load import StoreDiffers
from jobs.features.offline_sources import SOURCES, check_sources, point_sources
from model import artifact
from model.artifact import ArtifactMismatch
from serving.features import RankingFeatures

MOMENT = datetime(2024, 6, 1, tzinfo=UTC)
CODEBOOK = "c0123456789ab"
MICROSECOND = timedelta(microseconds=1)


def online(workspace, space_id):
    """What the store answers for two users and all items, as text (NaN is not equal to itself)."""
    store = RankingFeatures(open_views(workspace))
    items = [f"i{number}" for number in range(42)]
    answers = [store.ranking_rows(user, items, space_id, CODEBOOK, as_of=MOMENT, vectors=True) for user in ("u1", "u2")]
    return [(str(a.table.to_pylist()), a.known_user, a.known_items, a.vectors.matrix.tobytes()) for a in answers]


@pytest.fixture
def build(shop, tmp_path):
    return lambda: materialize.build(features=shop.features, workspace=tmp_path, out=tmp_path / "materialize" / "k")


KILLED = """
import os, signal, sys
from pathlib import Path
from feature_repo.packed.sqlite_rows import SqliteRows
from jobs.features import {module}
write, left = SqliteRows.write, [int(sys.argv[3])]
def kill(*given, **options):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return {deed}
{patched} = kill
from jobs.features import materialize
materialize.build(features=Path(sys.argv[1]), workspace=Path(sys.argv[2]), out=Path(sys.argv[2]) / "materialize" / "k")
"""
IN_A_WRITE = KILLED.format(module="load", deed="write(*given, **options)", patched="SqliteRows.write")
BEFORE_THE_WATERMARK = KILLED.format(module="load", deed="None", patched="load.check_count")


@pytest.mark.parametrize(("program", "after"), [(IN_A_WRITE, 2), (IN_A_WRITE, 5), (BEFORE_THE_WATERMARK, 0)])
def test_a_load_that_is_killed_and_runs_again_ends_like_one_that_was_not(
    build, shop, loaded_shop, tmp_path, program, after
):
    command = [sys.executable, "-c", program, shop.features, tmp_path, str(after)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not (tmp_path / "materialize" / "k").exists()
    assert not materialize.is_loaded(tmp_path, shop.features)
    assert watermarks(tmp_path) == {view.name: None for view in VIEWS}
    artifact.sweep(tmp_path / "materialize")
    build()
    assert materialize.is_loaded(tmp_path, shop.features)
    assert watermarks(tmp_path) == {view.name: shop.as_of for view in VIEWS}
    space_id = artifact.read(shop.features, kind="features").facts["space_id"]
    assert online(tmp_path, space_id) == online(loaded_shop.workspace, space_id)
    for view in VIEWS:  # nothing is there that was not loaded
        assert open_views(tmp_path).count(view) == open_views(loaded_shop.workspace).count(view)


def watermarks(workspace):
    """Up to when Feast takes each view for loaded."""
    return {view.name: view.most_recent_end_time for view in open_store(workspace).list_feature_views()}


def test_a_second_load_changes_nothing(build, tmp_path):
    first = build()
    space_id = first.facts["space_id"]
    before = online(tmp_path, space_id)
    second = build()
    assert online(tmp_path, space_id) == before
    assert second.facts["rows"] == first.facts["rows"]


def test_two_spaces_lie_side_by_side_in_the_online_store(build, shop, tmp_path):
    old = build().facts["space_id"]
    before = online(tmp_path, old)
    with artifact.write(tmp_path / "features", kind="features", inputs={}, config={}) as draft:
        for view in ("user_history", "user_statistics", "item_statistics"):
            (draft.path / view).symlink_to(shop.features / view)
        offline.write_item_facts(
            shop.sequences, shop.images, shop.embed, shop.cluster, draft.path, space_id="snew", codebook_id=CODEBOOK
        )
        facts = artifact.read(shop.features, kind="features").facts
        draft.facts = {**facts, "space_id": "snew"}
    materialize.build(features=tmp_path / "features", workspace=tmp_path, out=tmp_path / "materialize" / "new")
    assert online(tmp_path, old) == before
    assert online(tmp_path, "snew") == before
    assert materialize.is_loaded(tmp_path, tmp_path / "features")
    assert not materialize.is_loaded(tmp_path, shop.features)  # finished once, but no longer what the store holds


def rows_of(view, names, *rows):
    columns = [*view.keys, EVENT_TIME, *(feature.name for feature in view.features)]
    schema = offline.source_schema(view)
    return pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows], schema=schema).select(names)


@pytest.fixture
def changed(shop, tmp_path):
    """Makes a features artifact whose item profiles are these."""

    def make(name, *rows):
        with artifact.write(tmp_path / name, kind="features", inputs={}, config={}) as draft:
            for view in VIEWS:
                if view is not ITEM_PROFILE:
                    (draft.path / view.name).symlink_to(shop.features / view.name)
            (draft.path / ITEM_PROFILE.name).mkdir()
            names = offline.source_schema(ITEM_PROFILE).names
            for number, row in enumerate(rows):
                part = draft.path / ITEM_PROFILE.name / f"part-{number}.parquet"
                pq.write_table(rows_of(ITEM_PROFILE, names, row), part)
            draft.facts = dict(artifact.read(shop.features, kind="features").facts)
        return tmp_path / name

    return make


def load(features, workspace, key):
    return materialize.build(features=features, workspace=workspace, out=workspace / "materialize" / key)


def profile(workspace, item):
    [found] = open_views(workspace).read([Asked((ITEM_PROFILE,), {"item_id": [item]})], as_of=MOMENT)
    return tuple(found.to_pylist()[0].values())[1:]


def test_an_entitys_newest_row_as_of_the_tables_moment_is_loaded(changed, shop, tmp_path):
    day = timedelta(days=1)
    rows = [
        ("a", shop.as_of - 2 * day, "old", 1.0, 1),
        ("a", shop.as_of, "newest", 2.0, 2),
        ("a", shop.as_of - day, "older", 3.0, 3),
        ("a", shop.as_of + MICROSECOND, "of the future", 4.0, 4),
        ("b", shop.as_of + MICROSECOND, "of the future", 5.0, 5),
    ]
    done = load(changed("features", *rows), tmp_path, "k")
    assert done.facts["rows"]["item_profile"] == 1
    assert profile(tmp_path, "a") == ("newest", 2.0, 2)
    assert profile(tmp_path, "b") == (None, None, None)


def test_feasts_own_increment_goes_on_from_our_watermark(changed, shop, tmp_path):
    day = timedelta(days=1)
    load(changed("features", ("a", shop.as_of - 9 * day, "loaded", 1.0, 1)), tmp_path, "k")
    later = rows_of(
        ITEM_PROFILE,
        offline.source_schema(ITEM_PROFILE).names,
        ("a", shop.as_of + day, "later", 2.0, 2),
        ("b", shop.as_of - 9 * day, "before the watermark", 3.0, 3),
    )
    pq.write_table(later, tmp_path / "features" / ITEM_PROFILE.name / "part-9.parquet")
    command = [Path(sys.executable).with_name("feast"), "materialize-incremental", (shop.as_of + 2 * day).isoformat()]
    env = {**os.environ, "COURIER_WORKSPACE": str(tmp_path)}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert profile(tmp_path, "a") == ("later", 2.0, 2)
    assert profile(tmp_path, "b") == (None, None, None)
    assert watermarks(tmp_path) == {view.name: shop.as_of + 2 * day for view in VIEWS}


def test_what_the_tables_no_longer_say_is_replaced_even_by_an_earlier_row(changed, shop, tmp_path):
    day = timedelta(days=1)
    load(changed("first", ("a", shop.as_of, "withdrawn", 1.0, 1), ("b", shop.as_of, "b", 1.0, 1)), tmp_path, "k1")
    later = rows_of(ITEM_PROFILE, offline.source_schema(ITEM_PROFILE).names, ("b", shop.as_of + day, "pushed", 9.0, 9))
    open_views(tmp_path).write(ITEM_PROFILE, later.to_batches()[0])
    load(changed("second", ("a", shop.as_of - day, "right", 2.0, 2), ("b", shop.as_of, "b", 1.0, 1)), tmp_path, "k2")
    assert profile(tmp_path, "a") == ("right", 2.0, 2)
    assert profile(tmp_path, "b") == ("pushed", 9.0, 9)  # someone has written it since


def loses(rows):
    return rows.filter(pc.not_equal(rows["item_id"], "b"))


def alters(rows):
    dearer = pc.add(rows["price"], pa.array([float(item == "b") for item in rows["item_id"].to_pylist()]))
    return rows.set_column(rows.schema.get_field_index("price"), "price", dearer)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (loses, "holds 1 rows of item_profile, the offline tables 2: run materialize again"),
        (alters, "item_profile of item_id 'b' is another online than offline: run materialize again"),
    ],
)
def test_a_store_that_loses_or_alters_a_row_is_refused_and_no_watermark_moves(
    changed, shop, tmp_path, monkeypatch, damage, sentence
):
    features = changed("features", ("a", shop.as_of, "c", 1.0, 1), ("b", shop.as_of, "c", 1.0, 1))
    write = PackedViews.write

    def damaged(self, view, rows, **options):
        write(self, view, damage(rows) if view is ITEM_PROFILE else rows, **options)

    monkeypatch.setattr(PackedViews, "write", damaged)
    with pytest.raises(StoreDiffers, match=sentence):
        load(features, tmp_path, "k")
    assert not materialize.is_loaded(tmp_path, features)
    assert watermarks(tmp_path)["item_profile"] is None


def test_after_a_teardown_or_for_another_store_the_features_do_not_count_as_loaded(build, shop, tmp_path, monkeypatch):
    build()
    file = tmp_path / "other.yaml"
    file.write_text((REPOSITORY / "feature_store.yaml").read_text("utf-8").replace("packed.db", "other.db"), "utf-8")
    with monkeypatch.context() as patched:
        patched.setenv(FILE_VARIABLE, str(file))
        assert not materialize.is_loaded(tmp_path, shop.features)
    assert materialize.is_loaded(tmp_path, shop.features)
    open_store(tmp_path).teardown()
    assert not materialize.is_loaded(tmp_path, shop.features)
    with pytest.raises(StoreNotLoaded):
        open_views(tmp_path).check()


def test_the_sources_are_a_relative_link_that_moves_in_one_step(tmp_path):
    workspace = tmp_path / "ws"
    for version in ("a", "b"):
        (workspace / "features" / version).mkdir(parents=True)
        point_sources(workspace, workspace / "features" / version)
        link = workspace / SOURCES
        assert link.readlink() == Path("..") / "features" / version
        check_sources(workspace, workspace / "features" / version)
    with pytest.raises(ArtifactMismatch, match="run materialize again"):
        check_sources(workspace, workspace / "features" / "a")
    assert sorted(path.name for path in (workspace / "feast").iterdir()) == ["sources"]


def test_nothing_of_feasts_chatter_reaches_the_terminal(build, capfd):
    build()
    shown = capfd.readouterr()
    assert shown.out == "" or "features_materialized" in shown.out
    assert "%|" not in shown.err  # tqdm's bar
    assert "Warning" not in shown.err
