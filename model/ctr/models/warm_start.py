"""Start a neural CTR model from an earlier one: what they share by name keeps its embedding, all else by shape."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from model.ctr.inputs.state import InputsState
    from model.ctr.models.neural import NeuralModel, TargetAttention


def continue_network(network: "TargetAttention", state: "InputsState", before: "NeuralModel") -> None:
    """Copy what `before` knows into a new network, in place.

    Items and categories that both vocabularies hold keep their embedding, codes keep theirs by number: the caller sees
    to it that a code means the same. Layers are copied where their shapes agree, and with them the medians and scales
    that they were trained with; what is new keeps its random start.
    """
    old, new = before.network.state_dict(), network.state_dict()
    named = {
        "item.weight": (before.state.items, state.items),
        "category.weight": (before.state.categories, state.categories),
    }
    for name, weights in new.items():
        if name not in old or weights.shape[1:] != old[name].shape[1:]:
            continue
        if name in named:
            _copy_known(weights, old[name], *named[name])
        elif name.startswith("codes."):
            rows = min(len(weights), len(old[name]))
            weights[:rows].copy_(old[name][:rows])
        elif weights.shape == old[name].shape:
            weights.copy_(old[name])


def _copy_known(weights: Tensor, old: Tensor, known: Sequence[str], wanted: Sequence[str]) -> None:
    """weights: (1 + wanted, D), old: (1 + known, D); row 0 is what is unknown."""
    places = {name: place for place, name in enumerate(known, 1)}
    pairs = [(row, places[name]) for row, name in enumerate(wanted, 1) if name in places]
    rows, olds = torch.tensor([(0, 0), *pairs]).T
    weights[rows] = old[olds]
