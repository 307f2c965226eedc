"""The registry of image inputs: what it promises of each, and that a new one needs no other place."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contract import PERIODS
from jobs.config import EvaluateConfig
from jobs.evaluation import evaluate
from jobs.html.evaluation import table_lines
from model import artifact, metrics
from model.ctr import train
from model.ctr.config import MODELS, BoostedConfig, CtrConfig, NeuralConfig
from model.ctr.export.saved import load_model
from model.ctr.inputs.fit import fit_inputs
from model.ctr.inputs.image_input import Codes, ImageInput, ImageNumbers
from model.ctr.inputs.inputs import labels, model_input
from model.ctr.inputs.registry import IMAGE_INPUTS, image_input, trained_names
from model.ctr.inputs.rows import ROW_COLUMNS
from model.errors import CourierError


def _halves(training):
    return {"middle": np.median(training.sample.cluster)}


def _kind(clusters, learned):
    return np.where(clusters < 0, 0, 1 + (clusters > learned["middle"])).astype(np.int32)


def _numbers(rows, learned, _):
    """How many clicks are of the target's half of the clusters; of each click whether it is."""
    same = _kind(rows.history_cluster, learned) == _kind(rows.cluster, learned)[:, None]
    facts = np.where(rows.filled, same, np.nan).astype(np.float32)
    return ImageNumbers(("clicks_of_its_half",), [(same & rows.filled).sum(axis=1)], facts[..., None])


TOY = ImageInput(
    name="toy",
    title="Half of the clusters",
    row_columns=("cluster_id", "history_cluster_ids"),
    learn=_halves,
    numbers=_numbers,
    tree_numbers=lambda given, _: (("is_known",), (given.rows.cluster >= 0)[:, None].astype(np.float32)),
    codes=Codes(
        names=("half",),
        sizes=lambda _: (2,),
        of_targets=lambda rows, which, learned: [_kind(rows.cluster[which], learned)],
        of_clicks=lambda rows, which, learned: [_kind(rows.history_cluster[which], learned)],
    ),
)


def test_an_input_named_in_the_registry_is_trained_saved_served_evaluated_and_reported(
    shop, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(IMAGE_INPUTS, "toy", TOY)
    assert trained_names()[-1] == "toy"
    stages = _artifacts(shop, tmp_path)
    config = CtrConfig(
        images=("none", "toy"),
        boosted=BoostedConfig(trees=20, leaves=7, min_rows_in_leaf=40),
        neural=NeuralConfig(batch_rows=128, epochs=1, id_width=8, hidden=(16,)),
    )
    with artifact.write(tmp_path / "codebook", kind="codebook", inputs={}, config={}):
        given = {name: tmp_path / name for name in ("rows", "embed", "codebook")}
    train.build(**given, out=tmp_path / "ctr", config=config)
    predictions = pq.read_table(tmp_path / "ctr" / "predictions.parquet")
    for model in MODELS:
        loaded = load_model(tmp_path / "ctr" / f"{model}-toy")
        scores = predictions.column(f"{model}/toy").to_numpy()
        np.testing.assert_allclose(loaded.predict(shop.test, None), scores, atol=1e-6)
        assert (scores != predictions.column(f"{model}/none").to_numpy()).any()
    (tmp_path / "raw").mkdir()
    evaluate.build(
        ctr=tmp_path / "ctr",
        **stages,
        raw=tmp_path / "raw",
        raw_digest="d",
        out=tmp_path / "evaluate",
        config=EvaluateConfig(bootstrap=20),
    )
    found = json.loads((tmp_path / "evaluate" / "evaluation.json").read_text("utf-8"))
    auc = metrics.auc(labels(shop.test), predictions.column("lightgbm/toy").to_numpy())
    assert {(row["model"], row["images"]) for row in found["rows"]} == {(m, i) for m in MODELS for i in ("none", "toy")}
    assert next(row["auc"] for row in found["rows"] if row["images"] == "toy") == auc
    assert TOY.title in [line[1] for line in table_lines(found)]
    assert TOY.title in (tmp_path / "evaluate" / "evaluation.html").read_text("utf-8")
    assert "Half of" in capsys.readouterr().out


def _artifacts(shop, folder):
    splits = {"splits": {"start": "2024-03-01"}, "space_id": "s1", "encoder": "courier-test"}
    for kind in ("rows", "embed", "sequences"):
        with artifact.write(folder / kind, kind=kind, inputs={}, config={}) as draft:
            draft.facts |= splits
            for period in PERIODS if kind == "rows" else ():
                pq.write_table(getattr(shop, period), draft.path / f"{period}.parquet")
            if kind == "embed":
                np.save(draft.path / "vectors.npy", shop.vectors.matrix)
                rows = pa.array(range(len(shop.vectors.item_ids)), pa.int32())
                pq.write_table(pa.table({"item_id": shop.vectors.item_ids, "row": rows}), draft.path / "items.parquet")
    return {kind: folder / kind for kind in ("rows", "embed", "sequences")}


@pytest.mark.parametrize("name", IMAGE_INPUTS)
def test_an_input_keeps_what_it_says_of_itself(shop, name):
    one, state = image_input(name), fit_inputs(shop.train, shop.vectors, 4)
    assert one.name == name
    assert set(one.row_columns) <= set(ROW_COLUMNS)
    few = shop.test.slice(0, 30)
    given = model_input(few, state, shop.vectors, name)
    assert given.dense.shape == (30, len(given.names))
    assert (given.matrix is not None) == one.needs_vectors
    if not one.needs_vectors:
        np.testing.assert_array_equal(model_input(few, state, None, name).dense, given.dense)
    assert one.needs_vectors >= one.projected
    if one.codes is not None:
        targets = one.codes.of_targets(given.rows, slice(None), state.learned[name])
        clicks = one.codes.of_clicks(given.rows, (slice(None), slice(None)), state.learned[name])
        sizes = one.codes.sizes(state.learned[name])
        assert len(targets) == len(clicks) == len(sizes) <= len(one.codes.names)
        for code, size in zip([*targets, *clicks], [*sizes, *sizes], strict=True):
            assert code.min() >= 0
            assert code.max() <= size


def test_an_input_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(CourierError, match="no image input 'pixels': there are none, vector, simscore, cluster_id"):
        image_input("pixels")
