"""The closed-form start of a linear head, against loops over pages and on a world whose preferences are known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

from model.courier.config import CourierConfig, CourierMethodConfig
from model.courier.data.batches import PageViews
from model.courier.network.encoder import build_encoder
from model.courier.training.linear_start import (
    _agreement,
    _popularity_discount,
    _spread_on_pages,
    _varied_on_pages,
    preference_axes,
    prepare,
    start_head,
)
from model.errors import CourierError

IMAGES, WIDTH = 400, 12
LOUD, LIKED = 0, 3  # the direction in which categories differ, and the one by which users choose


def world(rows: int = 4000, users: int = 200, seed: int = 0) -> tuple[torch.Tensor, PageViews]:
    """Images as points, and users who click what lies on their side of one direction; padding anywhere at the end."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(IMAGES, WIDTH)).astype(np.float32)
    category = rng.integers(0, 2, IMAGES)
    points[:, LOUD] += 4 * category
    user = rng.integers(0, users, rows)
    side = np.where(rng.random(users) < 0.5, -1, 1)[user][:, None]
    one = [np.flatnonzero(category == kind) for kind in (0, 1)]  # a page is of one category
    page = np.stack([rng.choice(one[k], 5) for k in rng.integers(0, 2, rows)]).astype(np.int32)  # an image even twice
    clicked = (points[page, LIKED] * side > 0.5) & (rng.random(page.shape) < 0.6)
    page[:, 3:][rng.random((rows, 2)) < 0.3] = -1
    history = np.full((rows, 5), -1, np.int32)
    names = tuple(f"p{n}" for n in range(IMAGES))
    page_views = PageViews(names, category, page, clicked & (page >= 0), history, users=user)
    return torch.from_numpy(points), page_views


def page_residuals(page_views: PageViews) -> list[dict[int, float]]:
    """What each page adds to each image, by a loop: 1 for a click, less the share of clicks for each place."""
    residuals = []
    for page, clicked in zip(page_views.page, page_views.clicked, strict=True):
        shown = [n for n in page if n >= 0]
        residual = dict.fromkeys(shown, 0.0)
        for number, click in zip(page, clicked, strict=True):
            if number >= 0:
                residual[number] += float(click) - clicked.sum() / len(shown)
        residuals.append(residual)
    return residuals


def agreement_by_a_loop(x: np.ndarray, page_views: PageViews) -> np.ndarray:  # type: ignore[type-arg]
    """The mean of x_i x_j' over pairs of residuals of one user, on different pages and of different images."""
    residuals, total, pairs = page_residuals(page_views), np.zeros((x.shape[1],) * 2), 0.0
    for user in set(page_views.users.tolist()):
        pages = [row for row in np.flatnonzero(page_views.users == user) if page_views.clicked[row].any()]
        weight = sum(page_views.clicked[row].sum() for row in pages) ** -0.5 if pages else 0.0
        for one, other in ((a, b) for a in pages for b in pages if a != b):
            pairs += weight * page_views.clicked[one].sum() * page_views.clicked[other].sum()
            for i, s in residuals[one].items():
                for j, t in residuals[other].items():
                    total += weight * s * t * np.outer(x[i], x[j]) * (i != j)
    return total / pairs


def test_agreement_is_that_of_a_loop_over_pairs_of_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    points, page_views = world(rows=60, users=9)
    x = points.double().numpy()
    expected = agreement_by_a_loop(x, page_views)
    np.testing.assert_allclose(_agreement(x, page_views), expected, atol=1e-9)
    monkeypatch.setattr("model.courier.training.linear_start.ROWS", 7)  # blocks end where a user does
    np.testing.assert_allclose(_agreement(x, page_views), expected, atol=1e-9)


def test_the_spread_on_pages_is_that_of_what_they_show_about_their_means(monkeypatch: pytest.MonkeyPatch) -> None:
    points, page_views = world(rows=50)
    x = points.double().numpy()
    apart = []
    for page in page_views.page:
        shown = x[[n for n in page if n >= 0]]
        apart.extend(shown - shown.mean(0))
    expected = np.mean([np.outer(one, one) for one in apart], axis=0)
    np.testing.assert_allclose(_spread_on_pages(x, page_views), expected, atol=1e-9)
    monkeypatch.setattr("model.courier.training.linear_start.ROWS", 7)
    np.testing.assert_allclose(_spread_on_pages(x, page_views), expected, atol=1e-9)


