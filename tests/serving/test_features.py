"""Online rows equal the offline rows of the same moment."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from feature_repo.contract import SERVICES
from feature_repo.definitions import open_store
from feature_repo.online_views import FeastViews, open_views
from model import artifact
from model.ctr.inputs.rows import FEATURE_COLUMNS, HISTORY, ROW_DEFAULTS, fill, with_history_facts
from serving.features import RankingFeatures

NOW = datetime(2024, 6, 1, tzinfo=UTC)
CODEBOOK = "c0123456789ab"
USERS = [f"u{number}" for number in range(12)]


@pytest.fixture(scope="module")
def online(loaded_shop):
    return RankingFeatures(open_views(loaded_shop.workspace))


@pytest.fixture(scope="module")
def space_id(shop):
    return artifact.read(shop.features, kind="features").facts["space_id"]


@pytest.fixture(scope="module")
def items(shop):
    return [item["item_id"] for item in shop.items]


def as_of_join(store, service, keys):
    """The service's features of these keys through Feast's point-in-time join, in the keys' order."""
    job = store.get_historical_features(pd.DataFrame({**keys, "n": range(len(keys["event_timestamp"]))}),
                                        store.get_feature_service(service))  # fmt: skip
    return job.to_arrow().sort_by("n")


def offline_rows(store, user, items, codebook_id, moment):
    """The rows of a user's candidates, joined offline as of the moment."""
    at = [pd.Timestamp(moment).as_unit("us")]
    one = as_of_join(store, "ranking_user", {"user_id": [user], "event_timestamp": at})
    many = as_of_join(store, "ranking_item", {"item_id": items, "event_timestamp": at * len(items)})
    codebooks = {"codebook_id": [codebook_id] * len(items), "event_timestamp": at * len(items)}
    clusters = as_of_join(store, "item_cluster_ids", {"item_id": items, **codebooks})
    one = with_history_facts(one, clusters, many.drop_columns(["event_timestamp"]))
    sides = {name: one.column(name).take(pa.array([0] * len(items))) for name in one.column_names}
    sides |= {name: many.column(name) for name in many.column_names}
    return fill(pa.table(sides | {"cluster_id": clusters.column("cluster_id")})).select(list(FEATURE_COLUMNS))


@pytest.mark.parametrize("user", ["u1", "u7", "nobody"])
def test_the_online_row_of_a_user_and_an_item_is_the_offline_row_as_of_the_load(
    loaded_shop, online, items, space_id, user
):
    offline = offline_rows(open_store(loaded_shop.workspace), user, items, CODEBOOK, loaded_shop.as_of)
    rows = online.ranking_rows(user, items, space_id, CODEBOOK, as_of=loaded_shop.as_of, vectors=False).table
    assert rows.select(list(FEATURE_COLUMNS)).schema.equals(fill(offline).schema)
    for served, joined in zip(rows.select(list(FEATURE_COLUMNS)).to_pylist(), offline.to_pylist(), strict=True):
        assert str(served) == str(joined)  # as text: NaN is not equal to itself


def test_the_histories_that_are_compared_are_not_empty(online, items, space_id, shop):
    for user in USERS:
        [history] = online.ranking_rows(user, items[:1], space_id, CODEBOOK, as_of=shop.as_of, vectors=False).table[
            HISTORY
        ]
        clicked = sorted(
            (c for c in shop.clicks if c["user_id"] == user), key=lambda c: (-c["event_time"].timestamp(), c["item_id"])
        )
        assert history.as_py() == [click["item_id"] for click in clicked[:50]]
        assert clicked


def test_a_user_and_an_item_that_nobody_knows_get_the_stated_defaults(online, space_id, shop):
    answer = online.ranking_rows("nobody", ["nothing"], space_id, CODEBOOK, as_of=shop.as_of, vectors=True)
    [row] = answer.table.to_pylist()
    assert str({name: row[name] for name in FEATURE_COLUMNS}) == str(ROW_DEFAULTS)
    assert (answer.known_user, answer.known_items) == (False, [False])
    assert answer.vectors.matrix.shape == (0, 256)


def test_the_rows_come_in_the_order_asked_for_repetitions_included(online, space_id, shop):
    asked = ["i9", "nothing", "i3", "i9"]
    answer = online.ranking_rows("u1", asked, space_id, CODEBOOK, as_of=shop.as_of, vectors=False)
    assert answer.table["item_id"].to_pylist() == asked
    assert answer.known_items == [True, False, True, True]
    assert answer.known_user
    expected = [shop.cluster_ids.get(item, -1) for item in asked]
    assert answer.table["cluster_id"].to_pylist() == expected
    assert answer.table["request_time"].to_pylist() == [shop.as_of] * 4


