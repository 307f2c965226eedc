"""A step's gradients are those of the whole batch, however it is cut, padded, ordered, or made to fit into memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.courier.config import CourierConfig
from model.courier.data.batches import PageViews, take_batch
from model.courier.data.loader import BatchTensors
from model.courier.losses.objective import Objective
from model.courier.network.backbones import warm_start
from model.courier.network.encoder import Encoder
from model.courier.training.gradients import Gradients
from model.courier.training.methods import build_objective
from model.courier.training.process_group import ProcessGroup
from model.errors import CourierError

IMAGES, SIZE = 30, 16
TINY = CourierConfig(backbone="small", backbone_weights="random", image_size=SIZE, trainable="all", feature_dropout=0.0)
CPU = torch.device("cpu")
ALONE = ProcessGroup(0, 1, CPU)
untimed = settings(deadline=None, max_examples=12)


def page_views(seed: int = 0, rows: int = 16) -> PageViews:
    """Padding anywhere, histories of none to five clicks, pages without a click and with all clicked, repeats."""
    rng = np.random.default_rng(seed)
    page = rng.integers(-1, IMAGES, (rows, 5)).astype(np.int32)
    page[0] = [3, 3, 7, -1, -1]
    length = rng.integers(0, 6, rows)
    history = np.where(np.arange(5) < length[:, None], rng.integers(0, IMAGES, (rows, 5)), -1).astype(np.int32)
    clicked = (rng.random((rows, 5)) < rng.choice([0.0, 0.4, 1.0], rows)[:, None]) & (page >= 0)
    return PageViews(tuple(f"p{n:02d}" for n in range(IMAGES)), np.arange(IMAGES) % 3, page, clicked, history)


def built(config: CourierConfig = TINY) -> Objective:
    torch.manual_seed(0)
    return build_objective(config, page_views()).train()


def gradients_of(objective: Objective, shop: PageViews, *, chunk_images: int = 0, seed: int = 1) -> dict[str, Tensor]:
    """The losses and the gradient of every parameter, over all rows of `shop`."""
    batch = take_batch(shop, np.arange(len(shop)))
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    step = Gradients(objective, ALONE, chunk_images=chunk_images, precision="fp32")
    objective.zero_grad()
    torch.manual_seed(seed)
    losses = step.of(images[torch.from_numpy(batch.images)], Tensor.clone, BatchTensors.of(batch, CPU))
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None} | {"losses": losses}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        scale = max(1.0, float(gradient.detach().double().norm(torch.inf))) if gradient.numel() else 1.0
        torch.testing.assert_close(
            other[name], gradient, atol=tolerance * scale, rtol=0, msg=lambda said, n=name: f"{n}: {said}"
        )


@untimed
@given(chunk_images=st.integers(1, IMAGES + 5), seed=st.integers(0, 50))
def test_gradients_in_chunks_are_those_of_the_whole_batch(chunk_images: int, seed: int) -> None:
    objective, shop = built(), page_views(seed)
    whole = gradients_of(objective, shop)
    assert_equal(whole, gradients_of(objective, shop, chunk_images=chunk_images))


def test_in_chunks_dropout_draws_the_same_when_it_encodes_again() -> None:
    objective, shop = built(replace(TINY, feature_dropout=0.5)), page_views()
    losses_of = objective.losses
    # As an objective may: what it draws lies between the two encodings.
    objective.losses = lambda vectors, batch: losses_of(vectors, batch) * (1 + torch.rand(1))  # type: ignore[method-assign]
    cached = gradients_of(objective, shop, chunk_images=7)
    after = torch.get_rng_state()
    batch = take_batch(shop, np.arange(len(shop)))
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    objective.zero_grad()
    torch.manual_seed(1)
    parts = torch.split(images[torch.from_numpy(batch.images)], 7)
    losses = objective.losses(torch.cat([objective.encode(part) for part in parts]), BatchTensors.of(batch, CPU))
    losses.sum().backward()
    graph = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None} | {"losses": losses}
    assert_equal(graph, cached)
    assert torch.equal(torch.get_rng_state(), after)  # the next step draws on from the same place


def test_recomputed_activations_give_the_same_gradients() -> None:
    shop = page_views()
    plain = gradients_of(built(), shop)
    assert_equal(plain, gradients_of(built(replace(TINY, recompute_activations=True)), shop), 0)


@untimed
@given(seed=st.integers(0, 50), extra=st.integers(1, 4))
def test_a_padded_row_changes_nothing(seed: int, extra: int) -> None:
    objective, shop = built(), page_views(seed)
    nothing = np.full((extra, 5), -1, np.int32)
    padded = replace(
        shop,
        page=np.concatenate([shop.page, nothing]),
        clicked=np.concatenate([shop.clicked, nothing >= 0]),
        history=np.concatenate([shop.history, nothing]),
    )
    assert_equal(gradients_of(objective, shop), gradients_of(objective, padded))


@untimed
@given(seed=st.integers(0, 50))
def test_the_order_of_the_rows_changes_neither_losses_nor_gradients(seed: int) -> None:
    objective, shop = built(), page_views(seed)
    order = np.random.default_rng(seed).permutation(len(shop))
    turned = replace(shop, page=shop.page[order], clicked=shop.clicked[order], history=shop.history[order])
    assert_equal(gradients_of(objective, shop), gradients_of(objective, turned))


def test_permuting_the_images_permutes_the_vectors() -> None:
    objective = built().eval()
    images, order = torch.randn(9, 3, SIZE, SIZE), torch.randperm(9)
    torch.testing.assert_close(objective.encode(images[order]), objective.encode(images)[order])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_the_direction_of_the_gradients(precision: str) -> None:
    whole, halved = built(), built()
    batch = take_batch(page_views(), np.arange(16))
    images, tensors = torch.randn(len(batch.images), 3, SIZE, SIZE), BatchTensors.of(batch, CPU)
    Gradients(whole, ALONE, chunk_images=0, precision="fp32").of(images, Tensor.clone, tensors)
    step = Gradients(halved, ALONE, chunk_images=8, precision=precision)
    optimizer = torch.optim.SGD(halved.parameters(), lr=0.0)
    for _ in range(12):  # the scaler halves its scale until nothing overflows
        optimizer.zero_grad()
        step.of(images, Tensor.clone, tensors)
        step.scaler.step(optimizer)  # after which gradients have their own size again
        step.scaler.update()
    expected, found = (
        torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None]) for one in (whole, halved)
    )
    assert torch.cosine_similarity(expected, found, dim=0) > 0.98
    assert float(found.norm()) == pytest.approx(float(expected.norm()), rel=0.1)
    assert step.scaler.is_enabled() == (precision == "fp16")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(CourierError, match="unknown precision 'fp8': choose one of auto, fp32, bf16, fp16"):
        Gradients(built(), ALONE, chunk_images=0, precision="fp8")


# --- frozen lower parts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "frozen"), [("small", 1), ("small", 3), ("lite0", 6)])
def test_training_on_kept_activations_equals_training_through_the_frozen_parts(backbone: str, frozen: int) -> None:
    size = 32 if backbone == "lite0" else SIZE
    config = replace(TINY, backbone=backbone, image_size=size, trainable="upper", frozen_parts=frozen)
    shop, images = page_views(), torch.randn(IMAGES, 3, size, size).to(memory_format=torch.channels_last)
    kept, through = built(config), built(config)
    for one in (kept, through):
        warm_start(one.encoder.backbone, "imagenet" if backbone == "lite0" else "random")
    encoder: Encoder = through.encoder
    through._encode = encoder.forward
    with torch.no_grad():
        below = kept.encoder.eval().below(images)
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    for objective, inputs in ((kept.train(), below), (through.train(), images)):
        optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.02)
        for first in range(0, 12, 4):  # three steps
            batch = take_batch(shop, np.arange(first, first + 4))
            optimizer.zero_grad()
            objective(inputs[torch.from_numpy(batch.images)], BatchTensors.of(batch, CPU)).sum().backward()
            optimizer.step()
    assert_equal(dict(through.state_dict()), dict(kept.state_dict()))
    moved = {name for name, weight in encoder.state_dict().items() if not torch.equal(weight, before[name])}
    frozen_names = {
        f"backbone.{name}"
        for name, parameter in encoder.backbone.named_parameters()
        if any(parameter is one for part in encoder.backbone.parts[:frozen] for one in part.parameters())
    }
    trained_names = {f"backbone.{name}" for name, _ in encoder.backbone.named_parameters()} - frozen_names
    assert frozen_names
    assert trained_names <= moved
    assert not moved & frozen_names
    # Several processes would wait for the gradients of what still asks for one.
    asking = {f"backbone.{name}" for name, one in encoder.backbone.named_parameters() if one.requires_grad}
    assert asking == trained_names


@pytest.mark.parametrize("frozen", [0, 4])
def test_no_part_or_all_parts_frozen_is_refused(frozen: int) -> None:
    with pytest.raises(CourierError, match=f"frozen_parts {frozen}: small has 4, choose 1 to 3"):
        built(replace(TINY, trainable="upper", frozen_parts=frozen))
