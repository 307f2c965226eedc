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
STARTS = ("random", "taste")
FIXED = 0.2  # of the variance of all images: in the shop's 7 such directions pages keep up to .17, in the next one .42
WEIGHT = 0.25  # power of an axis' strength that it weighs; 0 and 1/2 are worse by validation. docs/LOG.md
MIN_SHARE = 1e-5  # of the largest eigenvalue: smaller ones are what rounding leaves of directions left out


def prepare(encoder: Encoder, features: Tensor, views: PageViews, config: CourierConfig) -> Tensor:
    """Fit the components, and the head's start, to the features (N, F) of the images of `views`.

    Returns what the head will see of them, (N, components). Raises CourierError for an unknown choice, or a start
    that is not this head's.
    """
    start = config.courier.head_start
    for name, value, choices in (("basis", config.basis, BASES), ("courier.head_start", start, STARTS)):
        if value not in choices:
            raise CourierError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")
    if start == "taste" and config.head != "linear":
        raise CourierError(f"head_start taste is a linear head's, and head is {config.head!r}: choose head linear")
    of_category = torch.from_numpy(views.categories) if config.basis == "category" else None
    encoder.standardise_by(features, config.feature_whitening, of_category)
    standard = encoder.standard(features)
    if start == "taste":
        linear: nn.Linear = encoder.head[0]  # type: ignore[assignment]
        start_head(linear, standard, views)
    return standard


def start_head(head: nn.Linear, points_NK: Tensor, views: PageViews) -> int:
    """Set the head to the axes of `taste_axes`, and what it has more than these to zero; returns how many there are.

    points: (N, K), what the head sees of each image of `views`, on the head's device. A head whose rows are fewer than
    the axes takes the leading ones. Without any axis (nobody clicked on two pages) it is left as it is.
    """
    axes_KA = taste_axes(points_NK, views)[:, : head.out_features]
    if axes_KA.shape[1]:
        with torch.no_grad():
            head.weight.zero_()
            head.weight[: axes_KA.shape[1]] = axes_KA.T
            head.bias.copy_(-head.weight @ points_NK.mean(0))
    return axes_KA.shape[1]


def taste_axes(points_NK: Tensor, views: PageViews) -> Tensor:
    """Axes (K, A) in which the products x . y tell best, to first order, that one user clicks both images.

    A click pulls its user by p = x_clicked - mean of the page. With S_u the sum of a user's n_u pulls,

        C = sum over u of n_u^-1/2 (S_u S_u' - sum over pages of P P' - each image's product with itself) / pairs

    (P: the pulls of one page) says how pulls of different pages and different images agree, and W, the covariance of
    what pages show about their means, how far apart images are that a user may choose between. The axes maximise
    a' C a at a given a' (W + t I) a, t the mean spread: Fisher's discriminant with users in place of classes, shrunk as
    in Friedman 1989, Regularized discriminant analysis. That strength goes below zero by chance alone: an axis is kept
    where it is stronger than the most negative one. Chance reaches further up than down, so some of the weakest that
    are kept mean nothing; axes weigh as the fourth root of their strength, so that these count for little and a quiet
    part of style is yet not drowned by a loud one. docs/LOG.md
    What pages hardly vary is left out first, see `_varied_on_pages`, and images that pull much count for less than
    their pulls, see `_quieter`: else the axes are those of the images everybody clicks, and say less of a new one.
    points: (N, K), one row for each image of `views`.
    Raises ValueError where the views don't name their users.
    """
    if len(views.users) != len(views):
        raise ValueError("head_start taste needs to know whose each page view is, and PageViews.users is None")
    points = points_NK.double().cpu().numpy()
    points = points - points.mean(0)
    spread_KK = _spread_on_pages(points, views)
    size, directions_KK = np.linalg.eigh(spread_KK + np.trace(spread_KK) / len(spread_KK) * np.eye(len(spread_KK)))
    even_KK = directions_KK / np.sqrt(np.maximum(size, np.finfo(float).tiny))
    even = points @ even_KK
    kept_KK = _varied_on_pages(even, even_KK.T @ spread_KK @ even_KK)
    strength, axes_KK = np.linalg.eigh(_agreement(even @ kept_KK * _quieter(views)[:, None], views))
    chosen = np.flatnonzero(strength > max(-strength[0], MIN_SHARE * abs(strength[-1])))[::-1]
    weighed = axes_KK[:, chosen] * (strength[chosen] / strength[-1]) ** WEIGHT
    return torch.from_numpy(even_KK @ kept_KK @ weighed).to(points_NK)


