"""What the inputs of CTR models learn from the training rows: vocabularies, medians, and what each image input does."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contract import ITEM_KEY
from model.ctr.inputs.columns import lookup, numbers, strings
from model.ctr.inputs.image_input import TrainingRows
from model.ctr.inputs.item_vectors import Floats, ItemVectors
from model.ctr.inputs.registry import IMAGE_INPUTS
from model.ctr.inputs.state import UNKNOWN, InputsState
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
        median_price=_median_prices(train, categories),
        learned={},
    )
    training = TrainingRows(train, vectors, components, state)
    return replace(state, learned={name: one.learn(training) for name, one in IMAGE_INPUTS.items()})


def _frequent(column: pa.ChunkedArray, least: int) -> tuple[str, ...]:
    counted = pc.value_counts(column.combine_chunks().drop_null())
    values, counts = counted.field("values"), counted.field("counts")
    return tuple(sorted(v for v in values.filter(pc.greater_equal(counts, least)).to_pylist() if v))


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
