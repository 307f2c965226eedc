"""Training every variant, and the laws that both kinds of CTR model keep."""

import json
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contract import PERIODS
from model import artifact, metrics
from model.ctr import train
from model.ctr.config import IMAGES, MODELS, BoostedConfig, CtrConfig, NeuralConfig
from model.ctr.export.saved import load_model
from model.ctr.inputs import inputs
from model.ctr.inputs.item_vectors import ItemVectors
from model.ctr.inputs.rows import fill

CONFIG = CtrConfig(
    boosted=BoostedConfig(trees=60, leaves=7, min_rows_in_leaf=40, patience=10),
    neural=NeuralConfig(batch_rows=128, epochs=2, id_width=8, hidden=(32,)),
    vector_components=6,
    threads=1,
)
VARIANTS = list(product(MODELS, IMAGES))


def _rows_and_embed(shop, folder, spaces=("s1", "s1")):
    with artifact.write(folder / "rows", kind="rows", inputs={}, config={}) as draft:
        for period in PERIODS:
            pq.write_table(getattr(shop, period), draft.path / f"{period}.parquet")
        draft.facts["space_id"] = spaces[0]
    with artifact.write(folder / "embed", kind="embed", inputs={}, config={}) as draft:
        np.save(draft.path / "vectors.npy", shop.vectors.matrix)
        rows = pa.array(range(len(shop.vectors.item_ids)), pa.int32())
        pq.write_table(pa.table({"item_id": shop.vectors.item_ids, "row": rows}), draft.path / "items.parquet")
        draft.facts |= {"space_id": spaces[1], "encoder": "courier-test"}
    with artifact.write(folder / "codebook", kind="codebook", inputs={}, config={}) as draft:
        draft.facts |= {"codebook_id": "c1", "continues": None}
    return {name: folder / name for name in ("rows", "embed", "codebook")}


