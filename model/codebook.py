"""Cluster IDs: k-means over image vectors, then over what the centres leave, and the codes of any vector.

Whatever is as long as the vectors and wider than a code is made in blocks of BLOCK_BYTES: only the residuals of a
second codebook are kept whole, once.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from feature_repo.contract import MAX_CODEBOOKS
from model import strict_json
from model.artifact import ArtifactMismatch
from model.cluster_id import LARGEST_CODEBOOK
from model.errors import CourierError

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

POINTS_PER_CENTROID = 1000  # k-means learns from a sample of at most this many points per centre
CENTROIDS = "centroids.npy"
BLOCK_BYTES = 64_000_000  # of the scores of a block of vectors with every centre; larger blocks are no faster


@dataclass(frozen=True, slots=True)
class Codebook:
    """The centres of k-means; a cluster's id is the row of its centre.

    As fitted, the largest cluster is 0; one that continues another has that one's ids (model.codebook_continuity).

    centroids: (K, D) float32.  Distances are Euclidean on unit vectors, so they order as the cosine does
    (Yang et al. 2025, COURIER, Cluster-ID).
    """

    centroids: Floats

    @classmethod
    def fit(
        cls, vectors: Floats, *, clusters: int, iterations: int = 25, seed: int = 0, start: "Codebook | None" = None
    ) -> "Codebook":
        """k-means over `vectors` (N, D), float32 unit rows; fewer centres where there are fewer distinct vectors.

        start: where k-means begins, in the same space; its first centres where it has more, and random ones beside
        them where it has fewer.
        Same vectors and seed, same codebook.  Raises CourierError without vectors or for clusters < 1.
        """
        if clusters < 1 or not len(vectors):
            raise CourierError(
                f"a codebook of {clusters} clusters cannot be fitted on {len(vectors)} vectors: give both"
            )
        vectors = np.ascontiguousarray(vectors, np.float32)
        distinct = _distinct_rows(vectors, clusters)
        if distinct is not None:
            return cls(_largest_first(distinct, vectors))
        begin = None if start is None else start.centroids[:clusters]
        return cls(_largest_first(_k_means(vectors, clusters, iterations, seed, begin), vectors))

    def __len__(self) -> int:
        return len(self.centroids)

    def assign(self, vectors: Floats, *, block_bytes: int = BLOCK_BYTES) -> Ids:
        """The id of the nearest centre of each row of `vectors` (N, D): (N,) int32; of two as near, the smaller."""
        return _nearest(self.centroids, vectors, block_bytes)

    def occupancy(self, cluster_ids: Ids) -> npt.NDArray[np.int64]:
        """How many of `cluster_ids` fall into each cluster: (K,)."""
        return np.bincount(cluster_ids, minlength=len(self)).astype(np.int64)

    def inertia(self, vectors: Floats) -> float:
        """The mean squared distance of `vectors` (N, D) to their nearest centre; 0 is perfect."""
        return Codebooks((self,)).inertia(vectors)


@dataclass(frozen=True, slots=True)
class Codebooks:
    """Codebooks one after the other: the first of the vectors, each next of what is left of them without their centres.

    Where looks are made of parts that vary by themselves (a palette, a texture) one codebook sees the loudest part, and
    the next ones the others. Residual quantisation: Juang & Gray 1982, Multiple stage vector quantization for speech
    coding; as codes of items for ranking: Luo et al. 2024, QARM, https://arxiv.org/abs/2411.11739.
    """

    levels: tuple[Codebook, ...]

    @classmethod
    def fit(
        cls,
        vectors: Floats,
        *,
        codebooks: int,
        clusters: int,
        later_clusters: int = 0,
        iterations: int = 25,
        starts: int = 1,
        seed: int = 0,
        begin: "Codebooks | None" = None,
    ) -> "Codebooks":
        """So many codebooks over `vectors` (N, D), float32 unit rows; the best of `starts` random starts of each.

        later_clusters: of each codebook but the first; 0: as many as the first has.
        begin: codebooks of the same space from whose centres k-means starts, in place of random ones.
        Raises CourierError as Codebook.fit does, and for what does not fit into a cluster ID.
        """
        sizes = [clusters] + [later_clusters or clusters] * (codebooks - 1)
        if not 1 <= codebooks <= MAX_CODEBOOKS or max(sizes) > LARGEST_CODEBOOK:
            raise CourierError(
                f"{codebooks} codebooks of {max(sizes)} clusters do not fit into a cluster ID: "
                f"choose 1 to {MAX_CODEBOOKS} codebooks of up to {LARGEST_CODEBOOK} clusters"
            )
        levels: list[Codebook] = []
        for place, size in enumerate(sizes):
            known = begin.levels[place] if begin is not None and place < len(begin.levels) else None
            tried = [
                Codebook.fit(vectors, clusters=size, iterations=iterations, seed=seed * starts + start, start=known)
                for start in range(starts if known is None else 1)
            ]
            levels.append(min(tried, key=lambda level: level.inertia(vectors)))
            if place + 1 < codebooks:
                vectors = cls((levels[-1],)).residuals(vectors)
        return cls(tuple(levels))

    def codebook_id(self, space_id: str) -> str:
        """A short name of these codebooks: 'c' and 12 hex digits of the hash of their centres and their space.

        Two share it only if they give every vector of that space the same codes.
        """
        sizes = strict_json.dumps({"space_id": space_id, "shapes": [one.centroids.shape for one in self.levels]})
        named = hashlib.sha256(sizes.encode())
        for level in self.levels:
            named.update(np.ascontiguousarray(level.centroids, "<f4").data)
        return "c" + named.hexdigest()[:12]

    def save(self, folder: Path) -> None:
        """Write the centres of all codebooks, one below the other, into `folder`."""
        np.save(folder / CENTROIDS, np.concatenate([level.centroids for level in self.levels]))

    @classmethod
    def load(cls, folder: Path, sizes: Sequence[int]) -> "Codebooks":
        """What `save` wrote. sizes: of each codebook. Raises ArtifactMismatch where the file holds another number."""
        centroids = np.load(folder / CENTROIDS)
        if len(centroids) != sum(sizes):
            raise ArtifactMismatch(
                f"{folder / CENTROIDS} holds {len(centroids)} centres, its manifest says {sum(sizes)}: "
                "rebuild the codebook"
            )
        return cls(tuple(Codebook(part) for part in np.split(centroids, np.cumsum(sizes)[:-1])))

    def codes(self, vectors: Floats, *, block_bytes: int = BLOCK_BYTES) -> Ids:
        """The code of each row of `vectors` (N, D) in each codebook: (N, codebooks) int32."""
        codes = np.empty((len(vectors), len(self.levels)), np.int32)
        for rows in self._blocks(vectors, block_bytes):
            codes[rows] = self._encode(vectors[rows])[0]
        return codes

    def residuals(self, vectors: Floats, *, block_bytes: int = BLOCK_BYTES) -> Floats:
        """What is left of `vectors` (N, D) without their centres: (N, D) float32."""
        left = np.empty(vectors.shape, np.float32)
        for rows in self._blocks(vectors, block_bytes):
            left[rows] = self._encode(vectors[rows])[1]
        return left

    def inertia(self, vectors: Floats, *, block_bytes: int = BLOCK_BYTES) -> float:
        """The mean square of what the centres leave of `vectors` (N, D); 0 is perfect."""
        squares = np.empty(len(vectors), np.float64)
        for rows in self._blocks(vectors, block_bytes):
            left = self._encode(vectors[rows])[1]
            np.einsum("nd,nd->n", left, left, dtype=np.float64, out=squares[rows])
        return float(squares.mean())

    def _blocks(self, vectors: Floats, block_bytes: int) -> Iterator[slice]:
        widest = max(vectors.shape[1], *(len(level) for level in self.levels))
        return _blocks(len(vectors), 4 * widest, block_bytes)

    def _encode(self, vectors: Floats) -> tuple[Ids, Floats]:
        """Codes (n, codebooks) and residuals (n, D) of a block of vectors."""
        codes = np.empty((len(vectors), len(self.levels)), np.int32)
        for place, level in enumerate(self.levels):
            codes[:, place] = level.assign(vectors)
            vectors = vectors - level.centroids[codes[:, place]]
        return codes, vectors


def _blocks(rows: int, row_bytes: int, block_bytes: int) -> Iterator[slice]:
    """Slices of `rows` rows, in order, of at most `block_bytes` each, and of a row at least."""
    step = max(1, block_bytes // row_bytes)
    return (slice(start, start + step) for start in range(0, rows, step))


def _distinct_rows(vectors: Floats, most: int) -> Floats | None:
    """The distinct rows of `vectors` (N, D), sorted; None where there are more than `most`."""
    seen: dict[bytes, Floats] = {}
    for row in vectors:
        seen.setdefault((row + np.float32(0)).tobytes(), row)  # + 0, for -0 equals 0
        if len(seen) > most:
            return None
    return np.unique(np.stack(list(seen.values())), axis=0)


def _k_means(vectors: Floats, clusters: int, iterations: int, seed: int, begin: Floats | None) -> Floats:
    means = faiss.Kmeans(
        vectors.shape[1],
        clusters,
        niter=iterations,
        seed=seed + 1,  # FAISS takes 0 for "no seed given"
        # A random start can leave two groups in one cluster and split a third. Bachem et al. 2016: as good as k-means++
        # (inertia 8 % below a random start's on 30,000 grouped points), a third of its time.
        init_method=faiss.ClusteringInitMethod_AFK_MC2,
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS_PER_CENTROID,
    )
    means.train(vectors, init_centroids=begin)
    return np.asarray(means.centroids, np.float32)


def _largest_first(centroids: Floats, vectors: Floats) -> Floats:
    sizes = np.bincount(_nearest(centroids, vectors, BLOCK_BYTES), minlength=len(centroids))
    # FAISS splits an empty cluster into near twins; those that still attract nothing come last.
    order = np.lexsort((*centroids.T[::-1], -sizes))
    return np.ascontiguousarray(centroids[order])


def _nearest(centroids: Floats, vectors: Floats, block_bytes: int) -> Ids:
    nearest = np.empty(len(vectors), np.int32)
    half_squares = 0.5 * np.einsum("kd,kd->k", centroids, centroids)
    for rows in _blocks(len(vectors), 4 * len(centroids), block_bytes):
        # |v - c|^2 = |v|^2 - 2 v.c + |c|^2, and |v| is the same for every centre.
        nearness = vectors[rows] @ centroids.T
        nearness -= half_squares
        nearest[rows] = nearness.argmax(axis=1)
    return nearest
