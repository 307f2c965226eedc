"""Encoders side by side: means over seeds within each resample, paired differences, shares and rank correlations."""

import numpy as np
import pytest
from scipy.stats import rankdata

from model import metrics
from model.ctr.evaluation import encoders
from model.ctr.evaluation.encoders import (
    Sample,
    auc_sample,
    average,
    common,
    difference_ci,
    mean_ci,
    mean_sample,
    rank_correlation,
    share,
)
from model.ctr.evaluation.evaluate import TestRows
from model.metrics import UserBootstrap


def sample(value, *replicates):
    return Sample(value, np.array(replicates, dtype=float))


def _weights(bootstrap):
    """(replicates, users)."""
    return np.concatenate([block for _, block in bootstrap.weights()])


def rows_of(users=40, rows=800, seed=0):
    rng = np.random.default_rng(seed)
    clicked = rng.integers(0, 2, rows)
    return TestRows(clicked, rng.random(rows) < 0.3, rng.integers(0, users, rows), np.arange(rows))


def test_a_mean_over_seeds_is_taken_in_every_resample():
    found = mean_ci([sample(0.1, 0.0, 0.2), sample(0.3, 0.4, 0.0)])
    assert found["value"] == pytest.approx(0.2)
    assert (found["ci_low"], found["ci_high"]) == (pytest.approx(0.1025), pytest.approx(0.1975))  # of 0.1 and 0.2
    assert found["by_seed"] == [0.1, 0.3]
    assert found["spread"] == pytest.approx(np.sqrt(0.02))
    assert np.isnan(mean_ci([sample(0.1, 0.1)])["spread"])


def test_a_difference_and_its_p_value_counted_by_hand():
    found = difference_ci([sample(0.2, *[0.1] * 97, -0.5, 0.3, 0.3), sample(0.4, *[0.1] * 97, 0.1, 0.3, 0.3)])
    assert found["value"] == pytest.approx(0.3)
    assert found["p_value"] == pytest.approx(2 * (1 + 1) / 101)  # one resample in a hundred, -0.2, is not above 0


def test_the_difference_of_two_encoders_is_the_hierarchical_bootstrap_of_a_plain_loop():
    rows, rng = rows_of(), np.random.default_rng(1)
    bootstrap = UserBootstrap(rows.users, replicates=15, seed=0)
    keep = ~rows.cold
    ours, theirs = ([rng.random(800) + strength * rows.clicked for _ in range(3)] for strength in (0.3, 0.2))
    samples = [
        {seed: auc_sample(rows, scores, keep, bootstrap) for seed, scores in enumerate(encoder)}
        for encoder in (ours, theirs)
    ]
    fast = average(common(*samples))

    def mean_auc(encoder, rows_of_resample):
        return np.mean([metrics.auc(rows.clicked[rows_of_resample], scores[rows_of_resample]) for scores in encoder])

    kept = np.flatnonzero(keep)
    assert fast.value == pytest.approx(mean_auc(ours, kept) - mean_auc(theirs, kept))
    codes = np.unique(rows.users, return_inverse=True)[1]
    for weights, value in zip(_weights(bootstrap), fast.replicates, strict=True):
        resample = np.repeat(kept, weights[codes[kept]].astype(int))  # one resample, for both and for all seeds
        assert value == pytest.approx(mean_auc(ours, resample) - mean_auc(theirs, resample))


def test_only_seeds_that_both_have_are_compared():
    ours = {0: sample(0.6, 0.6), 1: sample(0.7, 0.7), 5: sample(0.9, 0.9)}
    theirs = {1: sample(0.5, 0.5), 2: sample(0.1, 0.1), 0: sample(0.5, 0.5)}
    assert [found.value for found in common(ours, theirs)] == pytest.approx([0.1, 0.2])


