"""The metrics against scikit-learn, slow loops and numbers counted by hand."""

import math
import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from model import metrics

ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=40)


def _columns(rows):
    labels, scores, groups = (np.array(column) for column in zip(*rows, strict=True))
    return labels, scores / 5.0 + 0.1, groups


def _auc_by_pairs(labels, scores):
    """Counts the pairs, one by one."""
    pairs = [(p, n) for (p, yp), (n, yn) in product(zip(scores, labels, strict=True), repeat=2) if yp == 1 and yn == 0]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs) if pairs else math.nan


def _weights(bootstrap):
    """(replicates, users)."""
    return np.concatenate([block for _, block in bootstrap.weights()])


def _same(left, right):
    assert left == pytest.approx(right, abs=1e-9, nan_ok=True)


@given(ROWS)
def test_auc_counts_pairs_and_a_tie_is_half(rows):
    labels, scores, _ = _columns(rows)
    _same(metrics.auc(labels, scores), _auc_by_pairs(labels, scores))


def test_auc_agrees_with_sklearn_on_many_rows():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 5000), rng.normal(size=5000).round(2)
    assert metrics.auc(labels, scores) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)


def test_auc_by_hand():
    assert metrics.auc([1, 0, 1, 0], [0.9, 0.5, 0.5, 0.1]) == 3.5 / 4
    assert math.isnan(metrics.auc([1, 1], [0.2, 0.3]))
    assert math.isnan(metrics.auc([], []))


@given(ROWS)
def test_gauc_is_the_row_weighted_mean_of_the_users_own_aucs(rows):
    labels, scores, users = _columns(rows)
    own = [(_auc_by_pairs(labels[users == u], scores[users == u]), (users == u).sum()) for u in np.unique(users)]
    own = [(value, weight) for value, weight in own if not math.isnan(value)]
    slow = sum(v * w for v, w in own) / sum(w for _, w in own) if own else math.nan
    _same(metrics.gauc(labels, scores, [f"u{u}" for u in users]), slow)


@given(ROWS)
def test_ndcg_agrees_with_sklearn_page_by_page(rows):
    labels, scores, pages = _columns(rows)
    own, alternatives = [], False
    for page in np.unique(pages):
        y, s = labels[pages == page], scores[pages == page]
        if y.sum():
            alternatives |= y.sum() < len(y)
            # sklearn refuses a page of one row, whose only order is the ideal one
            own.append(1.0 if len(y) == 1 else sklearn_metrics.ndcg_score([y], [s]))
    _same(metrics.ndcg(labels, scores, pages), float(np.mean(own)) if alternatives else math.nan)


def test_ndcg_of_pages_without_alternatives_is_not_defined():
    one_item_a_page = metrics.ndcg([1, 0, 1], [0.3, 0.2, 0.1], ["p", "q", "r"])
    all_clicked = metrics.ndcg([1, 1, 0], [0.3, 0.2, 0.1], ["p", "p", "q"])
    assert math.isnan(one_item_a_page)
    assert math.isnan(all_clicked)
    assert metrics.ndcg([1, 1, 0], [0.3, 0.2, 0.1], ["p", "q", "q"]) == 1.0  # q could have been 1 / log2(3)


def test_ndcg_by_hand():
    assert metrics.ndcg([0, 1, 0], [0.3, 0.2, 0.1], ["p"] * 3) == pytest.approx(1 / math.log2(3))


def test_logloss_agrees_with_sklearn():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 300), rng.uniform(size=300)
    assert metrics.logloss(labels, scores) == pytest.approx(sklearn_metrics.log_loss(labels, scores))
    assert metrics.logloss([1], [0.0]) == pytest.approx(-math.log(1e-7))


def test_calibration_bins_hold_every_row_once():
    bins = metrics.calibration([0, 0, 1, 1, 1], [0.1, 0.2, 0.6, 0.7, 0.8], bins=2)
    assert [(round(b.predicted, 6), b.observed, b.rows) for b in bins] == [
        (0.3, pytest.approx(1 / 3), 3),
        (0.75, 1.0, 2),
    ]


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        metrics.auc([0, 1], [0.1, math.nan])


@settings(max_examples=30)
@given(ROWS, st.integers(0, 5))
def test_a_resample_is_the_auc_of_its_users_rows_repeated(rows, seed):
    labels, scores, users = _columns(rows)
    bootstrap = metrics.UserBootstrap(users, replicates=6, seed=seed)
    codes = np.unique(users, return_inverse=True)[1]
    fast = bootstrap.aucs(labels, scores)
    for weights, value in zip(_weights(bootstrap), fast, strict=True):
        rows_drawn = np.repeat(np.arange(len(labels)), weights[codes].astype(int))
        _same(value, _auc_by_pairs(labels[rows_drawn], scores[rows_drawn]))


@given(ROWS)
def test_keep_looks_at_the_kept_rows_only(rows):
    labels, scores, users = _columns(rows)
    keep = scores > 0.3
    bootstrap = metrics.UserBootstrap(users, replicates=4, seed=0)
    junk = np.where(keep, scores, 99.0)
    np.testing.assert_array_equal(bootstrap.aucs(labels, scores, keep), bootstrap.aucs(labels, junk, keep))


