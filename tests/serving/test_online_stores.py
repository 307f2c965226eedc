"""The ranker gets the same of packed rows, read without Feast, as of Feast over them and of Feast's own stores."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contract import ITEM_PROFILE, ITEM_STATISTICS, VIEWS
from feature_repo.definitions import open_store
from feature_repo.online_views import FeastViews, PackedViews, StoreNotLoaded, open_views
from feature_repo.packed.database import table_name
from feature_repo.packed.rows import RowUnreadable
from feature_repo.store_settings import FILE_VARIABLE, StoreSettingsUnreadable, filled_in, read_settings
from jobs.features import materialize
from jobs.features.history_store import HistoryStore
from model import artifact
from serving.features import RankingFeatures

NOW = datetime(2024, 6, 1, tzinfo=UTC)
CODEBOOK = "c0123456789ab"
FEASTS_OWN = """
project: courier
provider: local
registry: {registry_type: sql, path: "sqlite:///${COURIER_WORKSPACE}/feast/registry.db"}
offline_store: {type: feature_repo.offline_store.AsofOfflineStore}
online_store: {type: sqlite, path: "${COURIER_WORKSPACE}/feast/online.db"}
entity_key_serialization_version: 3
"""


@pytest.fixture(scope="module")
def sources(shop, tmp_path_factory):
    """Three ways to the same features: packed rows without Feast, Feast over packed rows, and Feast's SQLite store."""
    ours, feasts = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("feasts")
    (feasts / "feature_store.yaml").write_text(FEASTS_OWN, "utf-8")
    found = {}
    with pytest.MonkeyPatch.context() as patched:
        for workspace, file in ((ours, None), (feasts, feasts / "feature_store.yaml")):
            if file:
                patched.setenv(FILE_VARIABLE, str(file))
            materialize.build(features=shop.features, workspace=workspace, out=workspace / "materialize" / "k")
            assert materialize.is_loaded(workspace, shop.features)
            store = open_store(workspace)
            just_written(store, workspace)
            found["feast on its SQLite" if file else "feast on packed rows"] = FeastViews(store)
            found.setdefault("packed rows", open_views(workspace))
    assert isinstance(found["packed rows"], PackedViews)
    for views in found.values():
        views.check()
    return {name: RankingFeatures(views) for name, views in found.items()}


def just_written(store, workspace):
    """A click of a stream, and through Feast's SDK a row without category and price, and an item that is new."""
    clicks = [("i3", 1_712_000_000_000_000), ("fresh", 1_712_000_000_000_001)]
    HistoryStore(workspace).add({"u3": clicks, "newcomer": clicks})
    rows = [("i4", None, None, 5), ("fresh", "c1", 2.5, -1)]
    profiles = pd.DataFrame(rows, columns=["item_id", "category", "price", "created_at"])
    profiles["event_timestamp"] = pd.Timestamp("2024-05-01", tz="UTC").as_unit("us")
    store.write_to_online_store(ITEM_PROFILE.name, profiles)


@pytest.fixture(scope="module")
def space_id(shop):
    return artifact.read(shop.features, kind="features").facts["space_id"]


USERS = st.sampled_from([*(f"u{number}" for number in range(12)), "newcomer", "nobody", ""])
ITEMS = st.lists(st.sampled_from([*(f"i{number}" for number in range(42)), "fresh", "nothing", "\0"]), max_size=60)


@settings(max_examples=30)
@given(USERS, ITEMS, st.booleans(), st.booleans())
def test_every_store_gives_the_ranker_the_same(sources, space_id, user, items, vectors, in_space):
    of = (space_id, CODEBOOK) if in_space else ("sother", "cother")
    answers = [one.ranking_rows(user, items, *of, as_of=NOW, vectors=vectors) for one in sources.values()]
    first, *others = [(str(a.table.to_pylist()), a.table.schema, a.known_user, a.known_items) for a in answers]
    assert others == [first] * len(others)
    if vectors:
        held = [(a.vectors.item_ids.to_pylist(), a.vectors.matrix.tobytes()) for a in answers]
        assert held == [held[0]] * len(held)


