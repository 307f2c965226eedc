"""The identity of an embedding space: the encoder's weights and the preprocessing that feeds it."""

import hashlib
from dataclasses import asdict, dataclass

from model import strict_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes the encoder's input; part of the space's identity.

    size: pixels, the square the image is resized to (squashed, bicubic, so nothing of a poster is cropped away).
    mean, scale: pixel p in 0..255 enters as (p - mean) / scale.
    """

    size: int
    mean: float = 127.0  # EfficientNet-Lite's own normalisation
    scale: float = 128.0


def space_id(weights_sha256: str, preprocessing: Preprocessing) -> str:
    """A short name of the space: 's' and 12 hex digits of the hash of weights and preprocessing.

    Two encoders share it only if they map every image to the same vector.
    """
    identity = strict_json.dumps({"weights": weights_sha256, "preprocessing": asdict(preprocessing)}, sort_keys=True)
    return "s" + hashlib.sha256(identity.encode()).hexdigest()[:12]
