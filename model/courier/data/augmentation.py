"""Augmented crops of an image: cut out, mirrored, recoloured, blurred.

Chen et al. 2020 (SimCLR), https://arxiv.org/abs/2002.05709, appendix A, at the strength of Chen & He 2021 (SimSiam),
https://arxiv.org/abs/2011.10566, appendix A: SimCLR's own full strength takes away most of the colour that shoppers
choose by. kornia does the pixels; what is drawn comes from our own generator, for kornia's own draws from torch's
global one, which a thread that loads ahead would pull from under the training.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

AREA = (0.2, 1.0)  # of the crop, as a share of the image's
RATIO = (3 / 4, 4 / 3)  # the crop's width by its height
MIRRORED = 0.5
RECOLOURED = 0.8
FACTOR = 0.4  # brightness, contrast and saturation are multiplied by 1 - this to 1 + this
HUE = 0.1  # of a full turn, either way
GREY = 0.2
BLURRED = 0.5
SIGMA = (0.1, 2.0)  # pixels, at the 224 of the papers; smaller images are blurred in proportion
PAPER_SIZE = 224


def draw_crops(pixels: npt.NDArray[np.uint8], crops: int, generator: torch.Generator) -> npt.NDArray[np.uint8]:
    """pixels: (U, S, S, 3) -> (crops * U, S, S, 3): a first crop of every image, then a second, and so on."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32).div_(255)
    drawn = (augment(images, generator).mul_(255).round_().to(torch.uint8) for _ in range(crops))
    return torch.cat(list(drawn)).permute(0, 2, 3, 1).contiguous().numpy()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """images: (N, 3, S, S) float in [0, 1] -> the same, each image drawn by itself. generator: on the CPU."""
    images = crop(images, *draw_boxes(len(images), generator), mirrored=_chosen(images, MIRRORED, generator))
    images = _where(images, recolour(images, *draw_colours(images, generator)), _chosen(images, RECOLOURED, generator))
    images = _where(images, _grey(images), _chosen(images, GREY, generator))
    return _where(images, blur(images, _uniform(images, SIGMA, generator)), _chosen(images, BLURRED, generator))


def draw_boxes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centres and half sides of so many crops, (count, 2) each: x, y in [-1, 1] over the image, which they stay in."""
    area = AREA[0] + (AREA[1] - AREA[0]) * torch.rand(count, generator=generator)
    logarithm = math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * torch.rand(count, generator=generator)
    ratio = logarithm.exp().sqrt()
    half = (area.sqrt()[:, None] * torch.stack([ratio, 1 / ratio], dim=1)).clamp(max=1)
    return (1 - half) * (2 * torch.rand(count, 2, generator=generator) - 1), half


def crop(images: Tensor, centre: Tensor, half: Tensor, *, mirrored: Tensor) -> Tensor:
    """The crops, resized to the image's size, bilinear. centre, half: (N, 2), see draw_boxes; mirrored: (N,) bool."""
    turns = torch.diag_embed(half.to(images))
    turns[:, :, 0] *= torch.where(mirrored, -1.0, 1.0)[:, None]
    grid = F.affine_grid(torch.cat([turns, centre.to(images)[:, :, None]], dim=2), list(images.shape), False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def draw_colours(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each image the factors of brightness, contrast and saturation, and the turn of the hue in radians."""
    factors = [_uniform(images, (1 - FACTOR, 1 + FACTOR), generator) for _ in range(3)]
    return factors[0], factors[1], factors[2], _uniform(images, (-2 * math.pi * HUE, 2 * math.pi * HUE), generator)


def recolour(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Change the colours of (N, 3, S, S) in [0, 1]; each of the four: (N,)."""
    from kornia import enhance  # late: nothing that serves needs the package

    images = (images * brightness[:, None, None, None]).clamp(0, 1)
    images = enhance.adjust_contrast_with_mean_subtraction(images, contrast)
    images = enhance.adjust_saturation_with_gray_subtraction(images, saturation)
    return enhance.adjust_hue(images, hue)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur (N, 3, S, S) by a Gaussian; sigma: (N,) in pixels of an image of PAPER_SIZE."""
    from kornia.filters import gaussian_blur2d  # late, as above

    size = images.shape[-1]
    window = 2 * max(1, size // 20) + 1  # a tenth of the side, as in the paper
    return gaussian_blur2d(images, (window, window), (sigma * size / PAPER_SIZE)[:, None].expand(-1, 2))


def _grey(images: Tensor) -> Tensor:
    from kornia.color import rgb_to_grayscale  # late, as above

    return rgb_to_grayscale(images).expand_as(images)


def _uniform(images: Tensor, span: tuple[float, float], generator: torch.Generator) -> Tensor:
    """(N,) evenly drawn from `span`, beside the images."""
    return (span[0] + (span[1] - span[0]) * torch.rand(len(images), generator=generator)).to(images)


def _chosen(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(N,) bool, True for about `share` of the images."""
    return (torch.rand(len(images), generator=generator) < share).to(images.device)


def _where(images: Tensor, changed: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], changed, images)
