"""Every image input there is. To add one, write its file and name it here: nothing else knows them by name."""

from typing import Final

from model.ctr.inputs.cluster_id import CLUSTER_ID
from model.ctr.inputs.image_input import ImageInput
from model.ctr.inputs.none import NONE
from model.ctr.inputs.simscore import SIMSCORE
from model.ctr.inputs.true_style import TRUE_STYLE
from model.ctr.inputs.vector import VECTOR
from model.errors import CourierError

# In the order in which they are trained and reported; Yang et al. 2025 expect each to give more than the one before.
IMAGE_INPUTS: Final[dict[str, ImageInput]] = {
    one.name: one
    for one in (
        NONE,
        VECTOR,
        SIMSCORE,
        CLUSTER_ID,
        TRUE_STYLE,
    )
}


def image_input(name: str) -> ImageInput:
    """The image input of this name. Raises CourierError if there is none."""
    if name not in IMAGE_INPUTS:
        raise CourierError(f"no image input '{name}': there are {', '.join(IMAGE_INPUTS)}")
    return IMAGE_INPUTS[name]


def trained_names() -> tuple[str, ...]:
    """The inputs that every run trains, the baseline first."""
    return tuple(name for name, one in IMAGE_INPUTS.items() if one.by_default)


def titles() -> dict[str, str]:
    """name -> title, of all inputs."""
    return {name: one.title for name, one in IMAGE_INPUTS.items()}
