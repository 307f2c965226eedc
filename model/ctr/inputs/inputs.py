"""THE row -> model input: how one row of the CTR table becomes numbers, in training and in serving alike.

What a model sees of a row is said in this folder and nowhere else: what all of them see in model.ctr.inputs.encoded,
each image input in a file of its own. What is fitted (vocabularies, medians, principal components) comes from training
rows only, see model.ctr.inputs.fit. Nothing here but `labels` reads the label.

Position: training reads it as it was observed, so that the model can tell "shown at the top" from "attractive". A
prediction, in evaluation and in serving, puts every row at position 0 ("as if shown at the top", see
`ModelInput.at_top`), because nobody knows the position at ranking time.
"""

import numpy as np
import pyarrow as pa

from model.ctr.inputs.encoded import BASE_FEATURES, Encoded, encode
from model.ctr.inputs.image_input import ModelInput
from model.ctr.inputs.item_vectors import Floats, ItemVectors
from model.ctr.inputs.registry import image_input
from model.ctr.inputs.state import InputsState


def labels(table: pa.Table) -> Floats:
    """Whether each row was clicked: (B,) float32 of 0/1."""
    clicked: Floats = table.column("clicked").to_numpy().astype(np.float32)
    return clicked


def needs_vectors(images: str) -> bool:
    """Whether a model with this image input must be given ItemVectors to predict."""
    return image_input(images).needs_vectors


def with_images(rows: Encoded, state: InputsState, vectors: ItemVectors | None, images: str) -> ModelInput:
    """The rows together with one kind of image input.

    Raises CourierError if the kind is unknown, ValueError if it needs vectors and there are none.
    """
    one = image_input(images)
    if one.needs_vectors and vectors is None:
        raise ValueError(f"image input '{images}' needs the items' vectors, and none were given")
    found = one.numbers(rows, state.learned[images], vectors)
    dense = np.column_stack([rows.base, *found.columns]).astype(np.float32) if found.columns else rows.base
    matrix = vectors.matrix if vectors is not None and one.needs_vectors else None
    return ModelInput(images, rows, (*BASE_FEATURES, *found.names), dense, found.facts, matrix)


def model_input(table: pa.Table, state: InputsState, vectors: ItemVectors | None, images: str) -> ModelInput:
    """What a model with this image input reads of a table's rows (form: model.ctr.inputs.rows); raises as both do."""
    return with_images(encode(table, state, vectors if needs_vectors(images) else None), state, vectors, images)
