"""The neural models of the current release, as far as new ones may begin with them."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from model import artifact
from model.artifact import ArtifactMismatch, Manifest
from model.ctr.inputs.registry import IMAGE_INPUTS
from model.ctr.models.neural import NeuralModel


def released_networks(
    released: Mapping[str, Path], codebook: Path, *, space_id: str, valid_from: datetime
) -> dict[str, NeuralModel]:
    """Image input -> the released model to begin with; none for an input whose numbers mean something else by now.

    released: `codebook` and `ctr` of the current release.  codebook: of the rows to train on.  space_id: of their
    vectors.  valid_from: the first validation row; a model that was trained on later ones would know its test.
    An input with codes needs a codebook that is the released one or continues it, an input with vectors the same space.
    Raises ArtifactMissing, ArtifactMismatch.
    """
    before = artifact.read(released["ctr"], kind="ctr")
    until = before.facts.get("trained_until")  # a model of an earlier revision does not say it
    if until is None or datetime.fromisoformat(until) > valid_from:
        return {}
    old, new = (artifact.read(folder, kind="codebook") for folder in (released["codebook"], codebook))
    found = {}
    for name, images in IMAGE_INPUTS.items():
        folder = released["ctr"] / f"neural-{name}"
        same_vectors = not images.needs_vectors or before.facts["space_id"] == space_id
        same_codes = images.codes is None or _continues(new, old)
        if folder.is_dir() and same_vectors and same_codes:
            with suppress(ArtifactMismatch):  # saved in an earlier format: begins anew
                found[name] = NeuralModel.load(folder)
    return found


def _continues(new: Manifest, old: Manifest) -> bool:
    return old.facts["codebook_id"] in (new.facts["codebook_id"], new.facts["continues"])
