"""Pixels as an encoder takes them: the preprocessing that is part of its space."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.space import Preprocessing


def normalise(images: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """images: (N, S, S, 3) uint8 -> (N, 3, S, S) float32, channels_last. Raises ValueError for another size."""
    size = preprocessing.size
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images are {images.shape[1:]} {images.dtype}, the encoder takes ({size}, {size}, 3) uint8: "
            "resize them with model.courier.data.images"
        )
    return normalise_tensor(torch.from_numpy(images), preprocessing)


def normalise_tensor(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """images: (N, S, S, 3) uint8 -> (N, 3, S, S) float32, channels_last, on the same device."""
    pixels = images.permute(0, 3, 1, 2)  # a view: the memory already lies channels last
    return pixels.to(torch.float32).sub_(preprocessing.mean).div_(preprocessing.scale)
