"""The methods of pre-training: each by its name, and none by another."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.courier.config import CourierConfig
from model.courier.data.batches import PageViews, take_batch
from model.courier.data.loader import BatchTensors
from model.courier.training.methods import METHODS, build_objective
from model.errors import CourierError
from model.settings import replace_setting

TINY = CourierConfig(backbone="small", backbone_weights="random", image_size=16, trainable="all")


@pytest.fixture
def page_views() -> PageViews:
    page = np.arange(20, dtype=np.int32).reshape(4, 5)
    ids = tuple(f"p{n:02d}" for n in range(20))
    titles = tuple(f"Lamp {n}" if n else "" for n in range(20))
    return PageViews(ids, np.zeros(20, np.int64), page, page % 5 == 0, page[::-1].copy(), titles)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_one_loss_for_each_of_its_terms_and_weights(method: str, page_views: PageViews) -> None:
    torch.manual_seed(0)
    warm = {"backbone": "lite0", "backbone_weights": "imagenet"} if method == "imagenet" else {}
    objective = build_objective(replace(TINY, method=method, **warm), page_views)
    batch = take_batch(page_views, np.arange(4))
    images = torch.randn(max(1, objective.crops) * len(batch.images), 3, 16, 16)
    assert len(objective.weights) == len(objective.terms)
    if objective.terms:
        losses = objective(images, BatchTensors.of(batch, torch.device("cpu")))
        assert losses.shape == (len(objective.terms),)
        assert bool(losses.isfinite().all())


def test_forward_is_losses_of_encode(page_views: PageViews) -> None:
    torch.manual_seed(0)
    objective = build_objective(TINY, page_views)
    batch = take_batch(page_views, np.arange(4))
    images, tensors = torch.randn(len(batch.images), 3, 16, 16), BatchTensors.of(batch, torch.device("cpu"))
    assert torch.equal(objective(images, tensors), objective.losses(objective.encode(images), tensors))


def test_an_unknown_method_is_refused(page_views: PageViews) -> None:
    with pytest.raises(CourierError, match="unknown method 'dino': choose one of courier"):
        build_objective(replace(TINY, method="dino"), page_views)


def test_unknown_negatives_are_refused(page_views: PageViews) -> None:
    with pytest.raises(CourierError, match="unknown negatives 'hard': choose one of all, category"):
        build_objective(replace_setting(TINY, "courier.negatives", "hard"), page_views)
