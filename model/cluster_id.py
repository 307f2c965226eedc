"""Cluster IDs as numbers: an image's codes in each of the codebooks, packed into one ID, and back."""

import numpy as np
import numpy.typing as npt

from feature_repo.contract import CODE_BITS

Ids = npt.NDArray[np.int32]
LARGEST_CODEBOOK = 2**CODE_BITS


def packed(codes: Ids) -> Ids:
    """codes: (N, codebooks), each in 0..LARGEST_CODEBOOK - 1 -> (N,) cluster IDs; the first codebook's bits lowest."""
    ids: Ids = (codes.astype(np.int64) << CODE_BITS * np.arange(codes.shape[1])).sum(axis=1).astype(np.int32)
    return ids


def unpacked(cluster_ids: Ids, codebook: int) -> Ids:
    """The codes that cluster IDs (any shape) hold in one of the codebooks, 0 being the first; -1 where the ID is -1."""
    codes = np.where(cluster_ids < 0, -1, (cluster_ids >> (CODE_BITS * codebook)) & (LARGEST_CODEBOOK - 1))
    return codes.astype(np.int32)
