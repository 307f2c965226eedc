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
    """A figure as observed, and in each of B resamples of users: replicates (B,)."""

    value: float
    replicates: Floats

    def __sub__(self, other: "Sample") -> "Sample":
        return Sample(self.value - other.value, self.replicates - other.replicates)

    def above(self, floor: float) -> "Sample":
        """What it has over a number that is the same in every resample, as chance is."""
        return Sample(self.value - floor, self.replicates - floor)


def auc_sample(rows: TestRows, scores: NDArray[Any], keep: Bools, bootstrap: UserBootstrap) -> Sample:
    """The AUC of the kept rows. scores: (n,); keep: (n,); bootstrap: over rows.users."""
    return Sample(metrics.auc(rows.clicked[keep], scores[keep]), bootstrap.aucs(rows.clicked, scores, keep))


def mean_sample(values: Floats, keep: Bools, bootstrap: UserBootstrap) -> Sample:
    """The mean of the kept values. values: (n,), keep: (n,); bootstrap: over the users of these rows."""
    return Sample(float(values[keep].mean()) if keep.any() else float("nan"), bootstrap.means(values, keep))


def average(samples: Sequence[Sample]) -> Sample:
    """The mean over seeds, as observed and within each resample. At least one sample."""
    return Sample(
        float(np.mean([sample.value for sample in samples])), np.mean([sample.replicates for sample in samples], axis=0)
    )


def mean_ci(samples: Sequence[Sample]) -> dict[str, Any]:
    """A figure, one sample a seed: the mean over seeds with its 95 % interval, each seed's own, and their spread.

    value, ci_low, ci_high: of the mean.  by_seed: in the order given.  spread: their standard deviation (n - 1), NaN
    with one seed.
    """
    mean = average(samples)
    known = mean.replicates[np.isfinite(mean.replicates)]
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


def difference_ci(samples: Sequence[Sample]) -> dict[str, Any]:
    """A difference, as `mean_ci` gives it, and its p_value as model.metrics.UserBootstrap.gain has it.

    The p-value is the two-sided chance of a difference as far from 0, were there none between these trained encoders
    (the means of their seeds) for the users at large.
    """
    mean = average(samples)
    gain = UserBootstrap.gain(mean.value, mean.replicates, np.zeros_like(mean.replicates))
    return mean_ci(samples) | {"p_value": gain.p_value}


def share(part: Sequence[Sample], whole: Sequence[Sample]) -> dict[str, float]:
    """The ratio of two means over seeds, with its interval. Means nothing where `whole` may be 0: then it is wide."""
    above, below = average(part), average(whole)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios, value = above.replicates / below.replicates, float(np.divide(above.value, below.value))
    ratios = ratios[np.isfinite(ratios)]
    low, high = np.quantile(ratios, [0.025, 0.975]) if len(ratios) else (np.nan, np.nan)
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
    resampled = []
    for _ in range(replicates if len(runs) >= FEWEST_METHODS else 0):
        chosen = np.concatenate([runs[n] for n in rng.integers(0, len(runs), len(runs))])
        resampled.append(_spearman(pairs[:, chosen])[0])
    known = [value for value in resampled if np.isfinite(value)]
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
