"""What the inputs of a CTR model learned from the training rows; saved beside the model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model import strict_json
from model.artifact import ArtifactMismatch
from model.ctr.inputs.item_vectors import Floats

UNKNOWN: Final = 0  # the code of an ID or category that training did not see often enough
FORMAT: Final = 4

Learned = Mapping[str, NDArray[Any]]  # what one image input learned: name -> array


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsState:
    """What the inputs learned from the training rows.

    items, categories: vocabularies; code 0 is unknown, code i + 1 is entry i.
    median_price: (categories + 1,) float32, entry 0 for an unknown category.
    learned: image input -> what it learned.
    """

    items: tuple[str, ...]
    categories: tuple[str, ...]
    median_price: Floats
    learned: Mapping[str, Learned]

    def only(self, images: str) -> "InputsState":
        """The state of a model with this image input: what the others learned is left out."""
        return replace(self, learned={images: self.learned[images]})

    def save(self, folder: Path) -> None:
        """Write inputs.json and inputs.npz into `folder`."""
        text = {"format": FORMAT, "items": self.items, "categories": self.categories, "images": list(self.learned)}
        (folder / "inputs.json").write_text(strict_json.dumps(text, indent=1), "utf-8")
        arrays = {f"{images}.{name}": value for images, one in self.learned.items() for name, value in one.items()}
        np.savez(folder / "inputs.npz", median_price=self.median_price, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> "InputsState":
        """Read what `save` wrote. Raises ArtifactMismatch if it is of another format."""
        text: dict[str, Any] = json.loads((folder / "inputs.json").read_text("utf-8"))
        if text["format"] != FORMAT:
            raise ArtifactMismatch(f"{folder / 'inputs.json'} is of another format: train the CTR models again")
        learned: dict[str, dict[str, NDArray[Any]]] = {images: {} for images in text["images"]}
        with np.load(folder / "inputs.npz", allow_pickle=False) as arrays:
            for key in arrays.files:
                images, _, name = key.partition(".")
                if name:
                    learned[images][name] = arrays[key]
            median_price = arrays["median_price"]
        vocabularies = {name: tuple(text[name]) for name in ("items", "categories")}
        return cls(**vocabularies, median_price=median_price, learned=learned)
