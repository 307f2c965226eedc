"""The closed-form start of a linear head, against a loop over clicks and on a world whose tastes are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from model.courier.batches import PageViews
from model.courier.config import CourierConfig
from model.courier.encoder import build_encoder
from model.courier.linear_start import _without_categories, prepare, start_head, taste_axes

IMAGES, WIDTH = 400, 12
LOUD, LIKED = 0, 3  # the direction in which categories differ, and the one by which users choose


def world(rows: int = 4000, seed: int = 0) -> tuple[torch.Tensor, PageViews]:
    """Images as points, and users who click what lies on their side of one direction; padding anywhere at the end."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(IMAGES, WIDTH)).astype(np.float32)
    category = rng.integers(0, 2, IMAGES)
    points[:, LOUD] += 4 * category
    side = np.where(rng.random(rows) < 0.5, -1, 1)[:, None]
    one = [np.flatnonzero(category == kind) for kind in (0, 1)]  # a page and its user's history are of one category
    kind = rng.integers(0, 2, rows)
    page = np.stack([rng.choice(one[k], 5, replace=False) for k in kind]).astype(np.int32)
    history = np.stack([rng.choice(one[k], 5, replace=False) for k in kind]).astype(np.int32)
    history = np.where(points[history, LIKED] * side > -0.3, history, -1)
    history = np.take_along_axis(history, np.argsort(history < 0, axis=1, kind="stable"), axis=1)  # padded last
    clicked = (points[page, LIKED] * side > 0.5) & (rng.random(page.shape) < 0.6)
    page[:, 3:][rng.random((rows, 2)) < 0.3] = -1
    views = PageViews(tuple(f"p{n}" for n in range(IMAGES)), category, page, clicked & (page >= 0), history)
    return torch.from_numpy(points), views


def test_the_axes_are_those_of_a_loop_over_every_click() -> None:
    points, views = world(rows=200)
    x = points.double().numpy() - points.double().numpy().mean(0)
    means = np.stack([x[views.categories == kind].mean(0) for kind in (0, 1)])
    apart = (means[1] - means[0]) / np.linalg.norm(means[1] - means[0])  # two categories differ in one direction
    x = x - np.outer(x @ apart, apart)
    total, clicks = np.zeros((WIDTH, WIDTH)), 0
    for page, clicked, history in zip(views.page, views.clicked, views.history, strict=True):
        past, shown = [x[n] for n in history if n >= 0], [x[n] for n in page if n >= 0]
        for number, click in zip(page, clicked, strict=True):
            if click and past:
                total += np.outer(x[number] - np.mean(shown, axis=0), np.sum(past, axis=0) / np.sqrt(len(past)))
                clicks += 1
    strength, vectors = np.linalg.eigh((total + total.T) / 2 / clicks)
    keep = strength > 1e-5 * strength[-1]
    expected = (vectors[:, keep] * strength[keep]) @ vectors[:, keep].T
    axes = taste_axes(points, views).double().numpy()
    assert axes.shape == (WIDTH, keep.sum())
    np.testing.assert_allclose(axes @ axes.T, expected, atol=1e-5)  # an axis and its mirror image are the same


def test_the_leading_axis_is_the_one_users_choose_by_and_categories_are_left_out() -> None:
    points, views = world()
    axes = taste_axes(points, views)
    leading = axes[:, 0] / axes[:, 0].norm()
    assert abs(float(leading[LIKED])) > 0.95
    assert float(axes[LOUD].norm() / axes.norm()) < 0.1


def test_rows_beyond_the_end_of_a_batch_and_padding_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points, views = world(rows=101)
    whole = taste_axes(points, views)
    monkeypatch.setattr("model.courier.linear_start.ROWS", 7)
    pad = np.full((len(views), 2), -1, np.int32)
    wider = replace(
        views,
        page=np.hstack([views.page, pad]),
        clicked=np.hstack([views.clicked, pad < -1]),
        history=np.hstack([views.history, pad]),
    )
    parts = taste_axes(points, wider)
    np.testing.assert_allclose((parts @ parts.T).numpy(), (whole @ whole.T).numpy(), atol=1e-5)


def test_a_head_starts_at_the_axes_about_the_mean_and_is_left_alone_without_clicks() -> None:
    points, views = world()
    head, axes = nn.Linear(WIDTH, 8), taste_axes(points, views)
    assert start_head(head, points, views) == axes.shape[1]
    expected = torch.zeros(IMAGES, 8)
    expected[:, : axes.shape[1]] = (points - points.mean(0)) @ axes
    torch.testing.assert_close(head(points).detach(), expected, atol=1e-4, rtol=1e-4)
    before = head.weight.detach().clone()
    assert start_head(head, points, replace(views, clicked=np.zeros_like(views.clicked))) == 0
    torch.testing.assert_close(head.weight.detach(), before)


def test_more_categories_than_directions_leave_half_of_them() -> None:
    points, _ = world()
    crowded = np.arange(IMAGES) % 50
    apart = points + 9 * torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0))[crowded]
    assert torch.linalg.matrix_rank(_without_categories(apart, crowded), atol=1e-3) == WIDTH // 2


def test_categories_that_differ_by_chance_alone_cost_no_direction() -> None:
    points, _ = world()
    by_chance = np.random.default_rng(1).integers(0, 8, IMAGES)
    torch.testing.assert_close(_without_categories(points, by_chance), torch.eye(WIDTH))


def test_components_within_a_category_ignore_what_tells_categories_apart() -> None:
    config = CourierConfig(
        backbone="small", backbone_weights="random", feature_components=4, feature_whitening=1.0, basis="category"
    )
    encoder = build_encoder(config)
    rng = np.random.default_rng(0)
    views = world()[1]
    within = rng.normal(size=(IMAGES, 4)) @ rng.normal(size=(4, encoder.feature_width))
    apart = 50 * rng.normal(size=encoder.feature_width) * views.categories[:, None]
    features = torch.from_numpy((within + apart).astype(np.float32))
    standard = prepare(encoder, features, views, config)
    centred = torch.cat(
        [standard[views.categories == kind] - standard[views.categories == kind].mean(0) for kind in (0, 1)]
    )
    torch.testing.assert_close(centred.T @ centred / IMAGES, torch.eye(4), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"basis": "shop"}, "unknown basis 'shop': choose one of all, category"),
        ({"head_start": "warm"}, "unknown head_start 'warm'"),
        ({"head_start": "taste", "head": "mlp"}, "choose head linear"),
    ],
)
def test_an_unknown_choice_is_refused(wrong: dict[str, str], says: str) -> None:
    config = replace(CourierConfig(backbone="small", backbone_weights="random"), **wrong)
    encoder = build_encoder(config)
    with pytest.raises(ValueError, match=says):
        prepare(encoder, torch.zeros(IMAGES, encoder.feature_width), world()[1], config)