@pytest.fixture(scope="module")
def built(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctr")
    stages = _rows_and_embed(shop, folder)
    return train.build(**stages, out=folder / "ctr", config=CONFIG), folder / "ctr"


def _model(built, variant):
    return load_model(built[1] / "-".join(variant))


def test_every_variant_is_saved_with_its_validation_figures(built, shop):
    manifest, folder = built
    assert set(manifest.facts["validation"]) == {f"{model}/{images}" for model, images in VARIANTS}
    best = manifest.facts["validation"][manifest.facts["best"]]["auc"]
    assert best == max(figures["auc"] for figures in manifest.facts["validation"].values())
    assert (manifest.facts["space_id"], manifest.facts["encoder"]) == ("s1", "courier-test")
    assert manifest.facts["rows"] == {period: len(getattr(shop, period)) for period in ("train", "valid", "test")}
    steps = [json.loads(line) for line in (folder / "history.jsonl").read_text("utf-8").splitlines()]
    assert {(step["model"], step["images"]) for step in steps} == set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loaded_model_predicts_what_training_wrote_down(built, shop, variant):
    written = pq.read_table(built[1] / "predictions.parquet")
    assert written.column("request_id").to_pylist() == shop.test.column("request_id").to_pylist()
    model = _model(built, variant)
    assert model.images == variant[1]
    scores = model.predict(shop.test, shop.vectors)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, written.column("/".join(variant)).to_numpy(), atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_shuffled_rows_give_shuffled_predictions_and_one_row_predicts_as_in_a_batch(built, shop, variant):
    model, few = _model(built, variant), shop.test.slice(0, 40)
    scores, order = model.predict(few, shop.vectors), np.random.default_rng(0).permutation(40)
    np.testing.assert_allclose(model.predict(few.take(order), shop.vectors), scores[order], atol=1e-6)
    alone = [model.predict(few.slice(i, 1), shop.vectors)[0] for i in range(0, 40, 8)]
    np.testing.assert_allclose(alone, scores[::8], atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prediction_knows_neither_label_nor_position_nor_what_is_cold(built, shop, variant):
    model, few = _model(built, variant), shop.test.slice(0, 40)
    bare = fill(few.drop_columns(["clicked", "cold", "position", "request_id"]))
    np.testing.assert_array_equal(model.predict(bare, shop.vectors), model.predict(few, shop.vectors))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_nobody_has_seen_is_still_predicted(built, shop, variant):
    rows = shop.test.slice(0, 3).to_pylist()
    lists = ("history_item_ids", "history_clicked_at", "history_cluster_ids", "history_categories")
    rows[0] |= {"item_id": "new", "category": "new", "cluster_id": -1, "price": float("nan"), "created_at": -1}
    rows[1] |= {name: [] for name in lists} | {"user_id": "new"}
    rows[2] |= {"cluster_id": 10_000, "history_cluster_ids": [-1] * len(rows[2]["history_cluster_ids"])}
    scores = _model(built, variant).predict(pa.Table.from_pylist(rows, schema=shop.test.schema), shop.vectors)
    assert ((scores > 0) & (scores < 1)).all()
    nobody = ItemVectors([], np.zeros((0, 256), np.float32))
    assert np.isfinite(_model(built, variant).predict(shop.test.slice(0, 3), nobody)).all()
    assert _model(built, variant).predict(shop.test.slice(0, 0), shop.vectors).shape == (0,)


@pytest.mark.parametrize("model", MODELS)
def test_clusters_that_users_prefer_lift_the_auc(built, shop, model):
    written, clicked = pq.read_table(built[1] / "predictions.parquet"), inputs.labels(shop.test)
    auc = {images: metrics.auc(clicked, written.column(f"{model}/{images}").to_numpy()) for images in IMAGES}
    assert auc["cluster_id"] > auc["none"] + 0.02
    assert auc["simscore"] > auc["none"] + 0.02


@pytest.mark.parametrize("variant", [("lightgbm", "cluster_id"), ("neural", "none")])
def test_a_variant_alone_is_the_variant_of_the_whole_run(built, shop, variant):
    splits = train.encode_splits(
        dict(zip(PERIODS, (shop.train, shop.valid, shop.test), strict=True)), shop.vectors, CONFIG
    )
    alone = train.fit_encoded(variant[0], splits.with_images(variant[1]), splits, CONFIG)
    written = pq.read_table(built[1] / "predictions.parquet").column("/".join(variant)).to_numpy()
    np.testing.assert_array_equal(alone.test, written)


def test_rows_of_another_space_are_refused(shop, tmp_path):
    stages = _rows_and_embed(shop, tmp_path, spaces=("s1", "s2"))
    with pytest.raises(artifact.ArtifactMismatch, match="two spaces: build the rows again"):
        train.build(**stages, out=tmp_path / "ctr", config=CONFIG)
    assert not (tmp_path / "ctr").exists()


@pytest.mark.parametrize(
    ("clicked", "told"),
    [
        ([0], r"none of the \d+ valid rows was clicked: bring clicks"),
        ([1], r"each of the \d+ valid rows was clicked, .*: bring every impression"),
        ([], "the valid period holds no row, for no page view began in it"),
    ],
)
def test_a_period_that_teaches_nothing_is_told_with_its_cause(shop, clicked, told):
    quiet = shop.valid.filter(pa.array(np.isin(inputs.labels(shop.valid), clicked)))
    with pytest.raises(train.NotEnoughRows, match=told):
        train.encode_splits({"train": shop.train, "valid": quiet, "test": shop.test}, shop.vectors, CONFIG)


def test_a_folder_that_holds_no_known_model_is_refused(tmp_path):
    with pytest.raises(artifact.ArtifactMissing, match="no CTR model"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text('{"model": "oracle"}', "utf-8")
    with pytest.raises(artifact.ArtifactMismatch, match="'oracle'"):
        load_model(tmp_path)
