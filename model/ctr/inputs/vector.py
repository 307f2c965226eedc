"""The image vector itself: a learned projection in the neural model, principal components for the trees."""

from typing import Final

import numpy as np
import pyarrow.compute as pc

from feature_repo.contract import EMBEDDING_DIM, ITEM_KEY
from model.ctr.inputs.image_input import ImageInput, ModelInput, TrainingRows
from model.ctr.inputs.item_vectors import Floats
from model.ctr.inputs.state import Learned


def principal_axes(training: TrainingRows) -> Learned:
    """mean (256,), components (K, 256): the principal axes of the vectors of the training items."""
    mean, axes = np.zeros(EMBEDDING_DIM, dtype=np.float32), np.zeros((0, EMBEDDING_DIM), dtype=np.float32)
    if training.vectors is None:
        return {"mean": mean, "components": axes}
    rows = np.unique(training.vectors.rows_of(pc.unique(training.table.column(ITEM_KEY)).drop_null()))
    found = training.vectors.matrix[rows[rows >= 0]].astype(np.float64)
    if not len(found):
        return {"mean": mean, "components": axes}
    centred = found - found.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    vectors = vectors[:, ::-1][:, : training.components].T
    # an axis and its mirror image are the same axis: the largest entry is made positive, so that two machines agree
    signs = np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1))
    return {"mean": found.mean(axis=0).astype(np.float32), "components": (vectors * signs).astype(np.float32)}


def component_columns(given: ModelInput, learned: Learned) -> tuple[tuple[str, ...], Floats]:
    """Names and (B, 2 K) principal components of the target's vector and of the history's mean vector; NaN without."""
    if given.matrix is None:
        raise ValueError("principal components need the items' vectors, and none were given")
    mean, components = learned["mean"], learned["components"]
    count = len(components)
    projected = np.vstack([(given.matrix - mean) @ components.T, np.zeros((1, count), dtype=np.float32)])
    target = projected[given.rows.target_row]  # row -1 is the row of zeros at the end
    target[given.rows.target_row < 0] = np.nan
    total = np.zeros_like(target)
    for place in given.rows.history_row.T:
        total += projected[place]
    known = (given.rows.history_row >= 0).sum(axis=1)
    history = np.where(known[:, None] > 0, total / np.maximum(known, 1)[:, None], np.nan)
    names = tuple(f"{what}_component_{i}" for what in ("target", "history") for i in range(count))
    return names, np.hstack([target, history]).astype(np.float32)


VECTOR: Final = ImageInput(
    name="vector",
    title="vector",
    needs_vectors=True,
    learn=principal_axes,
    tree_numbers=component_columns,
    projected=True,
)
