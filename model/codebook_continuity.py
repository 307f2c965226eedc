"""Which cluster of a new codebook is which of the old one: ids are kept where most items agree on them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from model.codebook import Codebook, Codebooks

Ids = npt.NDArray[np.int32]


def matched_ids(new: Ids, old: Ids, clusters: int) -> Ids:
    """The id that each of `clusters` new clusters takes, (clusters,): a permutation that keeps the most items' codes.

    new, old: (N,) codes of the same items.  An old id that no row of the new codebook can have (>= clusters) is lost.
    A maximum-weight assignment of the confusion matrix: Kuhn 1955, The Hungarian method for the assignment problem.
    """
    known = old < clusters
    pairs = new[known].astype(np.int64) * clusters + old[known]
    confusion = np.bincount(pairs, minlength=clusters * clusters).reshape(clusters, clusters)
    ids: Ids = linear_sum_assignment(confusion, maximize=True)[1].astype(np.int32)
    return ids


def continue_codebooks(fitted: Codebooks, codes: Ids, old_codes: Sequence[Ids]) -> Codebooks:
    """The fitted codebooks with their clusters renumbered so that each level keeps the most items' codes.

    codes: (N, codebooks) of items that had codes before, by `fitted`.  old_codes: (N,) of the same items, for each
    level of the old codebooks; a level that they lack stays as it was fitted.  A level's numbers are its own: a code
    of the next one is of what the centre leaves, whatever that centre's number is.
    """
    levels = list(fitted.levels)
    for place, old in enumerate(old_codes[: len(levels)]):
        ids = matched_ids(codes[:, place], old, len(levels[place]))
        levels[place] = Codebook(np.ascontiguousarray(levels[place].centroids[np.argsort(ids)]))
    return Codebooks(tuple(levels))


def churn(old: Ids, new: Ids) -> float:
    """The share of items whose code changed, 0..1; 0 of no items.  old, new: (N,) of the same items."""
    return float((old != new).mean()) if len(old) else 0.0
