"""The codebook against its slow twin, and on points whose clusters are known."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.codebook import Codebook

Floats = npt.NDArray[np.float32]


def blobs(sizes: tuple[int, ...], seed: int = 0, width: int = 16) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Tight groups of unit vectors, and which group each belongs to."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    points = np.eye(width)[labels] + 0.01 * rng.normal(size=(len(labels), width))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


def test_groups_that_lie_apart_are_found_and_numbered_by_size() -> None:
    vectors, labels = blobs((5, 30, 12))
    codebook = Codebook.fit(vectors, clusters=3)
    ids = codebook.assign(vectors)
    assert codebook.occupancy(ids).tolist() == [30, 12, 5]
    assert {(int(a), int(b)) for a, b in zip(labels, ids, strict=True)} == {(1, 0), (2, 1), (0, 2)}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1_000), points=st.integers(1, 40), clusters=st.integers(1, 12))
def test_every_vector_gets_its_nearest_centre(seed: int, points: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(points, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    codebook = Codebook.fit(vectors, clusters=clusters, iterations=5)
    assert len(codebook) == min(points, clusters)
    for vector, found in zip(vectors, codebook.assign(vectors, rows_per_block=7), strict=True):
        distances = [
            sum((float(a) - float(b)) ** 2 for a, b in zip(vector, c, strict=True)) for c in codebook.centroids
        ]
        assert distances[found] == pytest.approx(min(distances), abs=1e-6)


def test_the_same_seed_gives_the_same_bytes() -> None:
    vectors = np.random.default_rng(5).normal(size=(500, 32)).astype(np.float32)
    first, second = (Codebook.fit(vectors, clusters=20, seed=3).centroids.tobytes() for _ in range(2))
    other = Codebook.fit(vectors, clusters=20, seed=4).centroids.tobytes()
    assert first == second
    assert first != other


def test_fewer_distinct_vectors_than_clusters_get_a_centre_each() -> None:
    vectors = np.array([[0, 1], [1, 0], [0, 1]], np.float32)
    codebook = Codebook.fit(vectors, clusters=8)
    assert codebook.centroids.tolist() == [[0, 1], [1, 0]]
    assert codebook.assign(vectors).tolist() == [0, 1, 0]
    assert codebook.inertia(vectors) == 0.0


def test_inertia_is_the_mean_squared_distance_to_the_nearest_centre() -> None:
    codebook = Codebook(np.array([[0, 0], [1, 0]], np.float32))
    assert codebook.inertia(np.array([[0, 1], [1, 2]], np.float32)) == pytest.approx((1 + 4) / 2)


def test_of_two_centres_as_near_the_smaller_id_is_taken() -> None:
    assert Codebook(np.array([[1, 0], [1, 0]], np.float32)).assign(np.array([[1, 0]], np.float32)).tolist() == [0]


def test_no_vectors_have_no_ids() -> None:
    ids = Codebook(np.eye(2, dtype=np.float32)).assign(np.empty((0, 2), np.float32))
    assert (ids.shape, ids.dtype) == ((0,), np.int32)


@pytest.mark.parametrize(("points", "clusters"), [(0, 4), (4, 0)])
def test_what_cannot_be_fitted_is_refused(points: int, clusters: int) -> None:
    with pytest.raises(ValueError, match=f"{clusters} clusters cannot be fitted on {points} vectors"):
        Codebook.fit(np.ones((points, 2), np.float32), clusters=clusters)
