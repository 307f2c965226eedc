"""What an image input is: what it needs, what it learns from training rows, and how it becomes a model's numbers.

Each input is a file beside this one and a line in model.ctr.inputs.registry; training, both models, the evaluation, the
reports and serving know of it from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.ctr.inputs.columns import Ints
from model.ctr.inputs.encoded import Encoded, encode
from model.ctr.inputs.item_vectors import Floats, ItemVectors
from model.ctr.inputs.state import InputsState, Learned

SAMPLE_ROWS: Final = 20_000


@dataclass(frozen=True)
class TrainingRows:
    """What an image input learns from: the training rows, and the vectors of the items, if there are any.

    components: how many principal axes a vector is cut to where numbers must be few.  state: the vocabularies.
    """

    table: pa.Table
    vectors: ItemVectors | None
    components: int
    state: InputsState

    @cached_property
    def sample(self) -> Encoded:
        """Some `SAMPLE_ROWS` of the rows, evenly spread over time."""
        step = max(1, self.table.num_rows // SAMPLE_ROWS)
        return encode(self.table.take(np.arange(0, self.table.num_rows, step)), self.state, self.vectors)


@dataclass(frozen=True, slots=True)
class ImageNumbers:
    """What an image input says of B rows, to both kinds of model.

    names: of the columns, (B,) each, NaN where unknown.
    facts: (B, H, F) float32 of each click with the row's target, NaN where unknown: the neural model's attention looks
    at them; None: nothing.
    """

    names: tuple[str, ...] = ()
    columns: Sequence[NDArray[Any]] = ()
    facts: Floats | None = None


@dataclass(frozen=True)
class ModelInput:
    """Everything a CTR model reads of some rows, for one kind of image input.

    names: of the columns of `dense` (B, F) float32, NaN where unknown.  facts: as in ImageNumbers.
    matrix: the vectors, where the input needs them.
    """

    images: str
    rows: Encoded
    names: tuple[str, ...]
    dense: Floats
    facts: Floats | None
    matrix: Floats | None

    def __len__(self) -> int:
        return len(self.rows)

    def at_top(self) -> "ModelInput":
        """The same rows as if each had been shown at position 0: the form in which every prediction is made."""
        return replace(self, rows=replace(self.rows, position=np.zeros_like(self.rows.position)))


@dataclass(frozen=True, slots=True)
class Codes:
    """An input that says of an item which kind it is of: a category for the trees, an embedding for the neural model.

    names: of the kinds, as many as there can be.  sizes: how many codes each has, as learned; 0, unknown, not counted.
    of_targets, of_clicks: (rows, which, learned) -> for each kind int32 codes 0..size; `which` chooses rows, or pairs
    of rows and places of the history.
    """

    names: tuple[str, ...]
    sizes: Callable[[Learned], tuple[int, ...]]
    of_targets: Callable[[Encoded, Any, Learned], Sequence[Ints]]
    of_clicks: Callable[[Encoded, Any, Learned], Sequence[Ints]]


def _nothing_learned(_: TrainingRows) -> Learned:
    return {}


def _no_numbers(*_: Any) -> ImageNumbers:
    return ImageNumbers()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """One way in which a CTR model may be told of images.

    name: in configs, predictions and folders.  title: in reports.
    needs_vectors: whether it must be given ItemVectors.  row_columns: the columns of a row that only it reads.
    by_default: whether every run trains it; what no run can have but a generated world's is not.
    learn: from the training rows.  numbers: (rows, learned, vectors) -> what both kinds of model see.
    tree_numbers: (given, learned) -> names and (B, K) columns that LightGBM sees besides; None: none.
    codes: None where it knows no kinds.  projected: whether the neural model learns a projection of the vectors.
    """

    name: str
    title: str
    needs_vectors: bool = False
    row_columns: tuple[str, ...] = ()
    by_default: bool = True
    learn: Callable[[TrainingRows], Learned] = _nothing_learned
    numbers: Callable[[Encoded, Learned, ItemVectors | None], ImageNumbers] = _no_numbers
    tree_numbers: Callable[[ModelInput, Learned], tuple[tuple[str, ...], Floats]] | None = None
    codes: Codes | None = None
    projected: bool = False
