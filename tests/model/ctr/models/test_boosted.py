"""The boosted model's own laws; those it shares with the neural one are in test_ctr_train.py."""

import json

import numpy as np

from model.ctr.config import BoostedConfig
from model.ctr.inputs import inputs
from model.ctr.inputs.fit import fit_inputs
from model.ctr.models.boosted import BoostedModel, columns_of

SMALL = BoostedConfig(trees=12, leaves=7, min_rows_in_leaf=30)


def _fit(shop, images="cluster_id", rows=3000, seed=0, config=SMALL):
    train, valid = shop.train.slice(0, rows), shop.valid
    state = fit_inputs(train, shop.vectors, 4)
    given = [inputs.model_input(table, state, shop.vectors, images) for table in (train, valid)]
    clicked = inputs.labels(train), inputs.labels(valid)
    return BoostedModel.fit(*given, clicked, state, config=config, seed=seed, threads=1), given[0]


def test_the_same_seed_grows_the_same_trees(shop):
    first, second, other = (_fit(shop, seed=seed)[0].booster.model_to_string() for seed in (0, 0, 1))
    assert first == second
    assert first != other


def test_category_and_cluster_are_categoricals_and_the_item_id_is_no_column(shop):
    model, given = _fit(shop)
    names, columns = columns_of(given, model.state)
    assert names[-3:] == ("position", "category", "cluster")
    assert "item" not in names
    assert columns.dtype == np.float32
    kinds = json.loads(json.dumps(model.booster.dump_model()["feature_infos"]))
    assert kinds["cluster"]["values"]
    assert model.booster.feature_name() == list(names)


def test_without_images_no_column_knows_of_them(shop):
    model, given = _fit(shop, images="none")
    assert not [name for name in columns_of(given, model.state)[0] if "cluster" in name or "similarity" in name]


def test_training_stops_when_the_validation_loss_does_and_keeps_the_best_tree(shop):
    config = BoostedConfig(trees=150, leaves=63, min_rows_in_leaf=5, learning_rate=0.3, patience=5)
    model, _ = _fit(shop, config=config)
    losses = [step["valid_logloss"] for step in model.history]
    assert len(losses) < 150
    assert model.booster.num_trees() == 1 + int(np.argmin(losses))