def test_the_leading_axis_is_the_one_users_choose_by_and_what_pages_do_not_vary_is_left_out() -> None:
    points, page_views = world()
    axes = preference_axes(points, page_views)
    leading = axes[:, 0] / axes[:, 0].norm()
    assert abs(float(leading[LIKED])) > 0.95
    assert float(axes[LOUD].norm() / axes.norm()) < 0.1


def test_few_axes_are_kept_where_many_users_choose_by_one_direction() -> None:
    points, page_views = world()
    kept = preference_axes(points, page_views).shape[1]
    assert 1 <= kept <= 2
    moved = preference_axes(points * torch.linspace(0.5, 3, WIDTH), page_views)  # size says nothing of worth
    assert 1 <= moved.shape[1] <= 2


@pytest.mark.parametrize("users", [5, 200])
def test_axes_above_the_most_negative_one_are_kept_and_weigh_as_the_fourth_root_of_their_strength(users: int) -> None:
    points, page_views = world(rows=1000, users=users)
    points[:, LOUD] -= 4 * torch.from_numpy(page_views.categories)  # nothing to leave out
    axes = preference_axes(points, page_views).double().numpy()
    x = points.double().numpy() - points.double().numpy().mean(0)
    spread = _spread_on_pages(x, page_views)
    shrunk = spread + np.trace(spread) / WIDTH * np.eye(WIDTH)
    strength = linalg.eigh(
        _agreement(x * _popularity_discount(page_views)[:, None], page_views), shrunk, eigvals_only=True
    )[::-1]
    kept = strength[strength > -strength[-1]]
    assert len(kept) > 1
    np.testing.assert_allclose(axes.T @ shrunk @ axes, np.diag((kept / kept[0]) ** 0.5), atol=1e-4)


def test_padding_and_the_order_of_rows_change_nothing() -> None:
    points, page_views = world(rows=101, users=11)
    whole = preference_axes(points, page_views)
    pad = np.full((len(page_views), 2), -1, np.int32)
    order = np.random.default_rng(3).permutation(len(page_views))
    wider = replace(
        page_views,
        page=np.hstack([page_views.page, pad])[order],
        clicked=np.hstack([page_views.clicked, pad < -1])[order],
        users=page_views.users[order] + 5,
    )
    parts = preference_axes(points, wider)
    np.testing.assert_allclose((parts @ parts.T).numpy(), (whole @ whole.T).numpy(), atol=1e-5)


def test_page_views_of_nobody_are_refused_with_the_cure() -> None:
    points, page_views = world(rows=20)
    with pytest.raises(ValueError, match=r"PageViews\.users is None"):
        preference_axes(points, replace(page_views, users=np.empty(0, np.int64)))


def test_a_head_starts_at_the_axes_about_the_mean_and_is_left_alone_without_clicks() -> None:
    points, page_views = world()
    head, axes = nn.Linear(WIDTH, 8), preference_axes(points, page_views)
    assert start_head(head, points, page_views) == axes.shape[1]
    expected = torch.zeros(IMAGES, 8)
    expected[:, : axes.shape[1]] = (points - points.mean(0)) @ axes
    torch.testing.assert_close(head(points).detach(), expected, atol=1e-4, rtol=1e-4)
    before = head.weight.detach().clone()
    assert start_head(head, points, replace(page_views, clicked=np.zeros_like(page_views.clicked))) == 0
    torch.testing.assert_close(head.weight.detach(), before)


def test_the_discount_leaves_the_power_three_quarters_of_an_images_residuals(monkeypatch: pytest.MonkeyPatch) -> None:
    _, page_views = world(rows=70)
    total = np.zeros(IMAGES)
    for residual in page_residuals(page_views):
        for image, much in residual.items():
            total[image] += abs(much)
    assert (total == 0).any()
    expected = total**0.75
    np.testing.assert_allclose(_popularity_discount(page_views) * total, expected, atol=1e-12)
    monkeypatch.setattr("model.courier.training.linear_start.ROWS", 7)
    np.testing.assert_allclose(_popularity_discount(page_views) * total, expected, atol=1e-12)


