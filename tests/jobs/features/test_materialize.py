"""Loading the online store: idempotent, safe to kill, spaces side by side."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.features import materialize, offline
from model import artifact
from model.artifact import ArtifactMismatch
from serving.features import FeastFeatures

MOMENT = datetime(2024, 6, 1, tzinfo=UTC)


def online(workspace, space_id):
    """What the store answers for two users and all items, as text (NaN is not equal to itself)."""
    store = FeastFeatures(workspace)
    items = [f"i{number}" for number in range(42)]
    answers = [store.ranking_rows(user, items, space_id, as_of=MOMENT, vectors=True) for user in ("u1", "u2")]
    return [(str(a.table.to_pylist()), a.known_user, a.known_items, a.vectors.matrix.tobytes()) for a in answers]


@pytest.fixture
def build(shop, tmp_path):
    return lambda: materialize.build(features=shop.features, workspace=tmp_path, out=tmp_path / "materialize" / "k")


def test_a_load_that_dies_while_it_writes_and_runs_again_ends_like_one_that_did_not(
    build, shop, loaded_shop, tmp_path, monkeypatch
):
    from feast.infra.online_stores.sqlite import SqliteOnlineStore

    write, written = SqliteOnlineStore.online_write_batch, []

    def dies_at_the_third(self, config, table, data, progress):
        written.append(table.name)
        if len(written) == 3:
            raise KeyboardInterrupt  # no `except Exception` of Feast tidies up after it, as after a kill
        write(self, config, table, data, progress)

    monkeypatch.setattr(SqliteOnlineStore, "online_write_batch", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build()
    monkeypatch.undo()
    assert not (tmp_path / "materialize" / "k").exists()
    assert len(written) == 3  # of six views
    assert not materialize.is_loaded(tmp_path, shop.features)
    build()
    assert materialize.is_loaded(tmp_path, shop.features)
    space_id = artifact.read(shop.features, kind="features").facts["space_id"]
    assert online(tmp_path, space_id) == online(loaded_shop.workspace, space_id)


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
        offline.write_item_facts(shop.sequences, shop.images, shop.embed, shop.cluster, draft.path, space_id="snew")
        facts = artifact.read(shop.features, kind="features").facts
        draft.facts = {**facts, "space_id": "snew"}
    materialize.build(features=tmp_path / "features", workspace=tmp_path, out=tmp_path / "materialize" / "new")
    assert online(tmp_path, old) == before
    assert online(tmp_path, "snew") == before
    assert materialize.is_loaded(tmp_path, tmp_path / "features")
    assert not materialize.is_loaded(tmp_path, shop.features)  # finished once, but no longer what the store holds


def test_the_sources_are_a_relative_link_that_moves_in_one_step(tmp_path):
    workspace = tmp_path / "ws"
    for version in ("a", "b"):
        (workspace / "features" / version).mkdir(parents=True)
        materialize.point_sources(workspace, workspace / "features" / version)
        link = workspace / materialize.SOURCES
        assert link.readlink() == Path("..") / "features" / version
        materialize.check_sources(workspace, workspace / "features" / version)
    with pytest.raises(ArtifactMismatch, match="run materialize again"):
        materialize.check_sources(workspace, workspace / "features" / "a")
    assert sorted(path.name for path in (workspace / "feast").iterdir()) == ["sources"]


def test_nothing_of_feasts_chatter_reaches_the_terminal(build, capfd):
    build()
    shown = capfd.readouterr()
    assert shown.out == "" or "features_materialized" in shown.out
    assert "%|" not in shown.err  # tqdm's bar
    assert "Warning" not in shown.err
