"""Encoders side by side: figures averaged over seeds, and what one encoder has over another, on resamples they share.

One bootstrap over users serves every figure (model.metrics.UserBootstrap): in each resample a figure is computed for
every seed of a method, the seeds' mean is taken, and methods are held against each other resample by resample. So an
interval, and a p-value, speak of users: would *these* trained encoders, the mean of these seeds, stand the same way
before other users of this site? They do not speak of other seeds: for that there is the spread over the seeds, and
with three of them nothing better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from model import metrics
from model.ctr.evaluation.evaluate import TestRows
from model.metrics import Floats, UserBootstrap

FEWEST_METHODS: Final = 4  # whose resamples can give a rank correlation an interval

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Sample:
    """A figure as observed, and in each of B resamples of users: drawn (B,)."""

    value: float
    drawn: Floats

    def __sub__(self, other: "Sample") -> "Sample":
        return Sample(self.value - other.value, self.drawn - other.drawn)

    def above(self, floor: float) -> "Sample":
        """What it has over a number that is the same in every resample, as chance is."""
        return Sample(self.value - floor, self.drawn - floor)


def auc_sample(rows: TestRows, scores: NDArray[Any], keep: Bools, draws: UserBootstrap) -> Sample:
    """The AUC of the kept rows. scores: (n,); keep: (n,); draws: over rows.users."""
    return Sample(metrics.auc(rows.clicked[keep], scores[keep]), draws.aucs(rows.clicked, scores, keep))


def mean_sample(values: Floats, keep: Bools, draws: UserBootstrap) -> Sample:
    """The mean of the kept values. values: (n,), keep: (n,); draws: over the users of these rows."""
    return Sample(float(values[keep].mean()) if keep.any() else float("nan"), draws.means(values, keep))


def average(samples: Sequence[Sample]) -> Sample:
    """The mean over seeds, as observed and within each resample. At least one sample."""
    return Sample(
        float(np.mean([sample.value for sample in samples])), np.mean([sample.drawn for sample in samples], axis=0)
    )


def level(samples: Sequence[Sample]) -> dict[str, Any]:
    """A figure, one sample a seed: the mean over seeds with its 95 % interval, each seed's own, and their spread.

    value, ci_low, ci_high: of the mean.  by_seed: in the order given.  spread: their standard deviation (n - 1), NaN
    with one seed.
    """
    mean = average(samples)
    known = mean.drawn[np.isfinite(mean.drawn)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    by_seed = [sample.value for sample in samples]
    spread = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else float("nan")
    return {
        "value": mean.value,
        "ci_low": float(low),
        "ci_high": float(high),
        "by_seed": by_seed,
        "spread": spread,
    }


def told(samples: Sequence[Sample]) -> dict[str, Any]:
    """A difference, as `level` tells it, and its p_value as model.metrics.UserBootstrap.gain has it.

    The p-value is the two-sided chance of a difference as far from 0, were there none between these trained encoders
    (the means of their seeds) for the users at large.
    """
    mean = average(samples)
    gain = UserBootstrap.gain(mean.value, mean.drawn, np.zeros_like(mean.drawn))
    return level(samples) | {"p_value": gain.p_value}


def share(part: Sequence[Sample], whole: Sequence[Sample]) -> dict[str, float]:
    """The ratio of two means over seeds, with its interval. Means nothing where `whole` may be 0: then it is wide."""
    above, below = average(part), average(whole)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn, value = above.drawn / below.drawn, float(np.divide(above.value, below.value))
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return {"value": value, "ci_low": float(low), "ci_high": float(high)}


def rank_correlation(
    left: Sequence[float], right: Sequence[float], methods: Sequence[str], *, replicates: int, seed: int
) -> dict[str, Any]:
    """Spearman's rank correlation of two figures over runs, with an interval from a bootstrap over methods.

    left, right: (runs,) a figure each; methods: (runs,) which method a run is of. Whole methods are resampled with all
    their seeds, because seeds of one method repeat each other; p_value is scipy's, which takes runs as independent and
    is therefore too small.  NaN where a figure is the same in all runs, no interval with fewer than four methods.
    """
    pairs = np.array([left, right], dtype=np.float64)
    runs = [np.flatnonzero(np.asarray(methods) == name) for name in dict.fromkeys(methods)]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(replicates if len(runs) >= FEWEST_METHODS else 0):
        chosen = np.concatenate([runs[n] for n in rng.integers(0, len(runs), len(runs))])
        drawn.append(_spearman(pairs[:, chosen])[0])
    known = [value for value in drawn if np.isfinite(value)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (np.nan, np.nan)
    value, p_value = _spearman(pairs)
    return {
        "value": value,
        "ci_low": float(low),
        "ci_high": float(high),
        "p_value": p_value,
        "runs": pairs.shape[1],
        "methods": len(runs),
    }


def _spearman(pairs: Floats) -> tuple[float, float]:
    if pairs.shape[1] < 3 or (pairs == pairs[:, :1]).all(axis=1).any():
        return float("nan"), float("nan")
    found = spearmanr(pairs[0], pairs[1])
    return float(found.statistic), float(found.pvalue)


Samples = Mapping[int, Sample]  # seed -> figure


def common(ours: Samples, theirs: Samples) -> list[Sample]:
    """Ours less theirs for every seed that both have, in the seeds' order."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
