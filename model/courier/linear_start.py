"""What is fitted before the first step on frozen features: their components, and where a linear head starts."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.courier.batches import PADDING, PageViews
from model.courier.config import CourierConfig
from model.courier.encoder import Encoder

ROWS = 65_536  # page views gathered at a time: (65536, 5, 64) float32 are 84 MB


BASES = ("all", "category")
STARTS = ("random", "taste")
MIN_SHARE = 1e-5  # of the largest eigenvalue: smaller ones are what rounding leaves of directions left out


def prepare(encoder: Encoder, features: Tensor, views: PageViews, config: CourierConfig) -> Tensor:
    """Fit the components, and the head's start, to the features (N, F) of the images of `views`.

    Returns what the head will see of them, (N, components). Raises ValueError for an unknown choice, or a start that is
    not this head's.
    """
    for name, choices in (("basis", BASES), ("head_start", STARTS)):
        if getattr(config, name) not in choices:
            raise ValueError(f"unknown {name} {getattr(config, name)!r}: choose one of {', '.join(choices)}")
    if config.head_start == "taste" and config.head != "linear":
        raise ValueError(f"head_start taste is a linear head's, and head is {config.head!r}: choose head linear")
    of_category = torch.from_numpy(views.categories).to(features.device) if config.basis == "category" else None
    encoder.standardise_by(features, config.feature_whitening, of_category)
    standard = encoder.standard(features)
    if config.head_start == "taste":
        linear: nn.Linear = encoder.head[0]  # type: ignore[assignment]
        start_head(linear, standard, views)
    return standard


def start_head(head: nn.Linear, points_NK: Tensor, views: PageViews) -> int:
    """Set the head to the axes of `taste_axes`, and what it has more than these to zero; returns how many there are.

    points: (N, K), what the head sees of each image of `views`, on the head's device. A head whose rows are fewer than
    the axes takes the leading ones. Without any axis (no page view with a click and a history) it is left as it is.
    """
    axes_KA = taste_axes(points_NK, views)[:, : head.out_features]
    if axes_KA.shape[1]:
        with torch.no_grad():
            head.weight.zero_()
            head.weight[: axes_KA.shape[1]] = axes_KA.T
            head.bias.copy_(-head.weight @ points_NK.mean(0))
    return axes_KA.shape[1]


def taste_axes(points_NK: Tensor, views: PageViews) -> Tensor:
    """Axes (K, A) whose products x . y tell best, to first order, which image of a page a user clicks.

        C = mean over clicks j with a history of  (x_j - mean of its page) (sum of earlier clicks / sqrt(their number))'
        C, made symmetric, = V diag(l) V';   axes = V sqrt(l)   for the l > 0

    This is the maximum of the mean of (x_j - page mean) . A A' . (sum of earlier clicks) at a given norm of A A': the
    gradient of a contrast within the page where its temperature is high. Directions in which categories differ are left
    out first: a page may show one category, and the CTR model knows it.
    points: (N, K), one row for each image of `views`, of equal spread in all K directions.
    """
    kept_KK = _without_categories(points_NK, views.categories)
    cross_KK = _page_covariance((points_NK - points_NK.mean(0)) @ kept_KK, views)
    strength, axes_KK = torch.linalg.eigh((cross_KK + cross_KK.T).double() / 2)
    strength, axes_KK = strength.flip(0), axes_KK.flip(1)
    count = int((strength > MIN_SHARE * strength[0].abs()).sum())
    chosen_KA: Tensor = kept_KK.double() @ axes_KK[:, :count] * strength[:count].sqrt()
    return chosen_KA.float()


def _without_categories(points_NK: Tensor, categories: npt.NDArray[np.int64]) -> Tensor:
    """(K, K), the projection off the directions in which category means differ; off half of all at most.

    By chance alone a mean's distance times the root of its count is normal, and the largest singular value of C such
    rows about sqrt(C) + sqrt(K) (the edge of Marchenko and Pastur): what lies below is no difference.
    """
    category = torch.from_numpy(categories).to(points_NK.device)
    count = torch.bincount(category).to(points_NK.dtype)
    total_CK = points_NK.new_zeros(len(count), points_NK.shape[1]).index_add_(0, category, points_NK)
    apart_CK = (total_CK / count[:, None] - points_NK.mean(0)) * count.sqrt()[:, None]
    spread = (points_NK - points_NK.mean(0)).square().mean().sqrt()
    chance = spread * sum(side**0.5 for side in apart_CK.shape)
    _, size_D, axes_DK = torch.linalg.svd(apart_CK, full_matrices=False)
    axes_DK = axes_DK[size_D > chance][: points_NK.shape[1] // 2]
    off_KK: Tensor = torch.eye(points_NK.shape[1], device=points_NK.device) - axes_DK.T @ axes_DK
    return off_KK


def _page_covariance(points_NK: Tensor, views: PageViews) -> Tensor:
    """(K, K): C of `taste_axes`; zero without a click that has a history."""
    total_KK, clicks = points_NK.new_zeros(points_NK.shape[1], points_NK.shape[1]), 0
    known_NK = torch.cat([points_NK, points_NK.new_zeros(1, points_NK.shape[1])])  # the last row answers for padding
    for start in range(0, len(views), ROWS):
        page, history, clicked = (
            torch.from_numpy(rows[start : start + ROWS]).to(points_NK.device)
            for rows in (views.page.astype(np.int64), views.history.astype(np.int64), views.clicked)
        )
        shown, remembered = page != PADDING, history != PADDING
        page_RPK = known_NK[page]
        mean_RK = page_RPK.sum(1) / shown.sum(1, keepdim=True).clamp(min=1)
        clicked = clicked & shown & remembered.any(1, keepdim=True)
        count_R = clicked.sum(1, keepdim=True)
        above_RK = (page_RPK * clicked[:, :, None]).sum(1) - mean_RK * count_R
        past_RK = known_NK[history].sum(1) / remembered.sum(1, keepdim=True).clamp(min=1).sqrt()
        total_KK += above_RK.T @ past_RK
        clicks += int(count_R.sum())
    return total_KK / max(clicks, 1)
