"""The probe against plain loops, counted numbers, an encoder that knows everything and one that knows nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.courier.inference import probe
from model.courier.inference.probe import PADDING, Clicks, Pool
from model.metrics import UserBootstrap

WIDTH = 16


def clicks_of(target, history, page=None, user=None, cold=None):
    """Clicks from lists; users are told apart by default, and every image is warm."""
    count = len(target)
    given = page if page is not None else np.full((count, 1), PADDING)
    return Clicks(
        np.array(target),
        np.array(history).reshape(count, -1),
        np.array(given).reshape(count, -1),
        np.arange(count) if user is None else np.array(user),
        np.zeros(count, dtype=bool) if cold is None else np.array(cold),
    )


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def shop(images=400, users=250, clicks_a_user=4, styles=40, seed=0):
    """Each user likes one style and clicks nothing else: the style of every image, and the clicks."""
    rng = np.random.default_rng(seed)
    style = np.arange(images) % styles
    target, history, user = [], [], []
    for who in range(users):
        liked = rng.permutation(np.flatnonzero(style == rng.integers(styles)))
        for n in range(clicks_a_user):
            target.append(liked[n])
            history.append([*liked[n + 1 : n + 4], *[PADDING] * 2][:5])
            user.append(who)
    return style, clicks_of(target, history, user=user)


def figures(vectors, clicks, pools, seed=0):
    draws = UserBootstrap(clicks.user, replicates=400, seed=seed)
    return probe.summarise(probe.measure(vectors, clicks, pools, seed=seed), clicks, draws)


# --- what must come out ----------------------------------------------------------------------------------------------


def test_vectors_that_are_the_truth_find_every_click():
    style, clicks = shop()
    truth = np.eye(40, dtype=np.float32)[style]
    others = probe.of_the_same(np.ones(len(style), dtype=np.int64), clicks.target, np.zeros(len(style), dtype=np.int64))
    # a negative of the same style is as good a guess as the target itself: only other styles are asked about
    negatives = probe.draw_negatives(others, np.full((len(clicks), 1), PADDING), np.random.default_rng(0))
    negatives = np.where(style[negatives] == style[clicks.target][:, None], PADDING, negatives)
    places = probe.find_places(truth, clicks, negatives)
    assert (places.auc() == 1).all()
    assert (places.recall() == 1).all()
    assert (places.reciprocal_rank() == 1).all()


def test_random_vectors_find_what_chance_finds():
    style, clicks = shop(images=8000, users=400)  # so many that few clicks share a picture: users are independent
    pools = {"popular": probe.everyone(np.ones(len(style), dtype=np.int64), clicks.target)}
    found = figures(unit(np.random.default_rng(1).normal(size=(len(style), WIDTH))), clicks, pools)["popular"]["all"]
    chance = {"auc": 0.5, "recall_at_10": 10 / 51, "mrr": sum(1 / rank for rank in range(1, 52)) / 51}
    for name, value in chance.items():
        assert found[name]["ci_low"] < value < found[name]["ci_high"], name
    assert found["auc"]["ci_high"] - found["auc"]["ci_low"] < 0.1


def test_an_encoder_that_collapsed_stands_at_chance_too():
    style, clicks = shop(users=20)
    pools = {"popular": probe.everyone(np.ones(len(style), dtype=np.int64), clicks.target)}
    found = figures(np.ones((len(style), 1), dtype=np.float32), clicks, pools)["popular"]["all"]
    assert found["auc"]["value"] == 0.5
    assert found["recall_at_10"]["value"] == pytest.approx(10 / 51)


def test_warm_and_cold_clicks_are_told_apart():
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
    clicks = clicks_of([0, 2], [[1], [1]], page=[[2], [0]], cold=[False, True])
    found = figures(vectors, clicks, {})["page"]
    assert [found[part]["auc"]["value"] for part in ("warm", "cold", "all")] == [1.0, 0.0, 0.5]
    assert [found[part]["clicks"] for part in ("warm", "cold", "all")] == [1, 1, 2]


def test_a_page_asks_neither_about_the_target_nor_about_what_was_clicked_before():
    vectors = np.eye(4, dtype=np.float32)
    clicks = clicks_of([0], [[1, PADDING]], page=[[1, 0, 2]])
    found = probe.measure(vectors, clicks, {}, seed=0)["page"]["auc"]
    assert found.tolist() == [0.5]  # against image 2 alone, a tie


def test_nothing_to_ask_is_nothing_and_no_crash():
    clicks = clicks_of([0], [[1]], cold=[True])
    none = Pool(np.zeros(0, np.int64), np.zeros(0), np.zeros(1, np.int64), np.zeros(1, np.int64))
    found = figures(np.eye(2, dtype=np.float32), clicks, {"none": none})
    assert found["none"]["all"]["clicks"] == 0
    assert np.isnan(found["none"]["all"]["auc"]["value"])
    assert np.isnan(found["page"]["warm"]["auc"]["ci_low"])


# --- ranks against slow loops ----------------------------------------------------------------------------------------


def slowly(profile, target, negatives):
    """AUC, recall@10 and MRR over every order of the ties, one rank after the other."""
    score = profile @ target
    others = [profile @ negative for negative in negatives]
    above, ties = sum(other > score for other in others), sum(other == score for other in others)
    ranks = range(above + 1, above + ties + 2)
    pairs = [1.0 if score > other else 0.5 if score == other else 0.0 for other in others]
    return np.mean(pairs), np.mean([rank <= 10 for rank in ranks]), np.mean([1 / rank for rank in ranks])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_places_are_those_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    images, count = 30, 6
    vectors = rng.integers(-1, 2, (images, 3)).astype(np.float32)  # many ties, and products without rounding
    known = rng.choice([1, 2, 4], count)  # a mean over so many is exact: what ties here, ties there
    history = np.where(np.arange(5) < known[:, None], rng.integers(0, images, (count, 5)), PADDING)
    negatives = np.where(rng.random((count, 15)) < 0.3, PADDING, rng.integers(0, images, (count, 15)))
    negatives[:, 0] = rng.integers(0, images, count)
    clicks = clicks_of(rng.integers(0, images, count), history)
    places = probe.find_places(vectors, clicks, negatives)
    fast = np.stack([places.auc(), places.recall(), places.reciprocal_rank()], axis=1)
    for n in range(count):
        clicked_vectors = vectors[history[n][history[n] != PADDING]]
        asked = vectors[negatives[n][negatives[n] != PADDING]]
        slow = slowly(clicked_vectors.sum(axis=0) * 1.0, vectors[clicks.target[n]], asked)
        np.testing.assert_allclose(fast[n], slow, atol=1e-12)


def test_the_figures_of_one_click_counted_by_hand():
    places = probe.Places(above=np.array([0, 9, 10, 1]), ties=np.array([0, 1, 0, 2]), among=np.array([50, 50, 50, 3]))
    assert places.auc().tolist() == [1.0, 1 - 9.5 / 50, 0.8, pytest.approx(1 / 3)]
    assert places.recall().tolist() == [1.0, 0.5, 0.0, 1.0]
    np.testing.assert_allclose(
        places.reciprocal_rank(), [1, (1 / 10 + 1 / 11) / 2, 1 / 11, (1 / 2 + 1 / 3 + 1 / 4) / 3]
    )


def test_chunks_change_nothing(monkeypatch):
    style, clicks = shop(users=30)
    vectors = unit(np.random.default_rng(2).normal(size=(len(style), WIDTH)))
    negatives = np.random.default_rng(3).integers(0, len(style), (len(clicks), 50))
    whole = probe.find_places(vectors, clicks, negatives)
    monkeypatch.setattr(probe, "CHUNK", 7)
    parts = probe.find_places(vectors, clicks, negatives)
    np.testing.assert_array_equal(whole.above, parts.above)
    np.testing.assert_array_equal(whole.ties, parts.ties)


# --- negatives -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 80))
def test_negatives_are_distinct_allowed_and_of_the_window(seed, count):
    rng = np.random.default_rng(seed)
    images = 60
    popularity = rng.integers(0, 4, images)
    popularity[:2] = 1
    group = rng.integers(-1, 3, images)
    target, history = rng.integers(0, images, 9), rng.integers(-1, images, (9, 5))
    refused = np.concatenate([target[:, None], history], axis=1)
    pool = probe.of_the_same(popularity, target, group)
    for n, drawn in enumerate(probe.draw_negatives(pool, refused, rng, count)):
        found = drawn[drawn != PADDING]
        allowed = {i for i in range(images) if popularity[i] > 0 and group[i] == group[target[n]] >= 0}
        assert len(set(found)) == len(found)
        assert set(found) <= allowed - set(refused[n])
        assert len(found) == min(count, len(allowed - set(refused[n])))
        assert (drawn[len(found) :] == PADDING).all()


def drawn_slowly(weights, refused, count, rng):
    """One urn after the other: draw by weight, take out, until there are enough."""
    left = {i: w for i, w in enumerate(weights) if w > 0 and i not in refused}
    out = []
    while left and len(out) < count:
        at = rng.random() * sum(left.values())
        drawn = next(i for i, below in zip(left, np.cumsum(list(left.values())), strict=True) if at < below)
        out.append(drawn)
        del left[drawn]
    return out


@pytest.mark.parametrize("count", [3, 6])  # few of nine, and nearly all: drawn ahead, and counted out
def test_popularity_sampling_follows_the_law_of_the_urn(count):
    weights = np.array([40, 20, 10, 10, 5, 5, 5, 3, 2, 0, 7])
    refused = np.array([10])
    times = 6000
    target = np.full(times, 10)
    fast = probe.draw_negatives(probe.everyone(weights, target), target[:, None], np.random.default_rng(0), count)
    rng = np.random.default_rng(1)
    slow = np.array([drawn_slowly(weights, refused, count, rng) for _ in range(times)])
    for places in (slice(0, 1), slice(0, count)):  # the first drawn, and all that were
        shares = [np.bincount(drawn[:, places].ravel(), minlength=11) / times for drawn in (fast, slow)]
        np.testing.assert_allclose(shares[0], shares[1], atol=4 * np.sqrt(0.5 / times))
    np.testing.assert_allclose(np.bincount(fast[:, 0], minlength=11)[:9] / times, weights[:9] / 100, atol=0.03)


def test_negatives_depend_on_the_seed_and_not_on_the_vectors():
    style, clicks = shop(users=10)
    pools = {"popular": probe.everyone(np.ones(len(style), dtype=np.int64), clicks.target)}
    vectors = unit(np.random.default_rng(1).normal(size=(len(style), WIDTH)))
    first, again = (probe.measure(vectors, clicks, pools, seed=3)["popular"]["auc"] for _ in range(2))
    mirrored = probe.measure(-vectors, clicks, pools, seed=3)["popular"]["auc"]  # the same cosines, both mirrored
    other = probe.measure(vectors, clicks, pools, seed=4)["popular"]["auc"]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, mirrored)
    assert (first != other).any()


# --- alike in an attribute -------------------------------------------------------------------------------------------


def test_alike_are_the_nearest_in_rank_on_both_sides():
    images = 1000
    year = np.random.default_rng(0).permutation(images).astype(float)
    target = np.array([int(np.flatnonzero(year == y)[0]) for y in (0, 500, 999)])
    pool = probe.alike(np.ones(images, dtype=np.int64), target, year, share=0.1)
    found = [np.sort(year[pool.candidates[low:high]]) for low, high in zip(pool.low, pool.high, strict=True)]
    assert [(values[0], values[-1], len(values)) for values in found] == [
        (0, 99, 100),
        (450, 549, 100),
        (900, 999, 100),
    ]


def test_who_has_no_attribute_is_neither_asked_nor_drawn():
    year = np.array([2000.0, np.nan, 2001.0, 2002.0])
    pool = probe.alike(np.ones(4, dtype=np.int64), np.array([1, 0]), year)
    assert 1 not in pool.candidates
    assert pool.low[0] == pool.high[0]
    assert pool.high[1] - pool.low[1] == 3


def test_an_effect_that_is_all_of_the_attribute_is_gone_when_it_is_matched():
    rng = np.random.default_rng(0)
    images, users = 1500, 300
    year = rng.integers(0, 25, images)
    target, history = [], []
    for _ in range(users):  # users like a year, and within it anything
        liked = rng.permutation(np.flatnonzero(year == rng.integers(25)))[:4]
        target.append(liked[0])
        history.append(liked[1:])
    clicks = clicks_of(target, history)
    popularity = np.ones(images, dtype=np.int64)
    pools = {
        "popular": probe.everyone(popularity, clicks.target),
        "matched": probe.of_the_same(popularity, clicks.target, year),
    }
    blurred = np.eye(25)[year] + 0.3 * rng.normal(size=(images, 25))
    measured = probe.measure(unit(blurred), clicks, pools, seed=0)
    draws = UserBootstrap(clicks.user, replicates=400, seed=0)
    left = probe.effect_left(measured["popular"]["auc"], measured["matched"]["auc"], clicks, draws)["all"]
    assert left["auc"] > 0.9
    assert left["ci_low"] < 0 < left["ci_high"] < 0.1
    same = probe.effect_left(measured["popular"]["auc"], measured["popular"]["auc"], clicks, draws)["all"]
    assert (same["value"], same["ci_low"], same["ci_high"]) == (1.0, 1.0, 1.0)


def test_the_share_left_is_a_ratio_of_effects_counted_by_hand():
    clicks = clicks_of([0, 0, 0], [[1], [1], [1]])
    draws = UserBootstrap(clicks.user, replicates=50, seed=0)
    left = probe.effect_left(np.array([0.9, 0.7, 0.1]), np.array([0.7, 0.6, np.nan]), clicks, draws)["all"]
    assert left["value"] == pytest.approx((0.65 - 0.5) / (0.8 - 0.5))
    assert (left["auc"], left["auc_matched"]) == (pytest.approx(0.8), pytest.approx(0.65))


def test_how_far_apart_negatives_are_in_the_attribute_is_a_mean_over_those_that_have_it():
    value = np.array([10.0, 12.0, np.nan, 4.0])
    assert probe._distance(value, np.array([0, 2, 3]), np.array([[1, 2, 3], [0, 1, 3], [-1, -1, 0]])).tolist() == [
        4.0,
        pytest.approx(np.nan, nan_ok=True),
        6.0,
    ]
    clicks = clicks_of([0, 3], [[1], [1]])
    pools = {"matched": probe.alike(np.ones(4, dtype=np.int64), clicks.target, value)}
    measured = probe.measure(np.eye(4, dtype=np.float32), clicks, pools, seed=0, value=value)
    assert measured["matched"]["distance"].tolist() == [6.0, 6.0]  # image 1 is in the history, and so never drawn
    found = probe.summarise(measured, clicks, UserBootstrap(clicks.user, replicates=20, seed=0))
    assert found["matched"]["all"]["distance"]["value"] == 6.0
