"""The codebook against its slow twin, and on points whose clusters are known."""

import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artifact import ArtifactMismatch
from model.cluster_id import packed, unpacked
from model.codebook import Codebook, Codebooks
from model.errors import CourierError

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
    for vector, found in zip(vectors, codebook.assign(vectors, block_bytes=4 * clusters * 7), strict=True):
        distances = [
            sum((float(a) - float(b)) ** 2 for a, b in zip(vector, c, strict=True)) for c in codebook.centroids
        ]
        assert distances[found] == pytest.approx(min(distances), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1_000), points=st.integers(0, 40), block_bytes=st.integers(1, 2_000))
def test_blocks_of_any_size_give_what_all_vectors_at_once_give(seed: int, points: int, block_bytes: int) -> None:
    rng = np.random.default_rng(seed)
    # eighths, so that every sum is exact and no tie depends on the order of additions
    vectors, centres = ((rng.integers(-16, 17, (count, 4)) / 8).astype(np.float32) for count in (points, 6))
    books = Codebooks((Codebook(centres), Codebook(centres[:3] / 2)))
    whole, codes = vectors, []
    for level in books.levels:
        squares = ((whole[:, None] - level.centroids) ** 2).sum(axis=2)
        codes.append(squares.argmin(axis=1))
        whole = whole - level.centroids[codes[-1]]
    np.testing.assert_array_equal(books.codes(vectors, block_bytes=block_bytes), np.array(codes, np.int32).T)
    np.testing.assert_array_equal(books.residuals(vectors, block_bytes=block_bytes), whole)
    if points:
        inertia = books.inertia(vectors, block_bytes=block_bytes)
        assert inertia == pytest.approx(sum(float(x) ** 2 for x in whole.ravel()) / points)


def test_no_block_of_scores_is_larger_than_it_may_be() -> None:
    vectors = np.random.default_rng(0).normal(size=(20_000, 8)).astype(np.float32)
    books = Codebooks((Codebook(vectors[:500]),))
    tracemalloc.start()
    books.codes(vectors, block_bytes=400_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # all scores at once are 40 MB


@given(st.lists(st.lists(st.sampled_from([-1.0, -0.0, 0.0, 1.0]), min_size=2, max_size=2), min_size=1, max_size=12))
def test_few_distinct_vectors_are_all_of_them_in_order(rows: list[list[float]]) -> None:
    vectors = np.array(rows, np.float32)
    distinct = np.unique(vectors, axis=0)
    found = Codebook.fit(vectors, clusters=len(distinct)).centroids
    np.testing.assert_array_equal(found[np.lexsort(found.T[::-1])], distinct)


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
    with pytest.raises(CourierError, match=f"{clusters} clusters cannot be fitted on {points} vectors"):
        Codebook.fit(np.ones((points, 2), np.float32), clusters=clusters)


def parts(points: int = 600, seed: int = 0) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Vectors that are the sum of three choices made apart, louder to quieter, and the choices: (N, 8), (N, 3)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, [4, 3, 2], (points, 3))
    vectors = 3 * np.eye(9)[labels[:, 0]] + 2 * np.eye(9)[4 + labels[:, 1]] + 1.2 * np.eye(9)[7 + labels[:, 2]]
    return (vectors + 0.05 * rng.normal(size=vectors.shape)).astype(np.float32), labels


def test_what_varies_by_itself_gets_a_codebook_of_its_own() -> None:
    vectors, labels = parts()
    first, second, *_ = Codebooks.fit(vectors, codebooks=2, clusters=4, starts=5).codes(vectors).T
    assert len(set(zip(labels[:, 0], first, strict=True))) == 4  # a palette, a code
    assert {len(set(labels[second == code, 1])) for code in range(4)} == {1}


def test_each_codebook_is_fitted_and_read_on_what_the_ones_before_leave() -> None:
    vectors, _ = parts()
    books = Codebooks.fit(vectors, codebooks=3, clusters=4, seed=2)
    for vector, codes, cluster_id in zip(
        vectors[:50], books.codes(vectors[:50]), packed(books.codes(vectors[:50])), strict=True
    ):
        left, number = vector.copy(), 0
        for place, level in enumerate(books.levels):
            nearest = min(range(4), key=lambda code: float(((left - level.centroids[code]) ** 2).sum()))
            assert codes[place] == nearest
            left, number = left - level.centroids[nearest], number + nearest * 1024**place
        assert cluster_id == number
    left = vectors - books.levels[0].centroids[books.codes(vectors)[:, 0]]
    assert books.levels[1].centroids.tobytes() == Codebook.fit(left, clusters=4, seed=2).centroids.tobytes()


