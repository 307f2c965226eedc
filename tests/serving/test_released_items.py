"""What a release fixes is read from its artifact: promote and roll back touch no store, and whoever is next answers."""

import json
from datetime import UTC, datetime
from pathlib import Path

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
from model.artifact import ArtifactMismatch
from model.released_items import FOLDER, ReleasedItems, write_lookup
from model.releases import Release
from serving import ranker
from serving.features import RankingFeatures
from serving.release import OpenRelease

NOW = datetime(2024, 6, 1, tzinfo=UTC)
CODEBOOK = "c0123456789ab"
USERS = ["u1", "u7", "nobody"]
OTHERS = (("sother", CODEBOOK), ("s0123456789ab", "cother"))  # of a space, of its other codebooks
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


def answer(features, user, space_id, codebook_id=CODEBOOK):
    rows = features.ranking_rows(user, ITEMS[::2], space_id, codebook_id, as_of=NOW, vectors=True)
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
    released = ReleasedItems(space_id, CODEBOOK, lookup(shop, tmp_path / FOLDER, items), vectors)
    asked, read = [], views.database.read

    def recorded(lookups):
        asked.extend((table, key) for table, keys in lookups for key in keys)
        return read(lookups)

    for user in USERS:
        expected = answer(RankingFeatures(views), user, space_id)
        with monkeypatch.context() as patched:
            patched.setattr(views.database, "read", recorded)
            assert answer(RankingFeatures(views, released), user, space_id) == expected
            others = [answer(RankingFeatures(views, released), user, *other) for other in OTHERS]
        assert others == [answer(RankingFeatures(views), user, *other) for other in OTHERS]
        assert others[1] != expected  # in the release's own space, but under another codebook
    held = set(shop.vectors) if items is None else set(shop.vectors) & items
    of_space = {key for table, key in asked if table.endswith(("cluster", "embedding")) and space_id.encode() in key}
    assert not any(key.endswith(item.encode()) and len(item) > 2 for key in of_space for item in held)


def test_roll_back_restart_rank_answers(shop, tmp_path, monkeypatch, capsys):
    """Two releases of two spaces; the store was loaded last for the second, and the first is rolled back to."""
    spaces = {"r1": (artifact.read(shop.features, kind="features").facts["space_id"], CODEBOOK), "r2": ("snew", "cnew")}
    load(shop, tmp_path, "r1", shop.features)
    with artifact.write(tmp_path / "features2", kind="features", inputs={}, config={}) as draft:
        for view in ("user_history", "user_statistics", "item_statistics"):
            (draft.path / view).symlink_to(shop.features / view)
        offline.write_item_facts(
            shop.sequences, shop.images, shop.embed, shop.cluster, draft.path, space_id="snew", codebook_id="cnew"
        )
        draft.facts = {**artifact.read(shop.features, kind="features").facts, "space_id": "snew", "codebook_id": "cnew"}
    load(shop, tmp_path, "r2", tmp_path / "features2")
    for name, of in spaces.items():
        let_answer(tmp_path, release(tmp_path, name, *of))
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
    facts = artifact.read(features, kind="features").facts
    with artifact.write(workspace / "cluster" / name, kind="cluster", inputs={}, config={}) as draft:
        draft.facts = {name: facts[name] for name in ("space_id", "codebook_id")}
        lookup(shop, draft.path / FOLDER)
    with artifact.write(workspace / "embed" / name, kind="embed", inputs={}, config={}) as draft:
        draft.facts = {"space_id": facts["space_id"]}
        np.save(draft.path / "vectors.npy", np.load(shop.embed / "vectors.npy"))


def release(workspace, name, space_id, codebook_id=None):
    paths = {stage: f"{stage}/{name}" for stage in ("embed", "cluster", "materialize")}
    artifacts = {stage: {"path": p, "digest": artifact.digest(workspace / p)} for stage, p in paths.items()}
    return Release(
        release_id=name,
        created_at=NOW,
        space_id=space_id,
        codebook_id=codebook_id,
        ctr_model="m/none",
        artifacts=artifacts,
        metrics={},
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


def opened(folders, codebook_id):
    artifacts = {"release_id": "r", "created_at": NOW, "space_id": "s0123456789ab", "artifacts": {}, "metrics": {}}
    return OpenRelease(Release(ctr_model="m/none", codebook_id=codebook_id, **artifacts), folders, Path())


def test_a_release_of_before_there_were_lookups_is_served_by_the_store_if_it_names_its_codebook(tmp_path):
    folders = {"cluster": tmp_path, "embed": tmp_path}
    assert ranker._released_items(opened(folders, "c1")) is None
    with pytest.raises(ArtifactMismatch, match="r neither names its codebook nor holds"):
        ranker._released_items(opened(folders, None))


def test_a_release_that_names_no_codebook_answers_from_its_own_lookup_and_takes_no_code_from_the_store(
    loaded_shop, shop, space_id, tmp_path
):
    lookup(shop, tmp_path / FOLDER, {"i1", "i2"})
    before = opened({"cluster": tmp_path, "embed": shop.embed}, None)
    released = ranker._released_items(before)
    features = RankingFeatures(open_views(loaded_shop.workspace), released)
    rows = features.ranking_rows("nobody", ["i1", "i2", "i4"], space_id, before.codebook_id, as_of=NOW, vectors=True)
    of_shop = pq.read_table(shop.cluster / "items.parquet").to_pydict()
    codes = dict(zip(of_shop["item_id"], of_shop["cluster_id"], strict=True))
    assert rows.table["cluster_id"].to_pylist() == [codes["i1"], codes["i2"], -1]
    assert (rows.vectors.rows_of(pa.array(["i1", "i2", "i4"])) >= 0).all()  # of the space, which it does name