def test_pairing_makes_a_small_difference_sure():
    rows, rng = rows_of(rows=4000), np.random.default_rng(1)
    noise = rng.random(4000)
    bootstrap, others = (UserBootstrap(rows.users, replicates=400, seed=seed) for seed in (0, 1))
    everyone = np.ones(4000, dtype=bool)
    better = auc_sample(rows, noise + 0.02 * rows.clicked, everyone, bootstrap)
    worse, unpaired = (auc_sample(rows, noise, everyone, one) for one in (bootstrap, others))
    assert difference_ci([better - worse])["p_value"] < 0.01
    assert difference_ci([better - unpaired])["p_value"] > 0.05


def test_a_mean_over_clicks_is_resampled_with_its_users():
    users, values = np.array([0, 0, 1, 2]), np.array([1.0, 0.0, 1.0, 9.0])
    bootstrap = UserBootstrap(users, replicates=30, seed=0)
    found = mean_sample(values, users < 2, bootstrap)
    assert found.value == pytest.approx(2 / 3)
    for weights, value in zip(_weights(bootstrap), found.replicates, strict=True):
        rows = 2 * weights[0] + weights[1]
        assert value == pytest.approx((weights[0] + weights[1]) / rows if rows else np.nan, nan_ok=True)


def test_a_share_is_a_ratio_of_means_over_seeds():
    found = share([sample(0.1, 0.1, 0.2), sample(0.3, 0.3, 0.2)], [sample(0.4, 0.2, 0.8)])
    assert found["value"] == pytest.approx(0.5)
    assert (found["ci_low"], found["ci_high"]) == (pytest.approx(0.26875), pytest.approx(0.98125))  # of 1 and 0.25
    assert np.isnan(share([sample(np.nan, np.nan)], [sample(0.4, 0.4)])["ci_low"])


def test_a_rank_correlation_is_pearsons_of_the_ranks():
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 9, 18), rng.integers(0, 9, 18)
    methods = [f"m{n // 3}" for n in range(18)]
    found = rank_correlation(left, right, methods, replicates=200, seed=0)
    assert found["value"] == pytest.approx(np.corrcoef(rankdata(left), rankdata(right))[0, 1])
    assert found["ci_low"] < found["value"] < found["ci_high"]
    assert (found["runs"], found["methods"]) == (18, 6)


def test_what_rises_together_is_one_and_what_never_differs_is_nothing():
    methods = list("abcdefg")
    up = rank_correlation(range(7), np.exp(range(7)), methods, replicates=50, seed=0)
    assert (up["value"], up["ci_low"], up["ci_high"]) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert rank_correlation(range(7), range(7, 0, -1), methods, replicates=5, seed=0)["value"] == pytest.approx(-1)
    assert np.isnan(rank_correlation(range(7), [0.5] * 7, methods, replicates=5, seed=0)["value"])


def test_seeds_of_one_method_are_resampled_together_and_three_methods_have_no_interval():
    few = rank_correlation(range(9), range(9), ["a", "b", "c"] * 3, replicates=50, seed=0)
    assert few["value"] == pytest.approx(1)
    assert np.isnan(few["ci_low"])
    left, right = np.repeat([0, 1, 2, 3], 3), np.repeat([0, 1, 2, -3], 3)  # twelve runs, and only four methods
    whole = rank_correlation(left, right, list("aaabbbcccddd"), replicates=400, seed=0)
    single = rank_correlation(left, right, [str(n) for n in range(12)], replicates=400, seed=0)
    assert whole["ci_high"] - whole["ci_low"] > single["ci_high"] - single["ci_low"]


def test_what_a_figure_has_over_chance_is_the_same_in_every_resample():
    found = sample(0.6, 0.5, 0.7).above(0.5)
    assert found.value == pytest.approx(0.1)
    assert found.replicates == pytest.approx([0.0, 0.2])


def test_fewer_than_three_runs_are_not_ranked():
    assert encoders.rank_correlation([1, 2], [1, 2], ["a", "b"], replicates=5, seed=0)["runs"] == 2
    assert np.isnan(rank_correlation([1, 2], [1, 2], ["a", "b"], replicates=5, seed=0)["value"])
