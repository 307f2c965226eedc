"""The neural model's own laws; those it shares with the boosted one are in test_ctr_train.py."""

import numpy as np
import torch

from model.ctr.config import NeuralConfig
from model.ctr.inputs import inputs
from model.ctr.inputs.fit import fit_inputs
from model.ctr.models.neural import NeuralModel, batch_of

SMALL = NeuralConfig(batch_rows=128, epochs=2, id_width=8, hidden=(16,))


def _given(shop, images, rows=1500):
    train = shop.train.slice(0, rows)
    state = fit_inputs(train, shop.vectors, 4)
    given = [inputs.model_input(table, state, shop.vectors, images) for table in (train, shop.valid)]
    return state, given, (inputs.labels(train), inputs.labels(shop.valid))


def _fit(shop, images="cluster_id", seed=0, config=SMALL):
    state, given, clicked = _given(shop, images)
    return NeuralModel.fit(*given, clicked, state, config=config, seed=seed, threads=1), given[1]


def test_the_same_seed_learns_the_same_weights(shop):
    first, second, other = (_fit(shop, seed=seed)[0].network.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["item.weight"], other["item.weight"])


def test_training_leaves_torchs_own_generator_and_threads_alone(shop):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    _fit(shop)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_the_weights_kept_are_those_of_the_best_check(shop):
    config = NeuralConfig(batch_rows=128, epochs=6, id_width=8, hidden=(16,), learning_rate=0.02)
    model, valid = _fit(shop, config=config)
    losses = [step["valid_logloss"] for step in model.history]
    score = model.score(valid)
    clicked = inputs.labels(shop.valid)
    loss = -np.log(np.where(clicked > 0, score, 1 - score)).mean()
    assert loss == np.float32(min(losses)) or abs(loss - min(losses)) < 1e-6
    assert len(losses) < 12


def test_a_batch_holds_each_click_once_and_each_vector_once(shop):
    state, (train, _), _ = _given(shop, "vector")
    rows = np.array([1000, 3, 1200])
    batch = batch_of(train, state, rows)
    assert len(batch.clicks) == train.rows.length[rows].sum()
    assert batch.click_row.tolist() == np.repeat([0, 1, 2], train.rows.length[rows]).tolist()
    assert len(torch.unique(batch.vectors, dim=0)) == len(batch.vectors)
    own = shop.vectors.matrix[train.rows.target_row[rows]]
    np.testing.assert_array_equal(batch.vectors[batch.target_vector].numpy(), own)
    clicked = shop.vectors.matrix[train.rows.history_row[1000, : train.rows.length[1000]]]
    np.testing.assert_array_equal(batch.vectors[batch.click_vector[: len(clicked)]].numpy(), clicked)


def test_a_click_without_an_image_brings_no_vector(shop):
    state, (train, _), _ = _given(shop, "vector")
    train.rows.target_row[:] = -1
    batch = batch_of(train, state, np.array([0, 1]))
    assert batch.vectors[batch.target_vector].abs().sum() == 0


def test_the_order_of_equally_old_clicks_does_not_matter(shop):
    """The interest is a sum: only a click's own facts weigh it, not its place."""
    model, valid = _fit(shop)
    before = model.score(valid)
    rows = valid.rows
    full = int(np.argmax(rows.length))
    last = int(rows.length[full])
    for places in (rows.history_item, rows.history_category, rows.history_cluster, rows.history_age):
        places[full, :last] = places[full, :last][::-1].copy()
    np.testing.assert_allclose(model.score(valid), before, atol=1e-6)