def _varied_on_pages(points: Floats, spread_KK: Floats) -> Floats:
    """(K, K), the projection off what images differ by but pages do not, as the category where a page shows one.

    Nobody chooses by it, and the CTR model knows the category. points: (N, K) centred; spread: (K, K), W of
    `taste_axes`. Of the directions a' T a = 1 (T: the covariance of all images) those with a' W a < FIXED are left out,
    and with them T a, which is how images move along a: the canonical variates, and patterns, of pages.
    """
    total_KK = points.T @ points / len(points)
    size, directions_KK = np.linalg.eigh(total_KK)
    known = size > MIN_SHARE * size[-1]
    white_KD = directions_KK[:, known] / np.sqrt(size[known])
    varied, axes_DD = np.linalg.eigh(white_KD.T @ spread_KK @ white_KD)
    off_KF, _ = np.linalg.qr(total_KK @ white_KD @ axes_DD[:, varied < FIXED])
    kept: Floats = np.eye(len(total_KK)) - off_KF @ off_KF.T
    return kept


def _quieter(views: PageViews) -> Floats:
    """(N,): what makes the sum of an image's absolute pulls its power 3/4, the exponent for a word's count in
    Mikolov et al. 2013, Distributed representations of words and phrases; 0 for an image that pulls nobody.
    """
    total = np.zeros(len(views.image_ids))
    for start in range(0, len(views), ROWS):
        total += abs(_pulls(views, np.arange(start, min(start + ROWS, len(views))))).sum(axis=0)
    return np.power(total, -0.25, where=total > 0, out=np.zeros_like(total))


def _pulls(views: PageViews, rows: npt.NDArray[np.int64]) -> sparse.csr_array:
    """(rows, N): how each page pulls its user: a click adds 1 to its image and takes the share of each one shown."""
    shown = views.page[rows] != PADDING
    share = (views.clicked[rows] & shown).sum(1) / np.maximum(shown.sum(1), 1)
    row, place = np.nonzero(shown)
    value = views.clicked[rows][row, place] - share[row]
    pulls = sparse.csr_array((value, (row, views.page[rows][row, place])), shape=(len(rows), len(views.image_ids)))
    pulls.sum_duplicates()  # an image may lie on a page twice
    return pulls


def _agreement(points: Floats, views: PageViews) -> Floats:
    """(K, K): C of `taste_axes`, the mean over pairs of pulls; zero where no user clicks on two pages."""
    clicks = (views.clicked & (views.page != PADDING)).sum(1)
    rows = np.flatnonzero(clicks)
    rows = rows[np.argsort(views.users[rows], kind="stable")]
    total, pairs = np.zeros((points.shape[1], points.shape[1])), 0.0
    alone = np.zeros(len(points))  # of each image: the weight of its products with itself
    for part in _by_user(views.users[rows]):
        users, user = np.unique(views.users[rows[part]], return_inverse=True)
        pulls = _pulls(views, rows[part])
        member = sparse.csr_array((np.ones(len(user)), (user, np.arange(len(user)))), shape=(len(users), len(user)))
        weight = (member @ clicks[rows[part]]) ** -0.5
        for summed, by, count, sign in (
            (member @ pulls, weight, member @ clicks[rows[part]], 1),
            (pulls, weight[user], clicks[rows[part]], -1),
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


def _spread_on_pages(points: Floats, views: PageViews) -> Floats:
    """(K, K): W of `taste_axes`, the mean over all images shown."""
    shown = views.page != PADDING
    often = np.bincount(views.page[shown], minlength=len(points)).astype(float)
    total = (points * often[:, None]).T @ points
    for start in range(0, len(views), ROWS):
        page, there = views.page[start : start + ROWS], shown[start : start + ROWS]
        row, place = np.nonzero(there)
        pages = sparse.csr_array((np.ones(len(row)), (row, page[row, place])), shape=(len(page), len(points)))
        summed = pages @ points
        total -= (summed / np.maximum(there.sum(1), 1)[:, None]).T @ summed
    spread: Floats = total / max(int(shown.sum()), 1)
    return spread