def test_axes_are_the_generalised_eigenvectors_where_an_image_that_everybody_clicks_is_discounted() -> None:
    points, page_views = world()
    points[:, LOUD] -= 4 * torch.from_numpy(page_views.categories)  # nothing to leave out
    page, clicked = page_views.page.copy(), page_views.clicked.copy()
    page[::2, 0], clicked[::2, 0] = 7, True
    page_views = replace(page_views, page=page, clicked=clicked)
    axes = preference_axes(points, page_views).double().numpy()
    x = points.double().numpy() - points.double().numpy().mean(0)
    spread = _spread_on_pages(x, page_views)
    shrunk = spread + np.trace(spread) / WIDTH * np.eye(WIDTH)
    _, expected = linalg.eigh(_agreement(x * _popularity_discount(page_views)[:, None], page_views), shrunk)
    np.testing.assert_allclose(abs(axes[:, 0] @ shrunk @ expected[:, -1]), 1, atol=1e-6)


def test_what_a_page_holds_fast_is_left_out_with_all_that_moves_along() -> None:
    points, page_views = world()
    x = points.double().numpy()
    x[:, 1] += 2 * page_views.categories  # categories differ in a second direction too
    x -= x.mean(0)
    kept = _varied_on_pages(x, _spread_on_pages(x, page_views))
    assert np.linalg.matrix_rank(kept, tol=1e-6) == WIDTH - 1  # two kinds are one direction apart
    means = np.stack([(x @ kept)[page_views.categories == kind].mean(0) for kind in (0, 1)])
    assert np.abs(means[0] - means[1]).max() < 0.3  # it was 4 and 2
    np.testing.assert_allclose(kept @ kept, kept, atol=1e-9)


def test_pages_of_anything_cost_no_direction() -> None:
    rng = np.random.default_rng(1)
    points, page_views = world()
    page = np.stack([rng.choice(IMAGES, 5) for _ in range(len(page_views))]).astype(np.int32)
    x = (points - points.mean(0)).double().numpy() * np.linspace(0.01, 3, WIDTH)  # size says nothing
    np.testing.assert_allclose(
        _varied_on_pages(x, _spread_on_pages(x, replace(page_views, page=page))), np.eye(WIDTH), atol=1e-9
    )


def test_components_within_a_category_ignore_what_tells_categories_apart() -> None:
    config = CourierConfig(
        backbone="small", backbone_weights="random", feature_components=4, feature_whitening=1.0, basis="category"
    )
    encoder = build_encoder(config)
    rng = np.random.default_rng(0)
    page_views = world()[1]
    within = rng.normal(size=(IMAGES, 4)) @ rng.normal(size=(4, encoder.feature_width))
    apart = 50 * rng.normal(size=encoder.feature_width) * page_views.categories[:, None]
    features = torch.from_numpy((within + apart).astype(np.float32))
    standard = prepare(encoder, features, page_views, config)
    centred = torch.cat(
        [standard[page_views.categories == kind] - standard[page_views.categories == kind].mean(0) for kind in (0, 1)]
    )
    torch.testing.assert_close(centred.T @ centred / IMAGES, torch.eye(4), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"basis": "shop"}, "unknown basis 'shop': choose one of all, category"),
        ({"courier": CourierMethodConfig(head_start="warm")}, r"unknown courier\.head_start 'warm'"),
        ({"courier": CourierMethodConfig(head_start="preference"), "head": "mlp"}, "choose head linear"),
    ],
)
def test_an_unknown_choice_is_refused(wrong: dict[str, Any], says: str) -> None:
    config = replace(CourierConfig(backbone="small", backbone_weights="random"), **wrong)
    encoder = build_encoder(config)
    with pytest.raises(CourierError, match=says):
        prepare(encoder, torch.zeros(IMAGES, encoder.feature_width), world()[1], config)
