"""The comparison of CTR models: gains, cold rows, the oracle and the true style labels."""

import json

import numpy as np
import pyarrow as pa
import pytest

from jobs.evaluation import evaluate
from model import metrics
from model.ctr.config import CtrConfig
from model.ctr.evaluation.evaluate import (
    TestRows,
    Variant,
    averages,
    compare,
    oracle,
    true_probabilities,
)
from model.ctr.inputs import inputs
from model.ctr.inputs.encoded import BASE_FEATURES
from model.ctr.inputs.fit import fit_inputs
from model.ctr.inputs.true_style import side_by_side, with_true_labels
from model.ctr.train import Fitted
from model.errors import CourierError


def _predictions(n=600, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "request_id": [f"r{i // 5}" for i in range(n)],
            "item_id": [f"i{i % 50}" for i in range(n)],
            "user_id": [f"u{i // 5 % 40}" for i in range(n)],
            "clicked": pa.array(rng.integers(0, 2, n), pa.int8()),
            "cold": rng.random(n) < 0.3,
        }
    )


def _variants(clicked):
    rng = np.random.default_rng(1)
    noise = rng.uniform(0.2, 0.4, len(clicked))
    return [
        Variant(model="lightgbm", images="cluster_id", encoder="e", scores=noise + 0.15 * clicked, as_shown=noise),
        Variant(model="lightgbm", images="none", encoder=None, scores=noise, as_shown=noise),
        Variant(model="neural", images="none", encoder=None, scores=rng.random(len(clicked)), as_shown=noise),
    ]


def test_a_row_holds_what_the_schema_promises_in_the_order_asked():
    predictions = _predictions()
    rows = TestRows.of(predictions)
    variants = _variants(rows.clicked)
    found = compare(rows, variants, bootstrap=99, seed=0)
    assert [(row["model"], row["images"]) for row in found] == [(v.model, v.images) for v in variants]
    cluster, none, _ = found
    assert cluster["auc_gain"] == pytest.approx(cluster["auc"] - none["auc"])
    assert cluster["ci_low"] < cluster["auc_gain"] < cluster["ci_high"]
    assert cluster["p_value"] == 0.02
    assert none["auc_gain"] is none["p_value"] is none["encoder"] is None
    assert cluster["n"] == 600 == cluster["cold"]["n"] + cluster["warm"]["n"]
    assert cluster["gauc"] == metrics.gauc(rows.clicked, variants[0].scores, predictions.column("user_id").to_pylist())
    assert cluster["ndcg"] == metrics.ndcg(
        rows.clicked, variants[0].scores, predictions.column("request_id").to_pylist()
    )
    assert set(cluster["cold"]) == {"auc", "auc_gain", "ci_low", "ci_high", "p_value", "n"}
    json.dumps(found, allow_nan=False)


def test_cold_figures_look_at_cold_rows_only():
    rows = TestRows.of(_predictions())
    variants = _variants(rows.clicked)
    cluster, _none, _ = compare(rows, variants, bootstrap=50, seed=0)
    cold = [metrics.auc(rows.clicked[rows.cold], v.scores[rows.cold]) for v in variants[:2]]
    assert cluster["cold"]["auc"] == cold[0]
    assert cluster["cold"]["auc_gain"] == pytest.approx(cold[0] - cold[1])


def test_one_class_gives_nulls_and_no_crash():
    predictions = _predictions(20).set_column(3, "clicked", pa.array([0] * 20, pa.int8()))
    rows = TestRows.of(predictions)
    found = compare(rows, _variants(rows.clicked), bootstrap=10, seed=0)
    assert all(row["auc"] is row["gauc"] is row["auc_gain"] is row["ci_low"] is None for row in found)
    none_cold = TestRows(rows.clicked, np.zeros(20, dtype=bool), rows.users, rows.pages)
    assert compare(none_cold, _variants(rows.clicked), bootstrap=10, seed=0)[0]["cold"]["n"] == 0