def test_what_was_just_written_is_read(sources, space_id):
    for features in sources.values():
        answer = features.ranking_rows("newcomer", ["i4", "fresh"], space_id, CODEBOOK, as_of=NOW, vectors=False)
        null, fresh = answer.table.to_pylist()
        assert null["history_item_ids"] == ["fresh", "i3"]
        assert (null["category"], np.isnan(null["price"]), null["created_at"]) == ("", True, 5)
        assert (fresh["category"], fresh["price"], fresh["cluster_id"]) == ("c1", 2.5, -1)
        assert answer.known_items == [True, True]


WITHOUT_FEAST = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from feature_repo.online_views import open_views
from jobs.features.history_store import HistoryStore
from serving.features import RankingFeatures
workspace = Path(sys.argv[1])
features = RankingFeatures(open_views(workspace))
answer = features.ranking_rows("u1", ["i1"], "s", "c", as_of=datetime.now(UTC), vectors=True)
assert answer.known_items == [True]
HistoryStore(workspace).read(["u1"])
print(sorted(name for name in sys.modules if name.partition(".")[0] == "feast"))
"""


def test_packed_rows_are_read_without_importing_feast(loaded_shop):
    command = [sys.executable, "-c", WITHOUT_FEAST, loaded_shop.workspace]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_store_that_holds_nothing_is_refused_with_the_cure(tmp_path):
    with pytest.raises(StoreNotLoaded, match="holds no row of item_profile: run `courier materialize`"):
        open_views(tmp_path).check()


def test_rows_of_a_stale_layout_are_refused_with_the_cure(loaded_shop, tmp_path):
    views, others = open_views(loaded_shop.workspace), open_views(tmp_path)
    [profiles, statistics] = [views.views[view.name] for view in (ITEM_PROFILE, ITEM_STATISTICS)]
    for view in VIEWS:
        others.database.create(views.views[view.name].table)
    for row in (views.database.some_row(profiles.table), views.database.some_row(statistics.table)):
        write_raw(others.database, profiles.table, row)
    others.check()  # the first row that lies there is a profile
    write_raw(others.database, profiles.table, views.database.some_row(statistics.table), key=b"")
    with pytest.raises(RowUnreadable, match="of another layout: materialize its view again"):
        others.check()


def write_raw(database, table, row, key=b"z"):
    from feature_repo.packed.database import Batch

    if database.read([(table, [key])]) == [[None]]:
        database.write(table, Batch([key], np.array([1]), np.array([1]), [row]))


NAMES = st.sampled_from(["A", "B_1", "COURIER_WORKSPACE"])
PIECES = st.one_of(
    NAMES.map("${}".format), NAMES.map(lambda name: f"${{{name}}}"), st.sampled_from(["$", "{", "}", "é", "A"])
)


@given(st.lists(PIECES).map("".join))
def test_variables_are_filled_in_as_feast_does(text):
    variables = {"A": "$B_1", "COURIER_WORKSPACE": "/ws"}
    with mock.patch.dict("os.environ", variables, clear=True):
        # As bytes, for some locales have no such letters.
        assert filled_in(text, variables) == os.path.expandvars(text.encode()).decode()


def test_a_file_that_names_no_store_is_refused_in_one_sentence(tmp_path, monkeypatch):
    file = tmp_path / "feature_store.yaml"
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    packed = "project: p\nonline_store: {type: feature_repo.online_store.PackedOnlineStore}"
    for text, what in (
        ("a: [", "is no such YAML"),
        ("[1]", "is no such"),
        ("a: 1", "no project"),
        (packed, "no connec"),
    ):
        file.write_text(text, "utf-8")
        with pytest.raises(StoreSettingsUnreadable, match=f"{what}.*: write it in the form of"):
            read_settings(tmp_path)


def test_the_store_is_found_by_the_file_that_feast_reads(tmp_path, monkeypatch):
    assert read_settings(tmp_path).section["connection_string"] == f"sqlite:///{tmp_path}/feast/packed.db"
    assert read_settings(tmp_path).packed_views()["item_profile"].table == table_name("courier", "item_profile")
    file = tmp_path / "other.yaml"
    file.write_text(FEASTS_OWN.replace("courier", "shop"), "utf-8")
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    settings = read_settings(tmp_path)
    assert (settings.project, settings.is_packed) == ("shop", False)
    assert settings.section["path"] == f"{tmp_path}/feast/online.db"
