"""Cheap figures for an encoder: does the mean of what a user clicked last find the next click among sampled others?

No model is trained and no page is ranked, so it takes seconds. Retrieval by behaviour is known to go with what the same
vectors give a click model (the "exchange rate" of MOON, arXiv 2511.11305); jobs.evaluation.compare.compare measures
whether it does.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.metrics import Floats, UserBootstrap

NEGATIVES: Final = 50  # drawn for each click
FIRST: Final = 10  # of recall
ALIKE_SHARE: Final = 0.05  # of all candidates, those nearest in an attribute, stand for "the same" in it
PADDING: Final = -1
PAGE: Final = "page"
CHUNK: Final = 4096  # (4096, 51, 256) float32 is 214 MB: the most that is ever gathered of the vectors

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clicks:
    """C clicks and what went before each; every number is the row of an image's vector, -1 is padding.

    target: (C,) what was clicked.  history: (C, H) the user's clicks before the page was opened.  page: (C, P) what
    the same page showed and was not clicked.  user: (C,) int codes.  cold: (C,) whether no item with the target's
    image was shown or clicked in the training period.
    No target is in its own history, where any encoder would find it; no history is empty.
    """

    target: Ints
    history: Ints
    page: Ints
    user: Ints
    cold: Bools

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True, slots=True)
class Pool:
    """Among whom each click's negatives are drawn, and how likely each is.

    candidates: (N,) rows of vectors, in an order in which every click's own are neighbours.  weights: (N,) > 0.
    low, high: (C,), a click's candidates are candidates[low:high].
    """

    candidates: Ints
    weights: Floats
    low: Ints
    high: Ints


def everyone(popularity: Ints, target: Ints) -> Pool:
    """All images that were clicked in training. popularity: (images,) clicks in training; target: (C,)."""
    return of_the_same(popularity, target, np.zeros(len(popularity), dtype=np.int64))


def of_the_same(popularity: Ints, target: Ints, group: Ints) -> Pool:
    """Images clicked in training that are of the target's group. group: (images,), -1 where unknown: no candidates."""
    clicked = np.flatnonzero((popularity > 0) & (group >= 0))
    candidates = clicked[np.argsort(group[clicked], kind="stable")]
    low, high = (np.searchsorted(group[candidates], group[target], side=side) for side in ("left", "right"))
    return Pool(candidates, popularity[candidates].astype(np.float64), low, np.where(group[target] < 0, low, high))


