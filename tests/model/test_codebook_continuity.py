"""A codebook that continues another keeps its ids: the matching against all permutations, and the share that stays."""

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.codebook import Codebook, Codebooks
from model.codebook_continuity import churn, continue_codebooks, matched_ids

Floats = npt.NDArray[np.float32]
pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=30)


def codes(rows: list[tuple[int, int]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    new, old = np.array(rows, np.int32).reshape(-1, 2).T
    return new, old


@given(pairs)
def test_no_other_numbering_keeps_more_items_codes(rows: list[tuple[int, int]]) -> None:
    new, old = codes(rows)
    ids = matched_ids(new, old, 4)
    assert sorted(ids.tolist()) == [0, 1, 2, 3]
    kept = [sum(order[a] == b for a, b in rows) for order in permutations(range(4))]
    assert sum(int(ids[a]) == b for a, b in rows) == max(kept)


@given(pairs)
def test_churn_is_the_share_of_items_whose_code_changed(rows: list[tuple[int, int]]) -> None:
    new, old = codes(rows)
    assert churn(old, new) == (sum(a != b for a, b in rows) / len(rows) if rows else 0.0)


def shop(items: int, seed: int, groups: int = 20, noise: float = 0.35) -> Floats:
    """Unit vectors in groups of different sizes, as a catalogue's are; the same groups for every seed."""
    centres = np.random.default_rng(0).normal(size=(groups, 32))
    rng = np.random.default_rng(seed)
    shares = np.random.default_rng(1).dirichlet(np.full(groups, 3.0))
    vectors = centres[rng.choice(groups, items, p=shares)] + noise * rng.normal(size=(items, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(1, 1_000))
def test_a_refit_with_another_seed_or_five_in_a_hundred_new_items_keeps_nine_in_ten_first_codes(seed: int) -> None:
    known = shop(800, seed)
    old = Codebooks.fit(known, codebooks=2, clusters=20, iterations=10)
    more = np.concatenate([known, shop(40, seed + 1)])
    for vectors in (known, more):
        new = Codebooks.fit(vectors, codebooks=2, clusters=20, iterations=10, seed=seed, begin=old)
        new = continue_codebooks(new, new.codes(known), list(old.codes(known).T))
        kept = 1 - churn(old.codes(known)[:, 0], new.codes(known)[:, 0])
        assert kept >= 0.9


def test_the_same_groups_in_another_space_keep_their_codes() -> None:
    known = shop(800, 3, groups=6, noise=0.1)
    turned = known @ np.linalg.qr(np.random.default_rng(9).normal(size=(32, 32)))[0].astype(np.float32)
    old = Codebooks.fit(known, codebooks=1, clusters=6, starts=5)
    [new] = Codebooks.fit(turned, codebooks=1, clusters=6, starts=5, seed=7).levels
    new = Codebooks((Codebook(new.centroids[::-1].copy()),))
    before = churn(old.codes(known)[:, 0], new.codes(turned)[:, 0])
    new = continue_codebooks(new, new.codes(turned), list(old.codes(known).T))
    assert churn(old.codes(known)[:, 0], new.codes(turned)[:, 0]) < 0.01 < 0.9 < before


def test_renumbering_moves_no_centre_and_changes_no_residual() -> None:
    known = shop(300, 5)
    fitted = Codebooks.fit(known, codebooks=2, clusters=8)
    old = np.random.default_rng(0).integers(0, 8, (300, 2)).astype(np.int32)
    new = continue_codebooks(fitted, fitted.codes(known), list(old.T))
    assert [sorted(map(bytes, level.centroids)) for level in new.levels] == [
        sorted(map(bytes, level.centroids)) for level in fitted.levels
    ]
    np.testing.assert_array_equal(new.residuals(known), fitted.residuals(known))


@pytest.mark.parametrize("clusters", [3, 8, 12])
def test_a_codebook_of_another_size_keeps_what_ids_it_can(clusters: int) -> None:
    known = shop(500, 2, groups=8)
    old = Codebooks.fit(known, codebooks=1, clusters=8)
    new = Codebooks.fit(known, codebooks=2, clusters=clusters, begin=old)
    new = continue_codebooks(new, new.codes(known), list(old.codes(known).T))
    assert [len(level) for level in new.levels] == [clusters, clusters]
    kept = 1 - churn(old.codes(known)[:, 0], new.codes(known)[:, 0])
    assert kept > (0.9 if clusters >= 8 else 0.2)


def test_items_of_a_codebook_never_met_before_leave_it_as_it_was_fitted() -> None:
    fitted = Codebooks((Codebook(np.eye(3, dtype=np.float32)),))
    nobody = np.empty((0, 1), np.int32)
    assert continue_codebooks(fitted, nobody, [nobody[:, 0]]).levels[0].centroids.shape == (3, 3)
