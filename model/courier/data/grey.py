"""Grey of more than eight bits, and of floats, in eight: as bright as its file says, or else as its values say."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

Values = npt.NDArray[Any]

ROWS = 256  # converted at a time, so that no wide copy of all pixels is in memory
FLOAT_WHITES = (1.0, 255.0, 65535.0)
OVERSHOOT = 1.1  # what resampling makes of white, at most


def eight_bit(image: Image.Image) -> Image.Image:
    """An image of mode I, I;16 or F as L, or as LA where one of its values is said to be transparent.

    A PNG's white is that of 16 bits. Of a TIFF's integers and floats nothing tells it: it is the least of the usual
    ones that no value lies above, 255, then 65535, for floats 1 before them.
    """
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if values.dtype == np.int32 and tags.get(SAMPLEFORMAT, (1,))[0] == 1:  # unsigned, for which Pillow has no mode
        values = values.view(np.uint32)
    white = _white(values, tags) if tags else 65535
    grey = np.empty(values.shape, np.uint8)
    for rows in _parts(values):
        grey[rows] = _scaled(values[rows], white)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero, which Pillow minds for eight bits only
        grey = 255 - grey
    shown = Image.fromarray(grey)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return shown
    return Image.merge("LA", (shown, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _parts(values: Values) -> Iterator[slice]:
    return (slice(top, top + ROWS) for top in range(0, len(values), ROWS))


def _white(values: Values, tags: Any) -> float:
    if tags.get(BITSPERSAMPLE, (0,))[0] == 12:
        return 4095
    top = max(np.max(values[rows], where=np.isfinite(values[rows]), initial=0) for rows in _parts(values))
    if values.dtype.kind == "f":
        return next((white for white in FLOAT_WHITES if top <= OVERSHOOT * white), float(top))
    return next(white for white in (255, 65535, np.iinfo(values.dtype).max) if top <= white)


def _scaled(values: Values, white: float) -> Values:
    """Of 0 to `white` the nearest of 0 to 255; what lies beyond is clipped, and what is no number is black."""
    if values.dtype.kind == "f":
        known = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=white, neginf=0.0)
        return np.rint(np.clip(known, 0, white) * 255 / white)
    whole = int(white)
    return (np.clip(values.astype(np.int64), 0, whole) * 255 + whole // 2) // whole