def alike(popularity: Ints, target: Ints, value: Floats, share: float = ALIKE_SHARE) -> Pool:
    """Images clicked in training that are nearest to the target in an attribute, half below it and half above.

    value: (images,), NaN where unknown: no candidates.  share: of the candidates, but enough for twice the negatives.
    By rank, not by distance: where the attribute is crowded the match is close, and nowhere is there nobody.
    """
    clicked = np.flatnonzero((popularity > 0) & ~np.isnan(value))
    candidates = clicked[np.argsort(value[clicked], kind="stable")]
    width = min(len(candidates), max(2 * NEGATIVES, round(share * len(candidates))))
    places = [np.searchsorted(value[candidates], value[target], side=side) for side in ("left", "right")]
    low = np.clip((places[0] + places[1]) // 2 - width // 2, 0, len(candidates) - width)
    known = ~np.isnan(value[target])
    return Pool(candidates, popularity[candidates].astype(np.float64), low, low + width * known)


def draw_negatives(pool: Pool, refused: Ints, rng: np.random.Generator, count: int = NEGATIVES) -> Ints:
    """For each click `count` distinct candidates, drawn one after the other in proportion to their weights: (C, count).

    refused: (C, R) rows never drawn for a click, -1 padded.  Padded with -1 where a click has fewer candidates.
    """
    out = np.full((len(pool.low), count), PADDING, dtype=np.int64)
    for first in range(0, len(out), CHUNK):
        part = slice(first, first + CHUNK)
        _draw(pool, refused[part], rng, out[part], pool.low[part], pool.high[part])
    return out


def _draw(pool: Pool, refused: Ints, rng: np.random.Generator, out: Ints, low: Ints, high: Ints) -> None:
    """Fill `out`. Drawing with replacement and leaving repeats out is drawing without: twice the number nearly does."""
    count = out.shape[1]
    total = np.concatenate([[0.0], np.cumsum(pool.weights)])
    start, width = total[low][:, None], (total[high] - total[low])[:, None]
    drawn = np.searchsorted(total, start + rng.random((len(out), 2 * count)) * width, side="right") - 1
    drawn = np.clip(drawn, low[:, None], np.maximum(high - 1, low)[:, None])  # where a sum was rounded up
    some = high > low
    found = np.full(drawn.shape, PADDING, dtype=np.int64)
    found[some] = pool.candidates[drawn[some]]
    fit = _firsts(found) & (found != PADDING) & ~(found[:, :, None] == refused[:, None, :]).any(axis=2)
    place = np.cumsum(fit, axis=1) - 1
    row, column = np.nonzero(fit & (place < count))
    out[row, place[row, column]] = found[row, column]
    for n in np.flatnonzero(out[:, -1] == PADDING):
        _complete(pool, slice(int(low[n]), int(high[n])), refused[n], rng, out[n])


def _firsts(values: Ints) -> Bools:
    """Which entries of each row (C, M) are the first of their value."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    first = np.ones(values.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    out = np.empty_like(first)
    np.put_along_axis(out, order, first, axis=1)
    return out


def _complete(pool: Pool, window: slice, refused: Ints, rng: np.random.Generator, out: Ints) -> None:
    """Go on by the same law among the candidates that are left, counted out."""
    have = int((out != PADDING).sum())
    candidates, weights = pool.candidates[window], pool.weights[window]
    left = ~np.isin(candidates, refused) & ~np.isin(candidates, out)
    candidates, weights = candidates[left], weights[left]
    more = min(len(out) - have, len(candidates))
    if more:
        out[have : have + more] = rng.choice(candidates, size=more, replace=False, p=weights / weights.sum())


# --- where the target comes in ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Places:
    """Where each target stands among its negatives, (C,) each: how many score above it, tie with it, and are there."""

    above: Ints
    ties: Ints
    among: Ints

    def auc(self) -> Floats:
        """The share of a click's negatives below its target, a tie counting half; NaN without negatives."""
        return 1 - _share(self.above + self.ties / 2, self.among)

    def recall(self, first: int = FIRST) -> Floats:
        """The chance that the target is among the `first`, ties broken at random; NaN without negatives."""
        found = np.clip((first - self.above) / (self.ties + 1), 0, 1)
        return np.where(self.among > 0, found, np.nan)

    def reciprocal_rank(self) -> Floats:
        """The mean of 1 / rank, ties broken at random; NaN without negatives. Voorhees 1999 (TREC-8), MRR."""
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, self.among.max(initial=0) + 2))])
        found = (harmonic[self.above + self.ties + 1] - harmonic[self.above]) / (self.ties + 1)
        return np.where(self.among > 0, found, np.nan)


def find_places(vectors: Vectors, clicks: Clicks, negatives: Ints) -> Places:
    """Score target and negatives (C, N), -1 padded, by their cosine with the mean of the history's unit vectors.

    vectors: (images, D) float32 of unit length. The mean is not scaled to unit length: that would change no order.
    """
    above, ties = (np.zeros(len(clicks), dtype=np.int64) for _ in range(2))
    for first in range(0, len(clicks), CHUNK):
        part = slice(first, first + CHUNK)
        history = clicks.history[part]
        clicked = np.where((history != PADDING)[:, :, None], vectors[history], 0)
        profile = clicked.sum(axis=1) / np.maximum((history != PADDING).sum(axis=1), 1)[:, None]
        asked = np.concatenate([clicks.target[part, None], negatives[part]], axis=1)
        scores = np.einsum("cd,cnd->cn", profile.astype(np.float32), vectors[asked])
        there = asked[:, 1:] != PADDING
        above[part] = ((scores[:, 1:] > scores[:, :1]) & there).sum(axis=1)
        ties[part] = ((scores[:, 1:] == scores[:, :1]) & there).sum(axis=1)
    return Places(above, ties, (negatives != PADDING).sum(axis=1))


