"""No image input: the baseline that every other one is held against."""

from typing import Final

from model.ctr.inputs.image_input import ImageInput

NONE: Final = ImageInput(name="none", title="none")
