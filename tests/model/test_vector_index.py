"""The index against a brute-force twin, and what it promises about ties, changes and saving."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artifact import ArtifactMismatch
from model.errors import CourierError
from model.vector_index import ITEMS_FILE, VectorIndex

Floats = npt.NDArray[np.float32]
WIDTH = 4


def unit(rows: list[list[float]] | npt.NDArray[np.float64]) -> Floats:
    matrix = np.asarray(rows, np.float64)
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def named(count: int) -> list[str]:
    return [f"i{n}" for n in range(count)]


def brute(vectors: Floats, ids: list[str], query: Floats, k: int) -> tuple[list[str], list[float]]:
    """The k best by cosine, ties by insertion order, with nothing but Python's sum and sort."""
    scores = [round(sum(float(a) * float(b) for a, b in zip(row, query, strict=True)), 6) for row in vectors]
    order = sorted(range(len(ids)), key=lambda row: (-scores[row], row))[:k]
    return [ids[row] for row in order], [scores[row] for row in order]


# Small whole numbers make many exact ties and duplicates.
rows = st.lists(st.integers(-2, 2), min_size=WIDTH, max_size=WIDTH).filter(any)
matrices = st.lists(rows, min_size=1, max_size=40).map(unit)


@settings(max_examples=80, deadline=None)
@given(vectors=matrices, query=rows, k=st.integers(1, 50), kind=st.sampled_from(["flat", "ivf"]))
def test_a_search_answers_as_brute_force_does(vectors: Floats, query: list[float], k: int, kind: str) -> None:
    ids = named(len(vectors))
    found, scores = VectorIndex.build(vectors, ids, kind=kind).search(unit([query]), k, nprobe=1_000)
    assert (found[0], scores[0].tolist()) == brute(vectors, ids, unit([query])[0], k)


@settings(max_examples=40, deadline=None)
@given(vectors=matrices, data=st.data(), kind=st.sampled_from(["flat", "ivf"]))
def test_adding_and_removing_leaves_the_index_that_would_have_been_built(
    vectors: Floats, data: st.DataObject, kind: str
) -> None:
    ids = named(len(vectors))
    gone = data.draw(st.sets(st.sampled_from(ids)))
    index = VectorIndex.build(vectors, ids, kind=kind)
    assert index.remove([*gone, "never there"]) == len(gone)
    index.add(vectors[:1], ["new"])
    kept = [row for row, item in enumerate(ids) if item not in gone]
    twin = np.concatenate([vectors[kept], vectors[:1]])
    found, scores = index.search(vectors[:1], len(ids) + 1, nprobe=1_000)
    assert (found[0], scores[0].tolist()) == brute(twin, [*(ids[row] for row in kept), "new"], vectors[0], len(ids) + 1)


def test_exact_duplicates_come_first_at_score_one_in_the_order_they_were_added() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(3_000, 256)))
    twins = [7, 700, 1_400, 2_999]
    vectors[twins] = vectors[7]
    index = VectorIndex.build(vectors, named(3_000))
    for k in (1, 2, 4, 5):
        (found,), (scores,) = index.search(vectors[[700]], k)
        assert found[:4] == [f"i{row}" for row in twins][:k]
        assert (scores[:4] == 1.0).all()


def test_more_ties_than_were_fetched_still_keep_the_order() -> None:
    vectors = unit(np.ones((500, WIDTH)))
    (found,), _ = VectorIndex.build(vectors, named(500)).search(vectors[:1], 3)
    assert found == ["i0", "i1", "i2"]


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_k_beyond_the_catalogue_gives_every_item_once(kind: str) -> None:
    vectors = unit(np.random.default_rng(1).normal(size=(400, WIDTH)))
    index = VectorIndex.build(vectors, named(400), kind=kind)
    (found,), (scores,) = index.search(vectors[:1], 1_000, nprobe=1)
    assert sorted(found) == sorted(named(400))
    assert (np.diff(scores) <= 0).all()


def test_an_empty_index_finds_nothing() -> None:
    index = VectorIndex.build(np.empty((0, WIDTH), np.float32), [])
    found, scores = index.search(unit([[1, 0, 0, 0]]), 5)
    assert found == [[]]
    assert scores[0].shape == (0,)


