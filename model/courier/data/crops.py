"""Where a step's augmented crops come from: drawn anew for every step, or among features computed once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.courier.data.augmentation import draw_crops
from model.courier.data.loader import Numbers, rows
from model.courier.data.normalise import normalise_tensor
from model.space import Preprocessing

Pixels = npt.NDArray[np.uint8]

VERSIONS = 4  # of every image where the backbone is frozen: six pairs to tell apart, at four times the features' cost
DRAWN = 256  # images drawn at a time


@dataclass(frozen=True, slots=True)
class PixelCrops:
    """Crops drawn from the images (N, S, S, 3) for each step; what is drawn depends on seed, rank and step alone.

    below: what the frozen parts of the encoder make of normalised images (N, 3, S, S).
    """

    pixels: npt.NDArray[np.uint8]
    preprocessing: Preprocessing
    below: Callable[[Tensor], Tensor]
    crops: int
    seed: int
    rank: int

    def fetch(self, images: Numbers, step: int) -> Tensor:
        """See Source; (crops * U, S, S, 3) uint8, crop by crop."""
        drawn = draw_crops(rows(self.pixels, images), self.crops, generator(self.seed, self.rank, step))
        return torch.from_numpy(drawn)

    def prepare(self, raw: Tensor) -> Tensor:
        """See Source."""
        return self.below(normalise_tensor(raw, self.preprocessing))


@dataclass(frozen=True, slots=True)
class FeatureCrops:
    """Standardised features of VERSIONS versions of every image, (VERSIONS, N, F) on the device, to draw among.

    A frozen backbone gives a version always the same features, and to draw new versions for each step would cost more
    than all the rest of the step.
    """

    standard: Tensor
    crops: int
    seed: int
    rank: int

    def fetch(self, images: Numbers, step: int) -> Tensor:
        """See Source; (crops * U,) numbers of versions, crop by crop; the crops of an image are different versions."""
        versions, count = self.standard.shape[:2]
        order = torch.rand(len(images), versions, generator=generator(self.seed, self.rank, step)).argsort(1)
        return (order[:, : self.crops].T * count + torch.from_numpy(images)).flatten()

    def prepare(self, raw: Tensor) -> Tensor:
        """See Source."""
        return self.standard.flatten(0, 1)[raw]


def version_batches(features: Callable[[Pixels], Iterable[Tensor]], pixels: Pixels, seed: int) -> Iterator[Tensor]:
    """Features of VERSIONS versions of the images (N, S, S, 3), version by version, in parts as `features` gives."""
    drawn = generator(seed)
    for _ in range(VERSIONS):
        for start in range(0, len(pixels), DRAWN):
            yield from features(draw_crops(pixels[start : start + DRAWN], 1, drawn))


def generator(*seeds: int) -> torch.Generator:
    """One that these numbers decide, and that no other choice of them shares."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]))
