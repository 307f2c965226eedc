"""What a release fixes is read from its artifact: promote and roll back touch no store, and whoever is next answers."""

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recorded_releases import let_answer

from feature_repo.contract import ITEM_KEY
from feature_repo.online_views import open_views
from jobs.features import materialize, offline
from jobs.releases import commands
from model import artifact
from model.released_items import FOLDER, ReleasedItems, write_lookup
from model.releases import Release
from serving import ranker
from serving.features import RankingFeatures

NOW = datetime(2024, 6, 1, tzinfo=UTC)
USERS = ["u1", "u7", "nobody"]
ITEMS = [*(f"i{number}" for number in range(42)), "nothing"]


def lookup(shop, folder, item_ids=None):
    """The lookup of a release that has these items; None: all."""
    items = pq.read_table(shop.embed / "items.parquet")
    clusters = pq.read_table(shop.cluster / "items.parquet")
    assert items[ITEM_KEY].equals(clusters[ITEM_KEY])
    kept = pa.array([item_ids is None or item in item_ids for item in items[ITEM_KEY].to_pylist()])
    items, clusters = items.filter(kept), clusters.filter(kept)
    ids = items[ITEM_KEY].combine_chunks()
    write_lookup(folder, ids, clusters["cluster_id"].to_numpy(), items["row"].to_numpy())
    return folder


@pytest.fixture(scope="module")
def space_id(shop):
    return artifact.read(shop.features, kind="features").facts["space_id"]


def answer(features, user, space_id):
    rows = features.ranking_rows(user, ITEMS[::2], space_id, as_of=NOW, vectors=True)
    met = pa.array([*ITEMS, "i0"])
    found = rows.vectors.rows_of(met)
    vectors = [rows.vectors.matrix[row].tobytes() if row >= 0 else None for row in found]
    return str(rows.table.to_pylist()), rows.table.schema, rows.known_user, rows.known_items, vectors


@pytest.mark.parametrize("has", ["every item", "some items", "no item"])
def test_the_release_and_the_store_say_the_same_and_the_store_is_asked_only_for_what_was_added_since(
    loaded_shop, shop, space_id, tmp_path, monkeypatch, has
):
    items = {"every item": None, "some items": set(ITEMS[::3]), "no item": set()}[has]
    vectors = shop.embed / "vectors.npy"
    views = open_views(loaded_shop.workspace)
    released = ReleasedItems(space_id, lookup(shop, tmp_path / FOLDER, items), vectors)
    asked, read = [], views.database.read

    def recorded(lookups):
        asked.extend((table, key) for table, keys in lookups for key in keys)
        return read(lookups)

    for user in USERS:
        expected = answer(RankingFeatures(views), user, space_id)
        with monkeypatch.context() as patched:
            patched.setattr(views.database, "read", recorded)
            assert answer(RankingFeatures(views, released), user, space_id) == expected
            other = answer(RankingFeatures(views, released), user, "sother")
        assert other == answer(RankingFeatures(views), user, "sother")
    held = set(shop.vectors) if items is None else set(shop.vectors) & items
    of_space = {key for table, key in asked if table.endswith(("cluster", "embedding")) and space_id.encode() in key}
    assert not any(key.endswith(item.encode()) and len(item) > 2 for key in of_space for item in held)


def test_roll_back_restart_rank_answers(shop, tmp_path, monkeypatch, capsys):
    """Two releases of two spaces; the store was loaded last for the second, and the first is rolled back to."""
    spaces = {"r1": artifact.read(shop.features, kind="features").facts["space_id"], "r2": "snew"}
    load(shop, tmp_path, "r1", shop.features)
    with artifact.write(tmp_path / "features2", kind="features", inputs={}, config={}) as draft:
        for view in ("user_history", "user_statistics", "item_statistics"):
            (draft.path / view).symlink_to(shop.features / view)
        offline.write_item_facts(shop.sequences, shop.images, shop.embed, shop.cluster, draft.path, space_id="snew")
        draft.facts = {**artifact.read(shop.features, kind="features").facts, "space_id": "snew"}
    load(shop, tmp_path, "r2", tmp_path / "features2")
    for name, space in spaces.items():
        let_answer(tmp_path, release(tmp_path, name, space))
    monkeypatch.setattr(ranker, "load_ctr_model", lambda _: Clusters())
    capsys.readouterr()
    assert ranked(tmp_path, capsys) == ("r2", None)
    with pytest.raises(SystemExit, match="0"):
        commands.release_main(["rollback", "--workspace", str(tmp_path)])
    capsys.readouterr()
    assert ranked(tmp_path, capsys) == ("r1", None)
    store = open_views(tmp_path)
    store.database.drop(store.views["item_cluster"].table)  # nothing that a release fixes is asked of the store
    store.database.create(store.views["item_cluster"].table)
    assert ranked(tmp_path, capsys) == ("r1", None)


def load(shop, workspace, name, features):
    materialize.build(features=features, workspace=workspace, out=workspace / "materialize" / name)
    space_id = artifact.read(features, kind="features").facts["space_id"]
    with artifact.write(workspace / "cluster" / name, kind="cluster", inputs={}, config={}) as draft:
        draft.facts = {"space_id": space_id}
        lookup(shop, draft.path / FOLDER)
    with artifact.write(workspace / "embed" / name, kind="embed", inputs={}, config={}) as draft:
        draft.facts = {"space_id": space_id}
        np.save(draft.path / "vectors.npy", np.load(shop.embed / "vectors.npy"))


def release(workspace, name, space_id):
    paths = {stage: f"{stage}/{name}" for stage in ("embed", "cluster", "materialize")}
    artifacts = {stage: {"path": p, "digest": artifact.digest(workspace / p)} for stage, p in paths.items()}
    return Release(
        release_id=name, created_at=NOW, space_id=space_id, ctr_model="m/none", artifacts=artifacts, metrics={}
    )


class Clusters:
    """A model that refuses rows without their clusters."""

    images = "cluster_id"

    def predict(self, table, _):
        assert min(table["cluster_id"].to_pylist()) >= 0
        assert max(max(clusters) for clusters in table["history_cluster_ids"].to_pylist()) >= 0
        return np.linspace(0.1, 0.9, len(table))


def ranked(workspace, capsys):
    items = [word for item in ("i1", "i2", "i4") for word in ("--items", item)]
    ranker.main(["--workspace", str(workspace), "--user", "u1", *items, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [one["known"] for one in said["results"]] == [True] * 3
    assert all(one["score"] for one in said["results"])
    return said["release"], said["degraded"]


def test_a_release_of_before_there_were_lookups_is_served_by_the_store(tmp_path):
    from serving.release import OpenRelease

    opened = OpenRelease(
        Release(release_id="r", created_at=NOW, space_id="s", ctr_model="m/none", artifacts={}, metrics={}),
        {"cluster": tmp_path, "embed": tmp_path},
    )
    assert ranker._released_items(opened) is None
