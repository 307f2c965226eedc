"""What the inputs of CTR models learn from the training rows: vocabularies, priors, medians, principal components."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contract import EMBEDDING_DIM, ITEM_KEY, MAX_CODEBOOKS
from model.cluster_id import unpacked
from model.ctr.inputs.columns import flat_list, lookup, numbers, strings, whole
from model.ctr.inputs.inputs import HISTOGRAM_BINS, UNKNOWN, Floats, InputsState, ItemVectors, encode
from model.ctr.inputs.rows import HISTORY_CLUSTERS
from model.errors import CourierError

MIN_ITEM_ROWS: Final = 5  # an item shown less often than this in training has no embedding of its own


def fit_inputs(train: pa.Table, vectors: ItemVectors | None, components: int) -> InputsState:
    """The state of the training rows. components: how many principal axes; 0 vectors give none.

    Raises CourierError if there is no training row.
    """
    if not train.num_rows:
        raise CourierError("there are no training rows: the training period has no page view with features")
    categories = _frequent(train.column("category"), 1)
    state = InputsState(
        items=_frequent(train.column(ITEM_KEY), MIN_ITEM_ROWS),
        categories=categories,
        clusters=_codebook_sizes(train),
        median_price=_median_prices(train, categories),
        bin_edges=np.linspace(-1, 1, HISTOGRAM_BINS + 1, dtype=np.float32)[1:-1],
        mean=np.zeros(EMBEDDING_DIM, dtype=np.float32),
        components=np.zeros((0, EMBEDDING_DIM), dtype=np.float32),
    )
    if vectors is None:
        return state
    mean, axes = _principal_axes(train, vectors, components)
    return replace(state, bin_edges=_bin_edges(train, state, vectors), mean=mean, components=axes)


def _frequent(column: pa.ChunkedArray, least: int) -> tuple[str, ...]:
    counted = pc.value_counts(column.combine_chunks().drop_null())
    values, counts = counted.field("values"), counted.field("counts")
    return tuple(sorted(v for v in values.filter(pc.greater_equal(counts, least)).to_pylist() if v))


def _codebook_sizes(train: pa.Table) -> tuple[int, ...]:
    """One more than the largest code of each codebook; of the first, and of the others that have any code but 0."""
    columns = (train.column("cluster_id"), flat_list(train.column(HISTORY_CLUSTERS)))
    seen = whole(pa.concat_arrays([pc.unique(column).cast(pa.int64()) for column in columns]))
    sizes = [1 + int(unpacked(seen, place).max(initial=-1)) for place in range(MAX_CODEBOOKS)]
    while len(sizes) > 1 and sizes[-1] <= 1:
        sizes.pop()
    return tuple(sizes)


def _median_prices(train: pa.Table, categories: Sequence[str]) -> Floats:
    """(categories + 1,): the median known price of each category; of all where it has none; NaN if none has."""
    price, code = numbers(train, "price"), lookup(strings(train, "category"), categories)
    known = ~np.isnan(price)
    if not known.any():
        return np.full(len(categories) + 1, np.nan, dtype=np.float32)
    overall = np.median(price[known])
    out = np.full(len(categories) + 1, overall, dtype=np.float32)
    order = np.flatnonzero(known)[np.argsort(code[known], kind="stable")]
    codes, starts = np.unique(code[order], return_index=True)
    for c, part in zip(codes, np.split(price[order], starts[1:]), strict=True):
        out[c] = np.median(part) if c != UNKNOWN else overall
    return out


def _principal_axes(train: pa.Table, vectors: ItemVectors, components: int) -> tuple[Floats, Floats]:
    rows = np.unique(vectors.rows_of(pc.unique(train.column(ITEM_KEY)).drop_null()))
    found = vectors.matrix[rows[rows >= 0]].astype(np.float64)
    if not len(found):
        return np.zeros(EMBEDDING_DIM, dtype=np.float32), np.zeros((0, EMBEDDING_DIM), dtype=np.float32)
    centred = found - found.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :components].T
    # an axis and its mirror image are the same axis: the largest entry is made positive, so that two machines agree
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1))
    return found.mean(axis=0).astype(np.float32), (axes * signs).astype(np.float32)


def _bin_edges(train: pa.Table, state: InputsState, vectors: ItemVectors) -> Floats:
    """Quantiles of the similarities of some 20,000 training rows, evenly spread over time."""
    sample = train.take(np.arange(0, train.num_rows, max(1, train.num_rows // 20_000)))
    found = encode(sample, state, vectors).similarity(vectors)
    found = found[~np.isnan(found)]
    if not len(found):
        return state.bin_edges
    edges: Floats = np.quantile(found, np.linspace(0, 1, HISTOGRAM_BINS + 1)[1:-1]).astype(np.float32)
    return edges
