"""The image encoder: backbone, pooled features, head to a unit vector; saved with, and loaded by, its space."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from model import artifact
from model.courier.backbones import build_backbone
from model.courier.config import CourierConfig
from model.space import Preprocessing, space_id

KIND = "pretrain"
WEIGHTS = "weights.safetensors"
HEADS = ("linear", "mlp")
TRAINABLE = ("head", "all")
MIN_SCALE = 1e-6  # a feature that never varies on the training images is divided by one, not by nothing


class Encoder(nn.Module):
    """An image as a unit vector: features (backbone, pooled), then standardise, head, normalise.

    pooling: `statistics` is the mean and standard deviation over space of every stage's map: what the early stages
    see of colour and texture stays visible. `last` is the mean of the last map alone, as in the paper.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        pooling: str,
        head: str,
        hidden: int,
        width: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.width = width
        self.pooling = pooling
        channels: tuple[int, ...] = backbone.channels  # type: ignore[assignment]
        self.feature_width = 2 * sum(channels) if pooling == "statistics" else channels[-1]
        self.register_buffer("feature_mean", torch.zeros(self.feature_width))
        self.register_buffer("feature_scale", torch.ones(self.feature_width))
        self.dropout = nn.Dropout(dropout)
        self.head = _head(head, self.feature_width, hidden, width)

    def features(self, images: Tensor) -> Tensor:
        """images: (N, 3, S, S) normalised -> (N, feature_width)."""
        maps: list[Tensor] = self.backbone.stages(images)  # type: ignore[operator]
        if self.pooling == "last":
            return maps[-1].float().mean((2, 3))
        return torch.cat([pooled for one in maps for pooled in _mean_and_deviation(one.float())], dim=1)

    def project(self, features: Tensor) -> Tensor:
        """features: (N, feature_width) -> (N, width) of unit length."""
        standard = (features - self.feature_mean) / self.feature_scale
        return F.normalize(self.head(self.dropout(standard)).float(), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, S, S) normalised -> (N, width) of unit length."""
        return self.project(self.features(images))

    def standardise_by(self, features: Tensor) -> None:
        """Measure mean and deviation of every feature on `features` (N, feature_width) and keep them in the weights.

        Colour directions of the early stages vary little in absolute terms; unstandardised, shape drowns them.
        """
        self.feature_mean.copy_(features.mean(0))
        scale = features.std(0, correction=0)
        self.feature_scale.copy_(torch.where(scale > MIN_SCALE, scale, torch.ones_like(scale)))

    def freeze_backbone(self) -> None:
        """Leave only the head to train."""
        self.backbone.requires_grad_(False)


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """An encoder in evaluation mode, and the space its vectors belong to."""

    module: Encoder
    preprocessing: Preprocessing
    space_id: str
    name: str


def build_encoder(config: CourierConfig) -> Encoder:
    """The encoder that `config` describes, with random weights. Raises ValueError for an unknown choice."""
    if config.trainable not in TRAINABLE:
        raise ValueError(f"unknown trainable part {config.trainable!r}: choose one of {', '.join(TRAINABLE)}")
    return Encoder(
        build_backbone(config.backbone, config.image_size),
        pooling="statistics" if config.trainable == "head" else "last",
        head=config.head,
        hidden=config.hidden,
        width=config.width,
        dropout=config.feature_dropout,
    )


def normalise(images: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """images: (N, S, S, 3) uint8 -> (N, 3, S, S) float32, channels_last. Raises ValueError for another size."""
    size = preprocessing.size
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images are {images.shape[1:]} {images.dtype}, the encoder takes ({size}, {size}, 3) uint8: "
            "resize them with model.courier.images"
        )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)  # a view: the memory already lies channels last
    return pixels.to(torch.float32).sub_(preprocessing.mean).div_(preprocessing.scale)


def feature_batches(
    encoder: Encoder, images: npt.NDArray[np.uint8], preprocessing: Preprocessing, batch: int = 64
) -> Iterator[Tensor]:
    """Features of the images (N, S, S, 3), in order, as (<= batch, feature_width) on the encoder's device."""
    device = encoder.feature_mean.device
    encoder.eval()
    for start in range(0, len(images), batch):
        with torch.inference_mode():  # not around the yield: it would leak into the caller
            features = encoder.features(normalise(images[start : start + batch], preprocessing).to(device))
        yield features


def embed_images(encoder: LoadedEncoder, images: npt.NDArray[np.uint8], batch: int = 64) -> npt.NDArray[np.float32]:
    """images: (N, S, S, 3) uint8 -> (N, width) float32, rows of unit length."""
    vectors = np.empty((len(images), encoder.module.width), np.float32)
    start = 0
    for features in feature_batches(encoder.module, images, encoder.preprocessing, batch):
        with torch.inference_mode():
            vectors[start : start + len(features)] = encoder.module.project(features).cpu().numpy()
        start += len(features)
    return vectors


def save_encoder(encoder: Encoder, folder: Path, preprocessing: Preprocessing) -> dict[str, Any]:
    """Write the whole encoder's weights into `folder`; returns the facts that name its space, for the manifest."""
    path = folder / WEIGHTS
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}, path)
    sha256 = artifact.sha256_file(path)
    return {
        "space_id": space_id(sha256, preprocessing),
        "preprocessing": {"size": preprocessing.size, "mean": preprocessing.mean, "scale": preprocessing.scale},
        "weights_sha256": sha256,
    }


def load_encoder(pretrain: Path, device: str = "cpu") -> LoadedEncoder:
    """The encoder of a finished pretrain artifact, in evaluation mode.

    Raises ArtifactMissing if there is none, ArtifactMismatch if its weights are not those the manifest names.
    """
    manifest = artifact.read(pretrain, kind=KIND)
    preprocessing = Preprocessing(**manifest.facts["preprocessing"])
    found = space_id(artifact.sha256_file(pretrain / WEIGHTS), preprocessing)
    if found != manifest.facts["space_id"]:
        raise artifact.ArtifactMismatch(
            f"{pretrain / WEIGHTS} belongs to space {found}, its manifest says {manifest.facts['space_id']}: "
            "rebuild the pretrain artifact"
        )
    encoder = build_encoder(CourierConfig(**manifest.config))
    encoder.load_state_dict(load_file(pretrain / WEIGHTS))
    return LoadedEncoder(encoder.to(device).eval(), preprocessing, found, manifest.facts["encoder"])


def _head(kind: str, width_in: int, hidden: int, width: int) -> nn.Sequential:
    if kind == "linear":
        return nn.Sequential(nn.Linear(width_in, width))
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width))
    raise ValueError(f"unknown head {kind!r}: choose one of {', '.join(HEADS)}")


def _mean_and_deviation(one: Tensor) -> tuple[Tensor, Tensor]:
    """one: (N, C, H, W) -> mean and standard deviation over space, (N, C) each."""
    flat = one.flatten(2)
    deviation, mean = torch.std_mean(flat, dim=2, correction=0)
    return mean, deviation