@pytest.mark.parametrize("odd", ["", "x" * 5_000, "a,b", " i3", "i3 ", "\0", "e\u0301", "NaN", "null", "I3"])
def test_an_odd_id_is_unknown_and_costs_no_other_item_its_features(online, space_id, shop, odd):
    alone = online.ranking_rows("u1", ["i3"], space_id, CODEBOOK, as_of=shop.as_of, vectors=True)
    beside = online.ranking_rows("u1", [odd, "i3"], space_id, CODEBOOK, as_of=shop.as_of, vectors=True)
    assert beside.known_items == [False, True]
    assert str(beside.table.to_pylist()[1]) == str(alone.table.to_pylist()[0])
    assert not online.ranking_rows(odd, ["i3"], space_id, CODEBOOK, as_of=shop.as_of, vectors=False).known_user


def test_no_candidates_are_no_rows_of_the_same_form(online, space_id, shop):
    none = online.ranking_rows("u1", [], space_id, CODEBOOK, as_of=shop.as_of, vectors=True).table
    one = online.ranking_rows("u1", ["i1"], space_id, CODEBOOK, as_of=shop.as_of, vectors=True).table
    assert none.num_rows == 0
    assert none.schema.equals(one.schema)


def test_the_vectors_of_candidates_and_clicked_items_are_the_encoders(online, items, space_id, shop):
    answer = online.ranking_rows("u1", items[:5], space_id, CODEBOOK, as_of=shop.as_of, vectors=True)
    clicked = answer.table[HISTORY][0].as_py()
    met = [item for item in dict.fromkeys([*items[:5], *clicked]) if item in shop.vectors]
    rows = answer.vectors.rows_of(pa.array(met))
    assert (answer.vectors.matrix[rows] == np.stack([shop.vectors[item] for item in met])).all()
    assert online.ranking_rows("u1", items[:5], space_id, CODEBOOK, as_of=shop.as_of, vectors=False).vectors is None


def test_another_space_has_no_clusters_and_no_vectors_of_this_one(online, items, shop):
    answer = online.ranking_rows("u1", items, "sother", "cother", as_of=shop.as_of, vectors=True)
    assert set(answer.table["cluster_id"].to_pylist()) == {-1}
    assert len(answer.vectors.matrix) == 0


def test_threads_that_ask_at_once_get_what_they_would_get_alone(online, items, space_id, shop):
    def ask(user):
        return str(
            online.ranking_rows(user, items, space_id, CODEBOOK, as_of=shop.as_of, vectors=True).table.to_pylist()
        )

    alone = [ask(user) for user in USERS]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, USERS * 4)) == alone * 4


def test_a_user_and_the_candidates_are_one_round_trip_and_the_other_clicked_items_a_second(
    online, items, space_id, monkeypatch
):
    asked, read = [], online.views.database.read

    def recorded(lookups):
        asked.append([len(keys) for _, keys in lookups])
        return read(lookups)

    monkeypatch.setattr(online.views.database, "read", recorded)
    history = (
        online.ranking_rows("u1", items[:5], space_id, CODEBOOK, as_of=NOW, vectors=True).table[HISTORY][0].as_py()
    )
    others = len(set(history) - set(items[:5]))
    assert others
    assert asked == [[1, 1, 5, 5, 5, 5], [others, others, others]]
    asked.clear()
    online.ranking_rows("u1", items, space_id, CODEBOOK, as_of=NOW, vectors=False)
    assert asked == [[1, 1, 42, 42, 42]]


def test_of_feasts_own_stores_every_service_of_the_contract_is_asked_by_name(loaded_shop, items, space_id, monkeypatch):
    store, asked = open_store(loaded_shop.workspace), []
    look_up = store.get_online_features

    def recorded(features, keys):
        asked.append(getattr(features, "name", features))
        return look_up(features, keys)

    monkeypatch.setattr(store, "get_online_features", recorded)
    RankingFeatures(FeastViews(store)).ranking_rows("u1", items, space_id, CODEBOOK, as_of=NOW, vectors=True)
    assert asked == ["ranking_user", "ranking_item", "item_cluster_ids", "item_embeddings"]
    assert set(asked) == set(SERVICES)
