"""SimScore: the cosines of the target's image with those of the history, as a few numbers and as facts of the clicks.

Sheng et al. 2024, https://arxiv.org/abs/2407.19467
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.ctr.inputs.columns import Bools
from model.ctr.inputs.encoded import RECENT, Encoded
from model.ctr.inputs.image_input import ImageInput, ImageNumbers, TrainingRows
from model.ctr.inputs.item_vectors import Floats, ItemVectors
from model.ctr.inputs.state import Learned

HISTOGRAM_BINS: Final = 10
TOP: Final = 3
CHUNK_ROWS: Final = 1024  # (1024, 50, 256) float32 is 52 MB: the most that is ever gathered of the vectors
SIMILARITY_FEATURES: Final = (
    "similarity_mean",
    "similarity_max",
    f"similarity_top_{TOP}_mean",
    *(f"similarity_newest_{last}_mean" for last in RECENT[:-1]),
    *(f"similarity_bin_{i}" for i in range(HISTOGRAM_BINS)),
)


def bin_edges(training: TrainingRows) -> Learned:
    """bin_edges: (HISTOGRAM_BINS - 1,) cosines that cut those of the training rows into equal parts."""
    even = np.linspace(-1, 1, HISTOGRAM_BINS + 1, dtype=np.float32)[1:-1]
    if training.vectors is None:
        return {"bin_edges": even}
    found = similarity(training.sample, training.vectors)
    found = found[~np.isnan(found)]
    if not len(found):
        return {"bin_edges": even}
    return {"bin_edges": np.quantile(found, np.linspace(0, 1, HISTOGRAM_BINS + 1)[1:-1]).astype(np.float32)}


def numbers(rows: Encoded, learned: Learned, vectors: ItemVectors | None) -> ImageNumbers:
    """The columns SIMILARITY_FEATURES, and the cosine of each click."""
    if vectors is None:
        raise ValueError("cosines need the items' vectors, and none were given")
    cosines = similarity(rows, vectors)
    columns = _similarity_columns(cosines, rows.filled, learned["bin_edges"])
    return ImageNumbers(SIMILARITY_FEATURES, columns, cosines[..., None])


def similarity(rows: Encoded, vectors: ItemVectors) -> Floats:
    """The cosine of the target with each click: (B, H) float32, NaN where either has no vector."""
    out = np.full(rows.history_row.shape, np.nan, dtype=np.float32)
    known = (rows.target_row >= 0) & (rows.history_row >= 0).any(axis=1)
    for part in np.array_split(np.flatnonzero(known), max(1, -(-int(known.sum()) // CHUNK_ROWS))):
        # one (H, 256) x (256, 1) product a row: a row's cosines never depend on its neighbours in the batch
        history, target = vectors.matrix[rows.history_row[part]], vectors.matrix[rows.target_row[part]]
        out[part] = np.matmul(history, target[:, :, None])[..., 0]
    out[rows.history_row < 0] = np.nan
    return out


def _similarity_columns(similarity: Floats, filled: Bools, edges: Floats) -> list[NDArray[Any]]:
    """Mean, maximum, mean of the top 3, of the newest 5 and 10, and the histogram of the cosines as shares of them.

    The histogram follows SimTier (Sheng et al. 2024, https://arxiv.org/abs/2407.19467); ours is cut at the training
    quantiles, because cosines of one encoder crowd in a narrow range.
    """
    known = filled & ~np.isnan(similarity)
    count = known.sum(axis=1)
    top = -np.sort(np.where(known, -similarity, np.inf), axis=1)[:, :TOP]
    top_mean = np.where(np.isfinite(top), top, 0).sum(axis=1) / np.clip(count, 1, TOP)
    means = [_mean_of(similarity, known, last) for last in RECENT]
    bins = np.searchsorted(edges, np.where(known, similarity, 0), side="right")
    shares = [((bins == i) & known).sum(axis=1) / np.maximum(count, 1) for i in range(HISTOGRAM_BINS)]
    columns = [means[-1], top[:, 0], top_mean, *means[:-1], *shares]
    return [np.where(count > 0, column, np.nan) for column in columns]


def _mean_of(values: Floats, known: Bools, last: int) -> NDArray[Any]:
    """The mean of the known values among the newest `last`; NaN where none is known."""
    count = known[:, :last].sum(axis=1)
    total = np.where(known, values, 0)[:, :last].sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


SIMSCORE: Final = ImageInput(name="simscore", title="SimScore", needs_vectors=True, learn=bin_edges, numbers=numbers)
