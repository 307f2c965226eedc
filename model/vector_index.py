"""Find the nearest vectors: build a FAISS index, search it, change it, save it, and measure what it misses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from model.artifact import ArtifactMismatch
from model.errors import CourierError

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

KINDS = ("auto", "flat", "ivf")
INDEX_FILE = "index.faiss"
ITEMS_FILE = "items.parquet"

# IVF pays only past ~50k vectors; below that exact search is faster and never misses.
IVF_FROM = 50_000
NPROBE = 16  # lists read per query; reached recall@10 of 1.0 at 100k x 128 with room to spare
POINTS_PER_LIST = 39  # FAISS's own floor for training a list's centre
HASHTABLE = 2  # faiss.DirectMap.Hashtable, which FAISS's type stubs leave out
SCORE_DECIMALS = 6  # float32's noise on a product of 256 terms; scores closer than this are ties


@dataclass(slots=True)
class VectorIndex:
    """Vectors of unit length by the id of their item; the score of two is their inner product, the cosine.

    Equal scores keep the order in which the ids were added, so exact duplicates come first and always alike.
    """

    faiss_index: Any  # IndexIDMap2 over IndexFlatIP, or IndexIVFFlat with a direct map
    ids: list[str]  # in the order they were added
    labels: Labels  # (N,) FAISS's numbers of the same rows, ascending; never used twice
    next_label: int
    _position: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._position = {item: row for row, item in enumerate(self.ids)}

    @classmethod
    def build(cls, vectors: Floats, ids: Sequence[str], *, kind: str = "auto", seed: int = 0) -> "VectorIndex":
        """An index over `vectors` (N, D), float32 unit rows, one per id.

        kind: flat reads every vector; ivf reads the nearest lists; auto takes ivf from 50,000 vectors on.
        Raises CourierError for an unknown kind, ValueError for an id twice, more or fewer ids than rows, or a row not
        of unit length.
        """
        if kind not in KINDS:
            raise CourierError(f"unknown index kind {kind!r}: choose one of {', '.join(KINDS)}")
        vectors = _unit_rows(vectors)
        chosen = ("ivf" if len(vectors) >= IVF_FROM else "flat") if kind == "auto" else kind
        make = _empty_ivf if chosen == "ivf" and len(vectors) else _empty_flat
        index = cls(make(vectors, seed), [], np.empty(0, np.int64), 0)
        index.add(vectors, ids)
        return index

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._position

    @property
    def kind(self) -> str:
        """`flat` or `ivf`."""
        return "ivf" if isinstance(self.faiss_index, faiss.IndexIVF) else "flat"

    @property
    def width(self) -> int:
        """D, the number of a vector's components."""
        return int(self.faiss_index.d)

    def search(self, queries: Floats, k: int, *, nprobe: int | None = None) -> tuple[list[list[str]], list[Scores]]:
        """The k nearest items of each query, best first, and their scores rounded to 1e-6.

        queries: (B, D) float32 unit rows.  nprobe: lists read for this call only (ivf); None takes the index's own.
        Returns B lists of min(k, N) ids and B arrays of as many scores.
        Raises ValueError for k < 1 or a query of another width.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        found = [self._nearest(query, k, nprobe) for query in self._of_width(queries)]
        return [[self.ids[row] for row in rows] for rows, _ in found], [scores for _, scores in found]

    def vector(self, item_id: str) -> Floats:
        """The stored vector (D,) of an item. Raises KeyError for an id that is not in the index."""
        return self.vectors([item_id]).reshape(self.width)

    def vectors(self, item_ids: Sequence[str]) -> Floats:
        """The stored vectors (B, D) of items, in their order. Raises KeyError for an id that is not in the index."""
        return self._vectors_of(self.labels[[self._position[item] for item in item_ids]])

    def add(self, vectors: Floats, ids: Sequence[str]) -> None:
        """Add rows (M, D) under new ids. Raises ValueError for an id that is there already or given twice."""
        vectors = _unit_rows(vectors)
        if len(vectors) != len(ids):
            raise ValueError(f"{len(vectors)} vectors and {len(ids)} ids: every vector needs exactly one id")
        known = next((item for item in ids if item in self._position), None)
        if known is not None or len(set(ids)) != len(ids):
            which = repr(known) if known is not None else "an id"
            raise ValueError(f"{which} would be in the index twice")
        if not len(ids):
            return
        labels = np.arange(self.next_label, self.next_label + len(ids), dtype=np.int64)
        self.faiss_index.add_with_ids(self._of_width(vectors), labels)
        self._position.update((item, len(self.ids) + row) for row, item in enumerate(ids))
        self.ids.extend(ids)
        self.labels = np.concatenate([self.labels, labels])
        self.next_label += len(ids)

    def remove(self, ids: Sequence[str]) -> int:
        """Forget these items; returns how many were there. The others keep their order."""
        gone = {item for item in ids if item in self._position}
        keep = np.array([item not in gone for item in self.ids], dtype=bool)
        if gone:
            doomed = np.ascontiguousarray(self.labels[~keep])
            # An ivf index with a direct map takes no other selector.
            self.faiss_index.remove_ids(faiss.IDSelectorArray(len(doomed), faiss.swig_ptr(doomed)))
            self.ids = [item for item in self.ids if item not in gone]
            self.labels = self.labels[keep]
            self._position = {item: row for row, item in enumerate(self.ids)}
        return len(gone)

    def recall_at(self, k: int, queries: Floats, *, nprobe: int | None = None) -> float:
        """The share of the true k nearest that a search finds, in 0..1, counted up to ties.

        queries: (B, D) unit rows.  A result counts if it scores at least as high as the k-th of an exact search, so an
        equally near neighbour is no miss.  Raises ValueError on an empty index or without queries.
        """
        wanted = min(k, len(self))
        if not wanted or not len(queries):
            raise ValueError("recall needs at least one vector in the index and one query")
        thresholds = self._exact_kth_scores(self._of_width(queries), wanted)
        _, scores = self.search(queries, wanted, nprobe=nprobe)
        hits = sum(int((row >= kth).sum()) for row, kth in zip(scores, thresholds, strict=True))
        return hits / (wanted * len(queries))

    def save(self, folder: Path, columns: Mapping[str, Sequence[str]] | None = None) -> None:
        """Write `index.faiss` and `items.parquet` (item_id, label and `columns`, in index order) into `folder`."""
        faiss.write_index(self.faiss_index, str(folder / INDEX_FILE))
        table = pa.table({"item_id": pa.array(self.ids, pa.string()), "label": self.labels, **(columns or {})})
        pq.write_table(table, folder / ITEMS_FILE)

    @classmethod
    def load(cls, folder: Path) -> "VectorIndex":
        """The index saved in `folder`. Raises ArtifactMismatch where the vectors and the ids are out of step."""
        faiss_index = faiss.read_index(str(folder / INDEX_FILE))
        table = pq.read_table(folder / ITEMS_FILE, columns=["item_id", "label"])
        if faiss_index.ntotal != len(table):
            raise ArtifactMismatch(
                f"{folder} holds {faiss_index.ntotal} vectors and {len(table)} ids: rebuild it with build-index"
            )
        labels = table["label"].to_numpy().astype(np.int64)
        return cls(faiss_index, table["item_id"].to_pylist(), labels, int(labels.max(initial=-1)) + 1)

    def _nearest(self, query: Floats, k: int, nprobe: int | None) -> tuple[Labels, Scores]:
        """Rows and scores of one query (D,): candidates from FAISS, scored again so that duplicates score the same."""
        k = min(k, len(self))
        fetch = min(k + 8, len(self))
        while fetch:
            labels = self._candidates(query, fetch, nprobe)
            if len(labels) < k:  # the lists read hold too few: read them all, for nobody gets fewer than asked
                nprobe = self.faiss_index.nlist
                labels = self._candidates(query, fetch, nprobe)
            scores = _scores(self._vectors_of(labels), query)
            order = np.lexsort((labels, -scores))
            # A tie with the k-th could lie beyond what was fetched; so look further until the last one is below it.
            settled = len(labels) < fetch or fetch == len(self) or scores[order[-1]] < scores[order[k - 1]] - 1e-5
            if settled:
                best = order[:k]
                return np.searchsorted(self.labels, labels[best]), scores[best]
            fetch = min(2 * fetch, len(self))
        return np.empty(0, np.int64), np.empty(0, np.float64)

    def _candidates(self, query: Floats, k: int, nprobe: int | None) -> Labels:
        _, labels = self.faiss_index.search(query[None, :], k, params=self._parameters(nprobe))
        found: Labels = labels[0][labels[0] >= 0]  # FAISS fills what it did not find with -1
        return found

    def _parameters(self, nprobe: int | None) -> Any:
        if nprobe is None or self.kind != "ivf":
            return None
        parameters = faiss.SearchParametersIVF()  # for one call: the index's own nprobe is shared by all callers
        parameters.nprobe = nprobe
        return parameters

    def _vectors_of(self, labels: Labels) -> Floats:
        if not len(labels):
            return np.empty((0, self.width), np.float32)
        vectors: Floats = self.faiss_index.reconstruct_batch(labels)
        return vectors

    def _exact_kth_scores(self, queries: Floats, k: int, rows_per_block: int = 65_536) -> Scores:
        """The k-th best score of each query (B,) over every stored vector."""
        best = np.full((len(queries), 0), -np.inf)
        for start in range(0, len(self), rows_per_block):
            block = self._vectors_of(self.labels[start : start + rows_per_block])
            best = np.hstack([best, queries.astype(np.float64) @ block.T.astype(np.float64)])
            best = -np.sort(-best, axis=1)[:, :k]
        thresholds: Scores = np.round(best[:, -1], SCORE_DECIMALS)
        return thresholds

    def _of_width(self, vectors: Floats) -> Floats:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise ValueError(f"vectors of shape {vectors.shape} do not fit an index that is {self.width} wide")
        return vectors


def _scores(vectors: Floats, query: Floats) -> Scores:
    # Row by row in float64: a matrix product may add a row's terms in another order than its twin's.
    products: Scores = np.einsum("nd,d->n", vectors.astype(np.float64), query.astype(np.float64))
    return products.round(SCORE_DECIMALS)


def _unit_rows(vectors: Floats) -> Floats:
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be rows of a matrix, not of shape {vectors.shape}")
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1.0) < 1e-3))
    if len(wrong):
        raise ValueError(f"vector {wrong[0]} is {lengths[wrong[0]]:.4g} long: the index takes rows of unit length")
    return vectors


def _empty_flat(vectors: Floats, seed: int) -> Any:  # noqa: ARG001 (exact search learns nothing)
    return faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))


def _empty_ivf(vectors: Floats, seed: int) -> Any:
    """An empty ivf index trained on `vectors`: about 4 sqrt(N) lists, a power of two (FAISS's guidelines)."""
    wanted = 2 ** round(np.log2(4 * np.sqrt(len(vectors))))
    lists = max(1, min(int(wanted), len(vectors) // POINTS_PER_LIST))
    width = vectors.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed + 1
    index.cp.spherical = True
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.set_direct_map_type(HASHTABLE)  # reconstruct and remove by label
    index.nprobe = min(NPROBE, lists)
    return index
