"""The baselines' losses equal slow plain loops on generated batches."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.courier.losses.baseline_losses import image_title_contrast, negative_cosine, nt_xent

untimed = settings(deadline=None, max_examples=50)  # a busy machine is no failure
WIDTH = 8
seeds = st.integers(0, 2**16)
keys = st.lists(st.integers(0, 4), min_size=1, max_size=7)


def unit(seed: int, count: int) -> Tensor:
    vectors = np.random.default_rng(seed).normal(size=(count, WIDTH))
    return torch.tensor(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=torch.float32)


def slow_softmax(anchor: Tensor, own: Tensor, others: list[Tensor], tau: float) -> float:
    """-log of the own one's share among itself and the others."""
    best = float(anchor @ own) / tau
    return math.log(1 + sum(math.exp(float(anchor @ other) / tau - best) for other in others))


def slow_nt_xent(first: Tensor, second: Tensor, image: list[int], tau: float, mask: bool) -> float:
    crops = [(n, side) for n in range(len(image)) for side in (0, 1)]
    both, total = (first, second), 0.0
    for n, side in crops:
        others = [
            both[s][m]
            for m, s in crops
            if (m, s) != (n, side) and (m, s) != (n, 1 - side) and not (mask and image[m] == image[n])
        ]
        total += slow_softmax(both[side][n], both[1 - side][n], others, tau)
    return total / len(crops)


@untimed
@given(keys, seeds, st.booleans(), st.sampled_from([0.05, 0.2, 1.0]))
def test_nt_xent_equals_the_plain_loop(image: list[int], seed: int, mask: bool, tau: float) -> None:
    first, second = unit(seed, len(image)), unit(seed + 1, len(image))
    fast = nt_xent(first, second, torch.tensor(image), temperature=tau, mask_false_negatives=mask)
    assert fast.item() == pytest.approx(slow_nt_xent(first, second, image, tau, mask), rel=1e-4, abs=1e-4)


def test_of_two_images_whose_crops_are_all_alike_each_crop_finds_its_own_among_three() -> None:
    same = unit(0, 1).expand(2, -1)
    assert nt_xent(same, same, torch.tensor([1, 2]), temperature=0.2, mask_false_negatives=True).item() == (
        pytest.approx(math.log(3))
    )


@untimed
@given(st.integers(1, 6), seeds)
def test_negative_cosine_equals_the_plain_loop(count: int, seed: int) -> None:
    predicted, target = 3 * unit(seed, count), 0.5 * unit(seed + 1, count)
    slow = -sum(float(p @ t / p.norm() / t.norm()) for p, t in zip(predicted, target, strict=True)) / count
    assert negative_cosine(predicted, target).item() == pytest.approx(slow, abs=1e-5)


def test_the_target_of_negative_cosine_gets_no_gradient() -> None:
    predicted, target = unit(0, 3).requires_grad_(), unit(1, 3).requires_grad_()
    negative_cosine(predicted, target).backward()
    assert target.grad is None
    assert predicted.grad is not None
    assert bool((predicted.grad != 0).any())


def slow_image_title(image: Tensor, title: Tensor, rows: list[tuple[bool, int, int]], tau: float, mask: bool) -> float:
    kept = [n for n, (has, _, _) in enumerate(rows) if has]
    total = 0.0
    for anchors, found in ((image, title), (title, image)):
        for n in kept:
            others = [
                found[m]
                for m in kept
                if m != n and not (mask and (rows[m][1] == rows[n][1] or rows[m][2] == rows[n][2]))
            ]
            total += slow_softmax(anchors[n], found[n], others, tau)
    return total / (2 * len(kept)) if kept else 0.0


pairs = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=7)


@untimed
@given(pairs, seeds, st.booleans(), st.sampled_from([0.1, 1.0]))
def test_image_title_contrast_equals_the_plain_loop(
    rows: list[tuple[bool, int, int]], seed: int, mask: bool, tau: float
) -> None:
    image, title = unit(seed, len(rows)), unit(seed + 1, len(rows))
    has, image_key, title_key = (torch.tensor(column) for column in zip(*rows, strict=True))
    fast = image_title_contrast(image, title, has, image_key, title_key, temperature=tau, mask_false_negatives=mask)
    assert fast.item() == pytest.approx(slow_image_title(image, title, rows, tau, mask), rel=1e-4, abs=1e-4)


def both_losses(order: Tensor) -> list[float]:
    first, second, key = unit(0, 5)[order], unit(1, 5)[order], torch.tensor([1, 2, 2, 3, 4])[order]
    all_of_them = torch.ones(5, dtype=torch.bool)
    options = {"temperature": 0.2, "mask_false_negatives": True}
    losses: list[Callable[[], Tensor]] = [
        lambda: nt_xent(first, second, key, **options),
        lambda: image_title_contrast(first, second, all_of_them, key, key, **options),
        lambda: negative_cosine(first, second),
    ]
    return [loss().item() for loss in losses]


def test_the_order_of_the_images_changes_no_loss() -> None:
    assert both_losses(torch.tensor([3, 1, 4, 0, 2])) == pytest.approx(both_losses(torch.arange(5)), abs=1e-5)


def test_images_without_a_title_change_nothing() -> None:
    has = torch.tensor([True, True, False])
    key = torch.arange(3)
    options = {"temperature": 0.1, "mask_false_negatives": True}
    image, title = unit(0, 3).requires_grad_(), unit(1, 3)
    loss = image_title_contrast(image, title, has, key, key, **options)
    shorter = image_title_contrast(image[:2], title[:2], has[:2], key[:2], key[:2], **options)
    assert loss.item() == pytest.approx(shorter.item())
    loss.backward()
    assert image.grad is not None
    assert bool((image.grad[2] == 0).all())
    assert image_title_contrast(image, title, has & False, key, key, **options).item() == 0.0