def test_an_item_is_its_own_nearest_neighbour_after_saving_and_loading(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(2).normal(size=(300, 32)))
    for kind in ("flat", "ivf"):
        index = VectorIndex.build(vectors, named(300), kind=kind)
        index.remove(["i5"])
        index.save(tmp_path)
        loaded = VectorIndex.load(tmp_path)
        found, _ = loaded.search(vectors, 1)
        assert [row[0] for row in found if row[0] != "i5"] == [
            item if item != "i5" else found[5][0] for item in named(300)
        ]
        assert "i5" not in loaded
        loaded.add(vectors[[5]], ["i5"])
        np.testing.assert_array_equal(loaded.vector("i5"), vectors[5])


def test_vectors_and_ids_out_of_step_are_refused(tmp_path: Path) -> None:
    VectorIndex.build(unit([[1, 0], [0, 1]]), ["a", "b"]).save(tmp_path)
    pq.write_table(pq.read_table(tmp_path / ITEMS_FILE).slice(1), tmp_path / ITEMS_FILE)
    with pytest.raises(ArtifactMismatch, match="2 vectors and 1 ids"):
        VectorIndex.load(tmp_path)


def test_exact_search_misses_nothing_and_a_single_list_misses_what_lies_in_others() -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng.normal(size=(2_000, 16)))
    exact = VectorIndex.build(vectors, named(2_000), kind="flat")
    coarse = VectorIndex.build(vectors, named(2_000), kind="ivf")
    assert exact.recall_at(10, vectors[:50]) == 1.0
    assert coarse.recall_at(10, vectors[:50], nprobe=1) < 0.9
    assert coarse.recall_at(10, vectors[:50], nprobe=10_000) == 1.0


def test_recall_counts_the_share_of_the_true_neighbours_found() -> None:
    class HalfBlind(VectorIndex):
        """Finds the first of the two nearest, and a far one in place of the second."""

        def search(self, queries: Floats, k: int, *, nprobe: int | None = None):  # type: ignore[no-untyped-def]
            del queries, k, nprobe
            return [["a", "c"]], [np.array([1.0, 0.0])]

    index = VectorIndex.build(unit([[1, 0], [1, 0.1], [0, 1]]), ["a", "b", "c"])
    blind = HalfBlind(index.faiss_index, index.ids, index.labels, index.next_label)
    assert blind.recall_at(2, unit([[1, 0]])) == 0.5


def test_an_equally_near_neighbour_is_no_miss() -> None:
    vectors = unit([[1, 0], [1, 0], [1, 0]])
    assert VectorIndex.build(vectors, ["a", "b", "c"]).recall_at(1, vectors) == 1.0


def test_auto_takes_exact_search_below_fifty_thousand_vectors() -> None:
    assert VectorIndex.build(unit(np.ones((1_000, 2))), named(1_000)).kind == "flat"


def test_large_catalogues_get_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.vector_index.IVF_FROM", 1_000)
    vectors = unit(np.random.default_rng(4).normal(size=(1_000, 8)))
    assert VectorIndex.build(vectors, named(1_000)).kind == "ivf"


@pytest.mark.parametrize(
    ("vectors", "ids", "sentence"),
    [
        ([[1.0, 0.0]], ["a", "b"], "1 vectors and 2 ids"),
        ([[1.0, 0.0], [0.0, 1.0]], ["a", "a"], "in the index twice"),
        ([[1.0, 0.0], [3.0, 4.0]], ["a", "b"], "vector 1 is 5 long"),
        ([[1.0, float("nan")]], ["a"], "vector 0 is nan long"),
    ],
)
def test_what_cannot_be_indexed_is_an_error(vectors: list[list[float]], ids: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        VectorIndex.build(np.array(vectors, np.float32), ids, kind="flat")


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CourierError, match="index kind 'tree': choose one of auto, flat, ivf"):
        VectorIndex.build(np.eye(2, dtype=np.float32), ["a", "b"], kind="tree")


def test_a_query_that_cannot_be_answered_is_refused() -> None:
    index = VectorIndex.build(unit([[1, 0]]), ["a"])
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        index.search(unit([[1, 0]]), 0)
    with pytest.raises(ValueError, match="2 wide"):
        index.search(unit([[1, 0, 0]]), 1)
    with pytest.raises(ValueError, match="'a' would be in the index twice"):
        index.add(unit([[0, 1]]), ["a"])
