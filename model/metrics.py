"""How well predicted click probabilities rank and fit what happened, and how sure a difference of two models is."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]

BLOCK_BYTES = 256_000_000  # of the weights of a bootstrap's resamples: 2,000 of them by 32,000 users
PROBABILITY_FLOOR = 1e-7  # log loss of a float32 probability that says 0 or 1


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The chance that a clicked row scores above an unclicked one; a tie counts half. NaN with only one class.

    labels: (n,) of 0/1; scores: (n,), any monotone scale.  Hanley & McNeil 1982.
    """
    labels, scores = _pair(labels, scores)
    positive = labels > 0
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    rank_sum = float(_mid_ranks(scores)[positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def gauc(labels: ArrayLike, scores: ArrayLike, users: ArrayLike) -> float:
    """AUC within each user, averaged with the user's number of rows as weight; NaN if no user has both classes.

    labels, scores, users: (n,). Users with only clicks or none rank nothing and are left out.
    Zhou et al. 2018 (Deep Interest Network), eq. 7, https://arxiv.org/abs/1706.06978
    """
    labels, scores = _pair(labels, scores)
    groups = _codes(users)
    order = np.lexsort((scores, groups))
    groups, positive = groups[order], labels[order] > 0
    count = np.bincount(groups)
    starts = np.concatenate([[0], np.cumsum(count)[:-1]])
    ranks = _mid_ranks_of_sorted(groups, scores[order]) - starts[groups]
    positives = np.bincount(groups, weights=positive)
    pairs = positives * (count - positives)
    rank_sum = np.bincount(groups, weights=ranks * positive)
    both = pairs > 0
    if not both.any():
        return float("nan")
    by_user = (rank_sum - positives * (positives + 1) / 2)[both] / pairs[both]
    return float(np.average(by_user, weights=count[both]))


def ndcg(labels: ArrayLike, scores: ArrayLike, pages: ArrayLike) -> float:
    """Normalised discounted cumulative gain of a page view, mean over the page views with a click.

    NaN if none has one, or if every item of those that have one was clicked: any order of them is the ideal one.
    labels, scores, pages: (n,). Gain 0/1, discount 1 / log2(rank + 1), all ranks; rows that tie share the mean of
    their discounts, so that the order of the input never matters.
    Järvelin & Kekäläinen 2002; ties: McSherry & Najork 2008.
    """
    labels, scores = _pair(labels, scores)
    groups = _codes(pages)
    order = np.lexsort((-scores, groups))
    groups, scores, gains = groups[order], scores[order], (labels[order] > 0).astype(np.float64)
    count = np.bincount(groups)
    rank = np.arange(len(groups)) - (np.cumsum(count) - count)[groups]
    ties = _tie_groups(groups, scores)
    discount = 1.0 / np.log2(rank + 2.0)
    shared = (np.bincount(ties, weights=discount) / np.bincount(ties))[ties]
    clicks = np.bincount(groups, weights=gains).astype(np.int64)
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(count.max(initial=0)) + 2.0))])[clicks]
    clicked = clicks > 0
    if not (clicked & (clicks < count)).any():
        return float("nan")
    return float((np.bincount(groups, weights=gains * shared)[clicked] / ideal[clicked]).mean())


def logloss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log likelihood in nats; probabilities are kept 1e-7 away from 0 and 1. NaN without rows."""
    labels, probabilities = _pair(labels, probabilities)
    if not len(labels):
        return float("nan")
    p = np.clip(probabilities, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return float(-np.where(labels > 0, np.log(p), np.log1p(-p)).mean())


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Rows of about the same prediction: the mean prediction, the share that clicked, and how many rows."""

    predicted: float
    observed: float
    rows: int