def test_who_ranks_nothing_is_counted():
    users, pages = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 2, 2, 3])
    rows = TestRows(np.array([1, 0, 0, 1, 1, 0]), np.zeros(6, dtype=bool), users, pages)
    assert averages(rows) == {
        "gauc": {"users": 1, "of": 3, "rows": 3},  # user 1 clicked all, user 3 nothing, user 2 is not there
        "ndcg": {"page_views": 2, "of": 4},
    }


def test_the_same_seed_gives_the_same_figures():
    rows = TestRows.of(_predictions())
    first, second = (compare(rows, _variants(rows.clicked), bootstrap=50, seed=4) for _ in range(2))
    assert first == second


def test_the_true_probability_of_a_row_is_found_by_request_and_item():
    predictions = _predictions(20)
    truth = predictions.select(["request_id", "item_id"]).append_column("p_click", pa.array(np.arange(20) / 20))
    shuffled = truth.take(np.random.default_rng(0).permutation(20))
    np.testing.assert_array_equal(true_probabilities(predictions, shuffled), np.arange(20) / 20)
    with pytest.raises(CourierError, match="holds no p_click of 1 of 20 test rows, for it belongs to other events"):
        true_probabilities(predictions, truth.slice(1))
    twice = pa.concat_tables([truth, truth.slice(0, 2)])
    with pytest.raises(CourierError, match="holds 22 p_clicks of 20 test rows: remove the repeats"):
        true_probabilities(predictions, twice)


def test_the_oracle_is_scored_by_its_own_probabilities():
    rows = TestRows.of(_predictions())
    found = oracle(rows, rows.clicked * 0.5 + 0.1)
    assert found["auc"] == found["gauc"] == found["ndcg"] == found["cold"]["auc"] == 1.0


def test_true_styles_stand_where_the_cluster_ids_were(shop):
    rows = shop.test.slice(7, 30)
    styles = pa.table({"item_id": shop.vectors.item_ids[:250], "style": [f"s{n % 7}" for n in range(250)]})
    found = with_true_labels(rows, styles, "style")
    code = {f"i{n:05d}": n % 7 for n in range(250)}
    for before, after in zip(rows.to_pylist(), found.to_pylist(), strict=True):
        assert after["cluster_id"] == code.get(before["item_id"], -1)
        assert after["history_cluster_ids"] == [code.get(item, -1) for item in before["history_item_ids"]]
        assert after["request_id"] == before["request_id"]
    assert found.schema.names == rows.schema.names


def test_several_labels_stand_side_by_side_behind_the_same_plain_columns(shop):
    state = fit_inputs(shop.train, shop.vectors, 4)
    truth = pa.table({"item_id": shop.vectors.item_ids, "a": ["x", "y"] * 150, "b": ["x", "y", "z", "w"] * 75})
    given = {
        label: inputs.model_input(with_true_labels(shop.test, truth, label), state, None, "true_style")
        for label in ("a", "b")
    }
    both, plain = side_by_side(given), len(BASE_FEATURES)
    assert both.names == (*given["a"].names, *(f"b_{name}" for name in given["b"].names[plain:]))
    np.testing.assert_array_equal(both.dense[:, : len(given["a"].names)], given["a"].dense)
    np.testing.assert_array_equal(both.dense[:, len(given["a"].names) :], given["b"].dense[:, plain:])


def test_every_true_label_has_a_number_of_its_own_in_the_models_inputs(shop, monkeypatch):
    seen = []

    def note(_model, given, splits, *_):
        seen.append((set(given["train"].rows.cluster) - {-1}, splits.state.learned["true_style"]["sizes"].tolist()))
        nothing = np.zeros(len(given["test"]), np.float32)
        return Fitted(None, nothing, nothing, 0.5, 0.7)

    monkeypatch.setattr(evaluate, "fit_encoded", note)
    ids = shop.vectors.item_ids
    truth = pa.table(
        {"item_id": ids, "wide": [str(n % 8) for n in range(len(ids))], "narrow": ["x", "y"] * (len(ids) // 2)}
    )
    tables = {"train": shop.train, "valid": shop.valid, "test": shop.test}
    evaluate.fit_true_style(tables, truth, shop.vectors, CtrConfig(), None)
    assert seen == [(set(range(8)), [8])] * 2  # both models: eight labels, and eight known to the vocabulary
