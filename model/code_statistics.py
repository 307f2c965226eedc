"""How evenly codes are used: Gini, entropy, and which items cannot be told apart by their cluster IDs."""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def gini(counts: Counts) -> float:
    """The Gini coefficient of how many vectors each cluster holds, 0 (all alike) to 1 - 1/K (one holds all).

    counts: (K,) >= 0, not all zero.  Half the mean absolute difference of two clusters over their mean size.
    """
    ranked, size = np.sort(counts), len(counts)
    return float((2 * np.arange(1, size + 1) - size - 1) @ ranked / (size * ranked.sum()))


def entropy(counts: Counts) -> float:
    """Shannon's entropy of a vector's cluster, in bits: 0 (one cluster holds all) to log2(K) (all alike).

    counts: (K,) >= 0, not all zero.
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no -0.0


def collisions(cluster_ids: npt.NDArray[np.int32]) -> float:
    """The share of vectors whose cluster ID another one has too, 0..1; 0 of no vectors.  cluster_ids: (N,)."""
    _, counts = np.unique(cluster_ids, return_counts=True)
    return float(counts[counts > 1].sum() / max(1, len(cluster_ids)))
