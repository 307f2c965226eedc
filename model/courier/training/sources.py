"""What gives a step its input: pixels, or what the frozen parts of a backbone make of them, computed once."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.courier.config import CourierConfig
from model.courier.data.batches import PageViews
from model.courier.data.crops import VERSIONS, FeatureCrops, PixelCrops, version_batches
from model.courier.data.loader import Activations, Features, Pixels, Source
from model.courier.data.stored_images import decode_images, image_size
from model.courier.losses.objective import Objective
from model.courier.network.encoder import activation_batches, feature_batches
from model.courier.progress import watched
from model.courier.training.array_cache import ArrayCache, Fill, digest_of_tensor, digest_of_weights
from model.courier.training.linear_start import prepare
from model.courier.training.process_group import ProcessGroup
from model.space import Preprocessing

STANDARD_IMAGES = 512  # about so many give a trained backbone's starting mean and deviation


def decoded_images(images: Path, page_views: PageViews, cache: ArrayCache) -> npt.NDArray[np.uint8]:
    """The images of `page_views`, decoded once, into a file that is mapped: a catalogue may be larger than memory."""
    size = image_size(images)
    shape = (len(page_views.image_ids), size, size, 3)
    return cache.array("pixels", shape, np.uint8, partial(decode_images, images, page_views.image_ids))


def build_source(
    objective: Objective,
    page_views: PageViews,
    pixels: npt.NDArray[np.uint8],
    preprocessing: Preprocessing,
    config: CourierConfig,
    group: ProcessGroup,
    cache: ArrayCache,
) -> Source:
    """What gives a step its input: features or activations computed once, the images themselves, or crops of them."""
    encoder, drawn = objective.encoder, {"crops": objective.crops, "seed": config.seed, "rank": group.rank}
    if config.trainable == "head":
        features = torch.from_numpy(frozen_features(objective, pixels, preprocessing, cache)).to(group.device)
        standard = prepare(encoder, features, page_views, config)
        if objective.crops:

            def standardised(some: npt.NDArray[np.uint8]) -> Iterator[Tensor]:
                return map(encoder.standard, feature_batches(encoder, some, preprocessing))

            shape = (VERSIONS * len(pixels), standard.shape[1])
            fill = _filled(lambda: version_batches(standardised, pixels, config.seed), "crops", shape[0])
            basis = [digest_of_tensor(t) for t in (encoder.feature_mean, encoder.feature_scale, encoder.feature_basis)]
            of_seed = _of_backbone(objective, preprocessing, cache).of(seed=config.seed, basis=basis, versions=VERSIONS)
            versions = torch.from_numpy(of_seed.array("crops", shape, np.float32, fill)).to(group.device)
            return FeatureCrops(versions.reshape(VERSIONS, len(pixels), -1), **drawn)
        return Features(standard)  # a fraction of the features' width: a step costs so much less
    # Pooled activations share a large mean: left in, all vectors start at nearly one place and may stay there.
    sample = pixels[:: max(1, len(pixels) // STANDARD_IMAGES)]
    encoder.standardise_by(torch.cat(list(feature_batches(encoder, sample, preprocessing))))
    if objective.crops:
        return PixelCrops(pixels, preprocessing, encoder.below, **drawn)
    if config.trainable == "all":
        return Pixels(pixels, preprocessing)
    first = next(activation_batches(encoder, pixels[:1], preprocessing))
    fill = _filled(lambda: activation_batches(encoder, pixels, preprocessing), "activations", len(pixels))
    of_parts = _of_backbone(objective, preprocessing, cache).of(parts=encoder.frozen_parts)
    return Activations(of_parts.array("activations", (len(pixels), *first.shape[1:]), np.float32, fill))


def frozen_features(
    objective: Objective, pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing, cache: ArrayCache
) -> npt.NDArray[np.float32]:
    """What a frozen backbone makes of the images: (N, feature_width)."""
    encoder = objective.encoder
    fill = _filled(lambda: feature_batches(encoder, pixels, preprocessing), "features", len(pixels))
    of_backbone = _of_backbone(objective, preprocessing, cache)
    return of_backbone.array("features", (len(pixels), encoder.feature_width), np.float32, fill)


def _of_backbone(objective: Objective, preprocessing: Preprocessing, cache: ArrayCache) -> ArrayCache:
    """For arrays that a backbone, as it is now, makes of the images."""
    encoder = objective.encoder
    weights = digest_of_weights(encoder.backbone)
    return cache.of(weights=weights, pooling=encoder.pooling, preprocessing=asdict(preprocessing))


def _filled(parts: Callable[[], Iterator[Any]], what: str, images: int) -> Fill:
    """What writes these parts one after the other, under a bar. Tensors or arrays, one entry an image."""

    def fill(array: npt.NDArray[Any]) -> None:
        start = 0
        for part in watched(parts(), what, images):
            array[start : start + len(part)] = part.cpu() if isinstance(part, Tensor) else part
            start += len(part)

    return fill
