"""Load a saved CTR model of either kind."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import pyarrow as pa

from model.artifact import ArtifactMismatch, ArtifactMissing
from model.ctr.inputs.item_vectors import Floats, ItemVectors
from model.ctr.models import boosted, neural


class CtrModel(Protocol):
    """A model that says how likely each row is to be clicked."""

    @property
    def images(self) -> str:
        """The name of its image input, see model.ctr.inputs.registry."""

    def predict(self, table: pa.Table, vectors: ItemVectors | None = None) -> Floats:
        """Click probabilities of rows (form: model.ctr.inputs.rows) as if each were shown at the top: (B,) float32."""


LOADERS: Final[Mapping[str, Callable[[Path], CtrModel]]] = {
    boosted.KIND: boosted.BoostedModel.load,
    neural.KIND: neural.NeuralModel.load,
}


def load_model(folder: Path) -> CtrModel:
    """The model saved in `folder`. Raises ArtifactMissing if none is, ArtifactMismatch if its kind is unknown."""
    try:
        kind = json.loads((folder / "model.json").read_text("utf-8"))["model"]
    except FileNotFoundError:
        raise ArtifactMissing(f"no CTR model at {folder}: train the CTR models") from None
    if kind not in LOADERS:
        raise ArtifactMismatch(f"{folder} holds a model of kind '{kind}', known are {', '.join(LOADERS)}: train again")
    return LOADERS[kind](folder)
