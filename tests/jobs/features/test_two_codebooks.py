"""Two codebooks of one space lie side by side online; no lookup and no training row takes a code of the other."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contract import CODEBOOK_KEY, EVENT_TIME, ITEM_CLUSTER, ITEM_EMBEDDING, ITEM_KEY, PERIODS
from feature_repo.definitions import open_store
from feature_repo.online_views import open_views
from feature_repo.packed.database import Asked
from jobs.config import CodebookConfig
from jobs.embeddings import cluster, codebook
from jobs.features import materialize, offline, training_rows
from model import artifact

MOMENT = datetime(2024, 6, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SIZES = {"few": 2, "many": 5}  # clusters of each codebook


@pytest.fixture(scope="module")
def fitted(shop, tmp_path_factory):
    """Two codebooks over the shop's vectors, and their items' codes: name -> the cluster artifact."""
    folder, clusters = tmp_path_factory.mktemp("fitted"), {}
    for name, size in SIZES.items():
        config = CodebookConfig(codebooks=1, clusters=size)
        of = {"embed": shop.embed, "out": folder / f"codebook-{name}"}
        codebook.build(sequences=shop.sequences, config=config, **of)
        cluster.build(embed=shop.embed, codebook=of["out"], out=folder / name)
        clusters[name] = folder / name
    return clusters


def codes(folder):
    """Each item's code in a cluster artifact."""
    table = pq.read_table(folder / "items.parquet")
    return dict(zip(table[ITEM_KEY].to_pylist(), table["cluster_id"].to_pylist(), strict=True))


def names(folder):
    """(space, codebook) of an artifact."""
    facts = artifact.read_manifest(folder).facts
    return facts["space_id"], facts["codebook_id"]


@pytest.fixture
def loaded(shop, fitted, tmp_path):
    """A workspace that was loaded with the features of few clusters, and then with those of many."""
    for name, folder in fitted.items():
        space_id, codebook_id = names(folder)
        with artifact.write(tmp_path / "features" / name, kind="features", inputs={}, config={}) as draft:
            for view in ("user_history", "user_statistics", "item_statistics"):
                (draft.path / view).symlink_to(shop.features / view)
            offline.write_item_facts(
                shop.sequences, shop.images, shop.embed, folder, draft.path, space_id=space_id, codebook_id=codebook_id
            )
            draft.facts = {**artifact.read(shop.features, kind="features").facts, "codebook_id": codebook_id}
        load(tmp_path, name, "first")
    return tmp_path


def load(workspace, name, out):
    materialize.build(
        features=workspace / "features" / name, workspace=workspace, out=workspace / "materialize" / f"{name}-{out}"
    )


def online(workspace, items, codebook_id):
    """The codes of items under a codebook: from the packed rows, and through Feast."""
    keys = {ITEM_KEY: items, CODEBOOK_KEY: [codebook_id] * len(items)}
    [packed] = open_views(workspace).read([Asked((ITEM_CLUSTER,), keys)], as_of=MOMENT)
    store = open_store(workspace)
    feast = store.get_online_features(store.get_feature_service("item_cluster_ids"), keys).to_dict()
    return packed["cluster_id"].to_pylist(), feast["cluster_id"]


def test_two_codebooks_of_one_space_lie_side_by_side_after_every_load(shop, fitted, loaded):
    (space, few), (other_space, many) = (names(folder) for folder in fitted.values())
    assert (space == other_space, few == many) == (True, False)
    items = [item["item_id"] for item in shop.items]
    expected = {names(folder)[1]: [codes(folder).get(item) for item in items] for folder in fitted.values()}
    assert expected[few] != expected[many]
    for again in (None, "few", "many"):
        if again:
            load(loaded, again, "again")
        for codebook_id in (few, many):
            assert online(loaded, items, codebook_id) == (expected[codebook_id],) * 2
    assert online(loaded, items, "cother") == ([None] * len(items),) * 2
    held = len(shop.vectors)
    views = open_views(loaded)
    assert (views.count(ITEM_CLUSTER), views.count(ITEM_EMBEDDING)) == (2 * held, held)


def test_a_training_row_has_no_code_of_another_codebook(shop, fitted, loaded):
    # The store's offline source holds the rows of both, and those of the other codebook are the newer ones.
    features = loaded / "features" / "many"
    planted = [
        row | {CODEBOOK_KEY: "cother", "cluster_id": 1023, EVENT_TIME: row[EVENT_TIME] + MICROSECOND}
        for row in pq.read_table(features / ITEM_CLUSTER.name).to_pylist()
    ]
    strange = pa.Table.from_pylist(planted, schema=offline.source_schema(ITEM_CLUSTER))
    pq.write_table(strange, features / ITEM_CLUSTER.name / "part-00001.parquet")
    rows = loaded / "rows"
    training_rows.build(
        sequences=shop.sequences,
        features=features,
        materialize=loaded / "materialize" / "many-first",
        workspace=loaded,
        out=rows,
    )
    own = codes(fitted["many"])
    read = [row for period in PERIODS for row in pq.read_table(rows / f"{period}.parquet").to_pylist()]
    assert artifact.read(rows, kind="rows").facts["codebook_id"] == names(fitted["many"])[1]
    assert {row["cluster_id"] for row in read} >= set(own.values())
    for row in read:
        assert row["cluster_id"] in (own.get(row[ITEM_KEY], -1), -1)  # -1 before the item is known
        clicked = row["history_item_ids"]
        assert row["history_cluster_ids"] == [own.get(item, -1) for item in clicked]
