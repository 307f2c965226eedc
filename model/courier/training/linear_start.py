"""What is fitted before the first step on frozen features: their components, and where a linear head starts."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor, nn

from model.courier.config import CourierConfig
from model.courier.data.batches import PADDING, PageViews
from model.courier.network.encoder import Encoder
from model.errors import CourierError

Floats = npt.NDArray[np.float64]

ROWS = 65_536  # page views at a time: (65536, 256) float64 are 134 MB

BASES = ("all", "category")
STARTS = ("random", "preference")
FIXED = 0.2  # of the variance of all images: in the shop's 7 such directions pages keep up to .17, in the next one .42
WEIGHT = 0.25  # power of an axis' strength that it weighs; 0 and 1/2 are worse by validation. docs/LOG.md
MIN_SHARE = 1e-5  # of the largest eigenvalue: smaller ones are what rounding leaves of directions left out


def prepare(encoder: Encoder, features: Tensor, page_views: PageViews, config: CourierConfig) -> Tensor:
    """Trainer the components, and the head's start, to the features (N, F) of the images of `page_views`.

    Returns what the head will see of them, (N, components). Raises CourierError for an unknown choice, or a start
    that is not this head's.
    """
    start = config.courier.head_start
    for name, value, choices in (("basis", config.basis, BASES), ("courier.head_start", start, STARTS)):
        if value not in choices:
            raise CourierError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")
    if start == "preference" and config.head != "linear":
        raise CourierError(f"head_start preference is a linear head's, and head is {config.head!r}: choose head linear")
    of_category = torch.from_numpy(page_views.categories) if config.basis == "category" else None
    encoder.standardise_by(features, config.feature_whitening, of_category)
    standard = encoder.standard(features)
    if start == "preference":
        linear: nn.Linear = encoder.head[0]  # type: ignore[assignment]
        start_head(linear, standard, page_views)
    return standard


def start_head(head: nn.Linear, points_NK: Tensor, page_views: PageViews) -> int:
    """Set the head to the axes of `preference_axes`, and what it has more than these to zero; returns their number.

    points: (N, K), what the head sees of each image of `page_views`, on the head's device. A head whose rows are fewer
    than the axes takes the leading ones. Without any axis (nobody clicked on two pages) it is left as it is.
    """
    axes_KA = preference_axes(points_NK, page_views)[:, : head.out_features]
    if axes_KA.shape[1]:
        with torch.no_grad():
            head.weight.zero_()
            head.weight[: axes_KA.shape[1]] = axes_KA.T
            head.bias.copy_(-head.weight @ points_NK.mean(0))
    return axes_KA.shape[1]


def preference_axes(points_NK: Tensor, page_views: PageViews) -> Tensor:
    """Axes (K, A) in which the products x . y tell best, to first order, that one user clicks both images.

    A click's residual, the clicked image less the mean of the page, p = x_clicked - mean, says what its user prefers.
    With S_u the sum of a user's n_u residuals,

        C = sum over u of n_u^-1/2 (S_u S_u' - sum over pages of P P' - each image's product with itself) / pairs

    (P: the sum of one page's residuals) says how residuals of different pages and different images agree, and W, the
    covariance of what pages show about their means, how far apart images are that a user may choose between. The axes
    maximise a' C a at a given a' (W + t I) a, t the mean spread: Fisher's discriminant with users in place of classes,
    shrunk as in Friedman 1989, Regularized discriminant analysis. That strength goes below zero by chance alone: an
    axis is taken where it is stronger than the most negative one. Chance reaches further up than down, so some of the
    weakest that are taken mean nothing; axes weigh as the fourth root of their strength, so that these count for little
    and a quiet part of style is yet not drowned by a loud one. docs/LOG.md
    What pages hardly vary is left out first, see `_varied_on_pages`, and popular images count for less than their
    residuals, see `_popularity_discount`: else the axes are those of the images everybody clicks, and say less of a new
    one.
    points: (N, K), one row for each image of `page_views`.
    Raises ValueError where the page views don't name their users.
    """
    if len(page_views.users) != len(page_views):
        raise ValueError("head_start preference needs to know whose each page view is, and PageViews.users is None")
    points = points_NK.double().cpu().numpy()
    points = points - points.mean(0)
    spread_KK = _spread_on_pages(points, page_views)
    size, directions_KK = np.linalg.eigh(spread_KK + np.trace(spread_KK) / len(spread_KK) * np.eye(len(spread_KK)))
    even_KK = directions_KK / np.sqrt(np.maximum(size, np.finfo(float).tiny))
    even = points @ even_KK
    varied_KK = _varied_on_pages(even, even_KK.T @ spread_KK @ even_KK)
    strength, axes_KK = np.linalg.eigh(
        _agreement(even @ varied_KK * _popularity_discount(page_views)[:, None], page_views)
    )
    chosen = np.flatnonzero(strength > max(-strength[0], MIN_SHARE * abs(strength[-1])))[::-1]
    weighed = axes_KK[:, chosen] * (strength[chosen] / strength[-1]) ** WEIGHT
    return torch.from_numpy(even_KK @ varied_KK @ weighed).to(points_NK)


def _varied_on_pages(points: Floats, spread_KK: Floats) -> Floats:
    """(K, K), the projection off what images differ by but pages do not, as the category where a page shows one.

    Nobody chooses by it, and the CTR model knows the category. points: (N, K) centred; spread: (K, K), W of
    `preference_axes`. Of the directions a' T a = 1 (T: the covariance of all images) those with a' W a < FIXED are left
    out, and with them T a, which is how images move along a: the canonical variates, and patterns, of pages.
    """
    total_KK = points.T @ points / len(points)
    size, directions_KK = np.linalg.eigh(total_KK)
    known = size > MIN_SHARE * size[-1]
    white_KD = directions_KK[:, known] / np.sqrt(size[known])
    varied, axes_DD = np.linalg.eigh(white_KD.T @ spread_KK @ white_KD)
    off_KF, _ = np.linalg.qr(total_KK @ white_KD @ axes_DD[:, varied < FIXED])
    projection: Floats = np.eye(len(total_KK)) - off_KF @ off_KF.T
    return projection


def _popularity_discount(page_views: PageViews) -> Floats:
    """(N,): what makes the sum of an image's absolute residuals its power 3/4, the exponent for a word's count in
    Mikolov et al. 2013, Distributed representations of words and phrases; 0 for an image whose residuals are all 0.
    """
    total = np.zeros(len(page_views.image_ids))
    for start in range(0, len(page_views), ROWS):
        total += abs(_click_residuals(page_views, np.arange(start, min(start + ROWS, len(page_views))))).sum(axis=0)
    return np.power(total, -0.25, where=total > 0, out=np.zeros_like(total))


def _click_residuals(page_views: PageViews, rows: npt.NDArray[np.int64]) -> sparse.csr_array:
    """(rows, N): what each page's clicks are beyond those expected: 1 for a click, less its page's share of clicks."""
    shown = page_views.page[rows] != PADDING
    share = (page_views.clicked[rows] & shown).sum(1) / np.maximum(shown.sum(1), 1)
    row, place = np.nonzero(shown)
    value = page_views.clicked[rows][row, place] - share[row]
    residuals = sparse.csr_array(
        (value, (row, page_views.page[rows][row, place])), shape=(len(rows), len(page_views.image_ids))
    )
    residuals.sum_duplicates()  # an image may lie on a page twice
    return residuals


def _agreement(points: Floats, page_views: PageViews) -> Floats:
    """(K, K): C of `preference_axes`, the mean over pairs of residuals; zero where no user clicks on two pages."""
    clicks = (page_views.clicked & (page_views.page != PADDING)).sum(1)
    rows = np.flatnonzero(clicks)
    rows = rows[np.argsort(page_views.users[rows], kind="stable")]
    total, pairs = np.zeros((points.shape[1], points.shape[1])), 0.0
    alone = np.zeros(len(points))  # of each image: the weight of its products with itself
    for part in _by_user(page_views.users[rows]):
        users, user = np.unique(page_views.users[rows[part]], return_inverse=True)
        residuals = _click_residuals(page_views, rows[part])
        member = sparse.csr_array((np.ones(len(user)), (user, np.arange(len(user)))), shape=(len(users), len(user)))
        weight = (member @ clicks[rows[part]]) ** -0.5
        for summed, by, count, sign in (
            (member @ residuals, weight, member @ clicks[rows[part]], 1),
            (residuals, weight[user], clicks[rows[part]], -1),
        ):
            moved = summed @ points
            total += sign * (moved * by[:, None]).T @ moved
            alone += sign * (summed.multiply(summed).T @ by)
            pairs += sign * float(by @ count**2)
    total -= (points * alone[:, None]).T @ points
    return (total + total.T) / 2 / max(pairs, 1.0)


def _by_user(users: npt.NDArray[np.int64]) -> Iterator[slice]:
    """About ROWS rows at a time, all of a user's together; users: (R,) ascending."""
    first = np.searchsorted(users, users)  # the row at which a row's user begins
    cuts = np.flatnonzero(np.diff(first // ROWS, prepend=-1))
    yield from (slice(a, b) for a, b in pairwise([*cuts.tolist(), len(users)]))


def _spread_on_pages(points: Floats, page_views: PageViews) -> Floats:
    """(K, K): W of `preference_axes`, the mean over all images shown."""
    shown = page_views.page != PADDING
    often = np.bincount(page_views.page[shown], minlength=len(points)).astype(float)
    total = (points * often[:, None]).T @ points
    for start in range(0, len(page_views), ROWS):
        page, there = page_views.page[start : start + ROWS], shown[start : start + ROWS]
        row, place = np.nonzero(there)
        pages = sparse.csr_array((np.ones(len(row)), (row, page[row, place])), shape=(len(page), len(points)))
        summed = pages @ points
        total -= (summed / np.maximum(there.sum(1), 1)[:, None]).T @ summed
    spread: Floats = total / max(int(shown.sum()), 1)
    return spread