def calibration(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> list[CalibrationBin]:
    """Predicted against observed click rate in at most `bins` groups of equal size, lowest prediction first."""
    labels, probabilities = _pair(labels, probabilities)
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [CalibrationBin(float(probabilities[p].mean()), float((labels[p] > 0).mean()), len(p)) for p in parts]


# --- the paired bootstrap -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gain:
    """The difference of two AUCs, its 95 % interval and its two-sided p-value; NaN where undefined."""

    value: float
    ci_low: float
    ci_high: float
    p_value: float


class UserBootstrap:
    """Resamples users, with all rows of each, so that the rows of one user are never taken as independent.

    Every comparison made with one object uses the same resamples: that is what pairs them.
    Efron & Tibshirani 1993, ch. 8 and 13; clusters: Field & Welsh 2007.
    """

    def __init__(self, users: ArrayLike, *, replicates: int, seed: int, block_bytes: int = BLOCK_BYTES) -> None:
        """users: (n,) the user of each row; replicates: how many resamples.

        block_bytes: of the weights that are in memory at a time, of one resample at least. They are kept where they are
        no more than that; else every figure makes them anew from the seed.
        """
        self.users = _codes(users)
        self.replicates, self.seed = replicates, seed
        self._count = int(self.users.max(initial=-1)) + 1
        self._rows = max(1, block_bytes // (4 * max(1, self._count)))
        self._kept: Floats32 | None = None

    def weights(self) -> Iterator[tuple[slice, Floats32]]:
        """How often each resample holds each user: (b, users) for the resamples of each slice of 0..replicates."""
        if self._kept is not None:
            yield slice(0, self.replicates), self._kept
            return
        rng = np.random.default_rng(self.seed)
        for start in range(0, self.replicates, self._rows):
            some = slice(start, min(start + self._rows, self.replicates))
            # float32 holds these small counts exactly, and halves the memory
            block = np.zeros((some.stop - start, self._count), dtype=np.float32)
            for row in block:
                row[:] = np.bincount(rng.integers(0, self._count, self._count), minlength=self._count)
            if len(block) == self.replicates:
                self._kept = block
            yield some, block

    def aucs(self, labels: ArrayLike, scores: ArrayLike, keep: NDArray[np.bool_] | None = None) -> Floats:
        """The AUC in every resample: (replicates,), NaN where a resample has one class.

        keep: (n,), the rows to look at; all, if not given.
        """
        labels, scores = _pair(labels, scores)
        keep = np.ones(len(labels), dtype=bool) if keep is None else keep
        positive, negative = np.flatnonzero((labels > 0) & keep), np.flatnonzero((labels <= 0) & keep)
        # One sort serves all resamples: only the weights change, never the order.
        negative = negative[np.argsort(scores[negative], kind="stable")]
        below = np.searchsorted(scores[negative], scores[positive], side="left")
        upto = np.searchsorted(scores[negative], scores[positive], side="right")
        users_positive, users_negative = self.users[positive], self.users[negative]
        out = np.full(self.replicates, np.nan)
        cumulative = np.zeros(len(negative) + 1)
        for some, block in self.weights():
            for i, weights in enumerate(block, start=some.start):
                np.cumsum(weights[users_negative], dtype=np.float64, out=cumulative[1:])
                weight_positive = weights[users_positive].astype(np.float64)
                pairs = weight_positive.sum() * cumulative[-1]
                if pairs > 0:
                    out[i] = weight_positive @ (cumulative[below] + cumulative[upto]) / (2 * pairs)
        return out

    def means(self, values: ArrayLike, keep: NDArray[np.bool_] | None = None) -> Floats:
        """The mean of `values` (n,) in every resample: (replicates,), NaN where a resample holds no row.

        keep: (n,), the rows to look at; all, if not given.
        """
        values = np.asarray(values, dtype=np.float64)
        keep = np.ones(len(values), dtype=bool) if keep is None else keep
        rows = np.bincount(self.users[keep], minlength=self._count).astype(np.float64)
        sums = np.bincount(self.users[keep], weights=values[keep], minlength=self._count)
        by_user, out = np.stack([sums, rows], axis=1), np.full(self.replicates, np.nan)
        for some, block in self.weights():
            resampled = block @ by_user
            np.divide(resampled[:, 0], resampled[:, 1], out=out[some], where=resampled[:, 1] > 0)
        return out

    @staticmethod
    def gain(value: float, ours: Floats, theirs: Floats) -> Gain:
        """`value` is the observed AUC difference; ours, theirs: (replicates,) from `aucs` of the two models.

        The interval holds the middle 95 % of the B resampled differences d.
        p = 2 min(1 + #{d <= 0}, 1 + #{d >= 0}) / (B + 1), at most 1 and never 0 (Davison & Hinkley 1997, eq. 4.11).
        """
        differences = ours - theirs
        differences = differences[~np.isnan(differences)]
        if not len(differences) or np.isnan(value):
            return Gain(float("nan"), float("nan"), float("nan"), float("nan"))
        low, high = np.quantile(differences, [0.025, 0.975])
        tail = 1 + min(int((differences <= 0).sum()), int((differences >= 0).sum()))
        return Gain(value, float(low), float(high), min(1.0, 2 * tail / (len(differences) + 1)))


# --- ranks ----------------------------------------------------------------------------------------------------------


def _pair(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    labels, scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be two lists of one length")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN: a model must score every row")
    return labels, scores


def _codes(groups: ArrayLike) -> Ints:
    """0, 1, 2 ... for the distinct values, in the shape of `groups`."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1).astype(np.int64)


def _tie_groups(groups: Ints, scores: Floats) -> Ints:
    """The running number of each run of equal (group, score); the input is sorted so that equals are neighbours."""
    change = (groups[1:] != groups[:-1]) | (scores[1:] != scores[:-1])
    return np.concatenate([[0], np.cumsum(change)])[: len(groups)].astype(np.int64)


def _mid_ranks_of_sorted(groups: Ints, scores: Floats) -> Floats:
    """Ranks 1..n of sorted rows; rows that tie share their mean rank."""
    ties = _tie_groups(groups, scores)
    count = np.bincount(ties)
    last = np.cumsum(count)
    return (last - (count - 1) / 2.0)[ties]


def _mid_ranks(scores: Floats) -> Floats:
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = _mid_ranks_of_sorted(np.zeros(len(scores), dtype=np.int64), scores[order])
    return ranks
