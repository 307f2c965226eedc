"""Gini, entropy and collisions against plain loops, and at their ends."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.code_statistics import collisions, entropy, gini

sizes = st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any)


@given(sizes)
def test_gini_is_half_the_mean_difference_over_the_mean(counts: list[int]) -> None:
    differences = sum(abs(a - b) for a in counts for b in counts) / len(counts) ** 2
    assert gini(np.array(counts, np.int64)) == pytest.approx(differences / 2 / (sum(counts) / len(counts)))


@given(sizes)
def test_entropy_is_the_mean_surprise_of_a_vectors_cluster(counts: list[int]) -> None:
    surprise = 0.0
    for count in counts:
        for _ in range(count):
            surprise += -math.log2(count / sum(counts)) / sum(counts)
    assert entropy(np.array(counts, np.int64)) == pytest.approx(surprise)


def test_clusters_of_one_size_are_as_even_as_can_be_and_one_that_holds_all_as_uneven() -> None:
    even, one = np.full(8, 5), np.array([0, 40, 0, 0])
    assert (gini(even), entropy(even)) == (0.0, 3.0)
    assert (gini(one), entropy(one)) == (0.75, 0.0)
    assert math.copysign(1, entropy(one)) == 1


@given(st.lists(st.integers(0, 9), max_size=20))
def test_a_vector_collides_where_another_one_has_its_cluster_id(ids: list[int]) -> None:
    shared = sum(ids.count(one) > 1 for one in ids)
    assert collisions(np.array(ids, np.int32)) == (shared / len(ids) if ids else 0.0)