def test_a_model_gains_nothing_over_itself():
    rng = np.random.default_rng(2)
    labels, scores, users = rng.integers(0, 2, 400), rng.normal(size=400), rng.integers(0, 40, 400)
    bootstrap = metrics.UserBootstrap(users, replicates=200, seed=0)
    aucs = bootstrap.aucs(labels, scores)
    assert bootstrap.gain(0.0, aucs, aucs) == metrics.Gain(0.0, 0.0, 0.0, 1.0)


def test_a_true_gain_is_seen_and_its_p_value_is_never_zero():
    rng = np.random.default_rng(3)
    labels, users = rng.integers(0, 2, 2000), rng.integers(0, 200, 2000)
    noise, signal = rng.normal(size=2000), rng.normal(size=2000) + labels
    bootstrap = metrics.UserBootstrap(users, replicates=499, seed=0)
    value = metrics.auc(labels, signal) - metrics.auc(labels, noise)
    gain = bootstrap.gain(value, bootstrap.aucs(labels, signal), bootstrap.aucs(labels, noise))
    assert gain.ci_low < value < gain.ci_high
    assert gain.ci_low > 0.15
    assert gain.p_value == 2 * 1 / 500


def test_the_interval_is_wider_when_the_rows_of_a_user_repeat_each_other():
    rng = np.random.default_rng(4)
    labels, scores = rng.integers(0, 2, 300), rng.normal(size=300)
    tenfold = [np.repeat(column, 10) for column in (labels, scores, np.arange(300))]
    by_user = metrics.UserBootstrap(tenfold[2], replicates=300, seed=0).aucs(tenfold[0], tenfold[1])
    by_row = metrics.UserBootstrap(np.arange(3000), replicates=300, seed=0).aucs(tenfold[0], tenfold[1])
    assert by_user.std() > 2 * by_row.std()


def test_the_same_seed_draws_the_same_resamples():
    users = np.arange(20) % 7
    first, second = (_weights(metrics.UserBootstrap(users, replicates=5, seed=9)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@given(ROWS, st.integers(0, 5))
def test_a_resampled_mean_is_that_of_its_users_rows_repeated(rows, seed):
    keep, values, users = _columns(rows)
    bootstrap = metrics.UserBootstrap(users, replicates=5, seed=seed)
    codes = np.unique(users, return_inverse=True)[1]
    for part, fast in ((keep > 0, bootstrap.means(values, keep > 0)), (keep >= 0, bootstrap.means(values))):
        for weights, value in zip(_weights(bootstrap), fast, strict=True):
            drawn = np.repeat(values[part], weights[codes[part]].astype(int))
            _same(value, float(drawn.mean()) if len(drawn) else math.nan)


@given(ROWS, st.integers(0, 5), st.integers(1, 200))
def test_blocks_of_any_size_give_the_figures_of_all_resamples_at_once_to_the_last_bit(rows, seed, block_bytes):
    labels, scores, users = _columns(rows)
    codes, count = np.unique(users, return_inverse=True)[1], len(np.unique(users))
    rng = np.random.default_rng(seed)
    weights = np.array([np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(7)], np.float32)
    blocks = metrics.UserBootstrap(users, replicates=7, seed=seed, block_bytes=block_bytes)
    np.testing.assert_array_equal(_weights(blocks), weights)
    for _ in range(2):  # whether the weights were kept or are made anew
        np.testing.assert_array_equal(blocks.aucs(labels, scores), _aucs_of_all(weights, labels, scores, codes))
        eighths = labels / 8  # their sums are exact in any order
        by_user = np.stack([np.bincount(codes, eighths), np.bincount(codes)], axis=1)
        sums = weights @ by_user
        np.testing.assert_array_equal(blocks.means(eighths), sums[:, 0] / sums[:, 1])


def _aucs_of_all(weights, labels, scores, codes):
    """The AUC of every resample from the whole (replicates, users) matrix of weights."""
    positive, negative = np.flatnonzero(labels > 0), np.flatnonzero(labels <= 0)
    negative = negative[np.argsort(scores[negative], kind="stable")]
    below, upto = (np.searchsorted(scores[negative], scores[positive], side=side) for side in ("left", "right"))
    found = []
    for row in weights.astype(np.float64):
        cumulative = np.concatenate([[0.0], np.cumsum(row[codes[negative]])])
        pairs = row[codes[positive]].sum() * cumulative[-1]
        total = row[codes[positive]] @ (cumulative[below] + cumulative[upto])
        found.append(total / (2 * pairs) if pairs else math.nan)
    return np.array(found)


def test_no_more_weights_are_in_memory_than_may_be():
    rng = np.random.default_rng(0)
    labels, scores, users = rng.integers(0, 2, 5000), rng.normal(size=5000), np.arange(5000)
    bootstrap = metrics.UserBootstrap(users, replicates=500, seed=0, block_bytes=200_000)
    tracemalloc.start()
    bootstrap.aucs(labels, scores)
    bootstrap.means(scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # all weights at once are 10 MB