def _share(part: NDArray[Any], whole: Ints) -> Floats:
    out = np.full(len(whole), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


# --- figures ---------------------------------------------------------------------------------------------------------

Measured = Mapping[str, Mapping[str, Floats]]


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over clicks, or a ratio of two, with its 95 % interval from a bootstrap over users; NaN without clicks."""

    value: float
    ci_low: float
    ci_high: float


def measure(
    vectors: Vectors, clicks: Clicks, pools: Mapping[str, Pool], *, seed: int, value: Floats | None = None
) -> dict[str, dict[str, Floats]]:
    """For each kind of negatives the figures of every click, (C,) each, NaN where a click has no such negative.

    vectors: (images, D) float32 of unit length.  pools: what the negatives are called -> among whom they are drawn.
    "page" is added to them: the unclicked items of the same page, for which there is the AUC alone.
    value: (images,) an attribute, NaN where unknown; with it comes the "distance" in it of a click's negatives from the
    target, the mean of absolute differences: how well a pool of `alike` could match.
    The negatives depend on the seed and the clicks, never on the vectors: two encoders of the same images are asked
    the same questions.
    """
    refused = np.concatenate([clicks.target[:, None], clicks.history], axis=1)
    found = {}
    for number, (name, pool) in enumerate(pools.items()):
        negatives = draw_negatives(pool, refused, np.random.default_rng([seed, number]))
        places = find_places(vectors, clicks, negatives)
        found[name] = {"auc": places.auc(), f"recall_at_{FIRST}": places.recall(), "mrr": places.reciprocal_rank()}
        if value is not None:
            found[name]["distance"] = _distance(value, clicks.target, negatives)
    page = np.where((clicks.page[:, :, None] == refused[:, None, :]).any(axis=2), PADDING, clicks.page)
    return found | {PAGE: {"auc": find_places(vectors, clicks, page).auc()}}


def _distance(value: Floats, target: Ints, negatives: Ints) -> Floats:
    apart = np.abs(value[negatives] - value[target][:, None])
    known = ~np.isnan(apart) & (negatives != PADDING)
    return _share(np.where(known, apart, 0).sum(axis=1), known.sum(axis=1))


def summarise(measured: Measured, clicks: Clicks, draws: UserBootstrap) -> dict[str, dict[str, Any]]:
    """Means of `measured` with their intervals: {kind: {"all" | "warm" | "cold": {figure: Figure, "clicks": int}}}.

    draws: over clicks.user.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind, values in measured.items():
        found[kind] = {}
        for part, keep in parts_of(clicks).items():
            figures = {name: asdict(_mean(each, keep & ~np.isnan(each), draws)) for name, each in values.items()}
            found[kind][part] = {**figures, "clicks": int((keep & ~np.isnan(values["auc"])).sum())}
    return found


def effect_left(plain: Floats, matched: Floats, clicks: Clicks, draws: UserBootstrap) -> dict[str, dict[str, Any]]:
    """The share of the AUC above chance that is left when negatives are alike in an attribute, for all, warm and cold.

    plain, matched: (C,) AUCs of each click with either kind of negatives; only clicks that have both count, and
    `auc`, `auc_matched` are of these.  1: the attribute explains nothing; 0: it explains all.  The interval resamples
    users, the same ones for both.
    """
    known = ~np.isnan(plain) & ~np.isnan(matched)
    found = {}
    for part, keep in parts_of(clicks).items():
        keep = keep & known
        before, after = (_mean(values, keep, draws).value - 0.5 for values in (plain, matched))
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = (draws.means(matched, keep) - 0.5) / (draws.means(plain, keep) - 0.5)
            share = float(np.divide(after, before))
        found[part] = {"auc": before + 0.5, "auc_matched": after + 0.5, **asdict(_figure(share, drawn))}
    return found


def parts_of(clicks: Clicks) -> dict[str, Bools]:
    """All clicks, those on warm images, those on cold ones: (C,) each."""
    return {"all": np.ones(len(clicks), dtype=bool), "warm": ~clicks.cold, "cold": clicks.cold}


def _mean(values: Floats, keep: Bools, draws: UserBootstrap) -> Figure:
    return _figure(float(values[keep].mean()) if keep.any() else float("nan"), draws.means(values, keep))


def _figure(value: float, drawn: Floats) -> Figure:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or not np.isfinite(value):
        return Figure(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(value, float(low), float(high))