def test_one_codebook_gives_the_ids_of_plain_k_means_and_more_leave_less() -> None:
    vectors, _ = parts()
    plain = Codebook.fit(vectors, clusters=4, seed=1)
    one, two = (Codebooks.fit(vectors, codebooks=count, clusters=4, seed=1) for count in (1, 2))
    np.testing.assert_array_equal(packed(one.codes(vectors)), plain.assign(vectors))
    assert one.inertia(vectors) == pytest.approx(plain.inertia(vectors))
    assert two.inertia(vectors) < 0.7 * one.inertia(vectors)


def test_later_codebooks_may_be_smaller_than_the_first() -> None:
    vectors, _ = parts()
    books = Codebooks.fit(vectors, codebooks=3, clusters=4, later_clusters=2, starts=2)
    assert [len(level) for level in books.levels] == [4, 2, 2]
    first = Codebooks.fit(vectors, codebooks=1, clusters=4, later_clusters=2, starts=2)
    assert first.levels[0].centroids.tobytes() == books.levels[0].centroids.tobytes()
    with pytest.raises(CourierError, match="2 codebooks of 1025 clusters do not fit"):
        Codebooks.fit(vectors, codebooks=2, clusters=4, later_clusters=1025)


def test_of_several_starts_the_tightest_is_kept() -> None:
    vectors, _ = parts(seed=3)
    tried = [Codebook.fit(vectors, clusters=6, seed=12 + start).inertia(vectors) for start in range(4)]
    assert Codebooks.fit(vectors, codebooks=1, clusters=6, starts=4, seed=3).inertia(vectors) == min(tried)


@given(st.lists(st.lists(st.integers(0, 1023), min_size=3, max_size=3), max_size=20))
def test_codes_survive_their_packing(rows: list[list[int]]) -> None:
    codes = np.array(rows, np.int32).reshape(-1, 3)
    ids = packed(codes)
    assert ids.dtype == np.int32
    assert ids.tolist() == [a + 1024 * b + 1024**2 * c for a, b, c in rows]
    for place in range(3):
        np.testing.assert_array_equal(unpacked(ids, place), codes[:, place])


def test_an_unknown_cluster_is_unknown_in_every_codebook() -> None:
    assert [unpacked(np.array([-1], np.int32), place).tolist() for place in range(3)] == [[-1]] * 3


@pytest.mark.parametrize(("codebooks", "clusters"), [(0, 4), (4, 4), (1, 1025)])
def test_what_does_not_fit_into_a_cluster_id_is_refused(codebooks: int, clusters: int) -> None:
    with pytest.raises(CourierError, match=f"{codebooks} codebooks of {clusters} clusters do not fit"):
        Codebooks.fit(np.ones((4, 2), np.float32), codebooks=codebooks, clusters=clusters)


def test_codebooks_come_back_as_they_were_saved_and_another_number_of_centres_is_refused(tmp_path: Path) -> None:
    books = Codebooks.fit(parts()[0], codebooks=3, clusters=4, later_clusters=2)
    books.save(tmp_path)
    again = Codebooks.load(tmp_path, [4, 2, 2])
    assert [one.centroids.tobytes() for one in again.levels] == [one.centroids.tobytes() for one in books.levels]
    with pytest.raises(ArtifactMismatch, match="holds 8 centres, its manifest says 9: rebuild the codebook"):
        Codebooks.load(tmp_path, [4, 2, 3])


def test_a_codebook_is_named_by_its_centres_their_order_its_levels_and_its_space() -> None:
    centres = np.arange(12, dtype=np.float32).reshape(6, 2)
    books = [
        Codebooks((Codebook(centres),)),
        Codebooks((Codebook(centres[::-1].copy()),)),
        Codebooks((Codebook(centres[:3]), Codebook(centres[3:]))),
        Codebooks((Codebook(centres + np.float32(1e-6)),)),
    ]
    names = [one.codebook_id("s1") for one in books] + [books[0].codebook_id("s2")]
    assert len(set(names)) == 5
    assert books[0].codebook_id("s1") == Codebooks((Codebook(centres.copy()),)).codebook_id("s1") == names[0]
    assert (names[0][0], len(names[0])) == ("c", 13)
