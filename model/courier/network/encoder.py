"""The image encoder: backbone, pooled features, head to a unit vector; saved with, and loaded by, its space."""

from collections.abc import Iterator, Mapping, Sequence
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
from model.courier.config import CourierConfig
from model.courier.data.normalise import normalise
from model.courier.network.backbones import Backbone, build_backbone
from model.errors import CourierError
from model.settings import from_mapping
from model.space import Preprocessing, space_id

KIND = "pretrain"
WEIGHTS = "weights.safetensors"
HEADS = ("linear", "mlp")
TRAINABLE = ("head", "upper", "all")
PRODUCT_CHANNELS = 80  # up to the fourth stage of Lite0; wider maps have more products than images to learn from
BASIS_IMAGES = 3000  # more change the leading components little and cost their cube
MIN_SCALE = 1e-6  # of the mean, or of one: a feature that varies by rounding alone is divided by one, not by that


class Encoder(nn.Module):
    """An image as a unit vector: features (backbone, pooled), then standardise, head, normalise.

    pooling: `statistics` is the mean and standard deviation over space of every stage's map, and the mean products of
    the narrow (early) maps' channels, which tell colour and texture (Gatys et al. 2016, eq. 3). `last` is the mean of
    the last map alone, as in the paper.
    components: the head sees so many principal components of the standardised features; 0: the features themselves.
    frozen_parts: so many of the backbone's first parts are never trained, and always run in evaluation mode.
    recompute: trade time for memory while training; see backbones.run_parts.
    """

    feature_mean: Tensor
    feature_scale: Tensor
    feature_basis: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        pooling: str,
        head: str,
        hidden: int,
        width: int,
        components: int = 0,
        dropout: float = 0.0,
        frozen_parts: int = 0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.frozen_parts = frozen_parts
        self.recompute = recompute
        self.width = width
        self.pooling = pooling
        channels = backbone.channels
        self.feature_width = _statistics_width(channels) if pooling == "statistics" else channels[-1]
        self.components = components
        self.register_buffer("feature_mean", torch.zeros(self.feature_width))
        self.register_buffer("feature_scale", torch.ones(self.feature_width))
        self.register_buffer("feature_basis", torch.eye(self.feature_width, components))
        self.dropout = nn.Dropout(dropout)
        self.head = _head(head, components or self.feature_width, hidden, width)

    def features(self, images: Tensor) -> Tensor:
        """images: (N, 3, S, S) normalised -> (N, feature_width)."""
        if self.pooling == "last":
            return self._features_above(self.below(images))
        maps = self.backbone.stages(images, recompute=self.recompute)
        return torch.cat([pooled for one in maps for pooled in _statistics(one.float())], dim=1)

    def below(self, images: Tensor) -> Tensor:
        """images: (N, 3, S, S) normalised -> the map (N, C, H, W) after the frozen parts; the images without any."""
        with torch.no_grad():
            return self.backbone.stages(images, 0, self.frozen_parts)[-1] if self.frozen_parts else images

    def above(self, below: Tensor) -> Tensor:
        """What `below` gave -> (N, width) of unit length; with pooling `last` only."""
        return self.project(self._features_above(below))

    def _features_above(self, below: Tensor) -> Tensor:
        return self.backbone.stages(below, self.frozen_parts, recompute=self.recompute)[-1].float().mean((2, 3))

    def project(self, features: Tensor) -> Tensor:
        """features: (N, feature_width) -> (N, width) of unit length."""
        return self.unit(self.standard(features))

    def standard(self, features: Tensor) -> Tensor:
        """features: (N, feature_width) -> (N, components): standardised, and in the basis if there is one."""
        standard = (features - self.feature_mean) / self.feature_scale
        return standard @ self.feature_basis if self.components else standard

    def unit(self, standard: Tensor) -> Tensor:
        """standard: (N, components) -> (N, width) of unit length; all of project that is trained."""
        return F.normalize(self.head(self.dropout(standard)).float(), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, S, S) normalised -> (N, width) of unit length."""
        return self.project(self.features(images))

    def standardise_by(self, features: Tensor, whitening: float = 0.0, categories: Tensor | None = None) -> None:
        """Measure mean, deviation and basis of the features on `features` (N, feature_width); they are kept as weights.

        Colour directions of the early stages vary little in absolute terms; unstandardised, shape drowns them.
        A principal component of spread s is divided by s ** whitening: at 0 the few loud ones (product shape) drown the
        quiet ones, at 1 noise is as loud as signal.
        categories: (N,) int64; where given, the components are those of the spread within a category: whose shape says
        what kind of product it is takes no component away from how it looks.
        """
        features = features.cpu()  # a GPU adds in no fixed order: a run that goes on would see another basis
        mean, scale = features.mean(0), features.std(0, correction=0)
        scale = torch.where(scale > MIN_SCALE * mean.abs().clamp(min=1), scale, torch.ones_like(scale))
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_(scale)
        if self.components:
            standard = (features - mean) / scale
            if categories is not None:
                standard = standard - _category_means(standard, categories)[categories]
            self.feature_basis.copy_(_principal_basis(standard, self.components, whitening))

    def freeze_backbone(self) -> None:
        """Leave only the head to train."""
        self.backbone.requires_grad_(False)

    def freeze_parts(self) -> None:
        """Leave only what follows the frozen parts to train."""
        for part in self.backbone.parts[: self.frozen_parts]:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> "Encoder":
        """Set training mode, for all but the frozen parts."""
        super().train(mode)
        for part in self.backbone.parts[: self.frozen_parts]:
            part.eval()
        return self


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """An encoder in evaluation mode, and the space its vectors belong to."""

    module: Encoder
    preprocessing: Preprocessing
    space_id: str
    name: str


def build_encoder(config: CourierConfig) -> Encoder:
    """The encoder that `config` describes, with random weights. Raises CourierError for an unknown choice."""
    if config.trainable not in TRAINABLE:
        raise CourierError(f"unknown trainable part {config.trainable!r}: choose one of {', '.join(TRAINABLE)}")
    backbone = build_backbone(config.backbone, config.image_size)
    return Encoder(
        backbone,
        pooling="statistics" if config.trainable == "head" else "last",
        head=config.head,
        hidden=config.hidden,
        width=config.width,
        components=config.feature_components if config.trainable == "head" else 0,
        dropout=config.feature_dropout,
        frozen_parts=_frozen_parts(backbone, config),
        recompute=config.recompute_activations,
    )


def _frozen_parts(backbone: Backbone, config: CourierConfig) -> int:
    parts = len(backbone.parts)
    if config.trainable != "upper":
        return 0
    if not 1 <= config.frozen_parts < parts:
        raise CourierError(
            f"frozen_parts {config.frozen_parts}: {config.backbone} has {parts}, choose 1 to {parts - 1}"
        )
    return config.frozen_parts


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


def activation_batches(
    encoder: Encoder, images: npt.NDArray[np.uint8], preprocessing: Preprocessing, batch: int = 64
) -> Iterator[npt.NDArray[np.float32]]:
    """What the frozen parts make of the images (N, S, S, 3), in order, as (<= batch, H, W, C)."""
    device = encoder.feature_mean.device
    encoder.eval()
    for start in range(0, len(images), batch):
        with torch.inference_mode():
            below = encoder.below(normalise(images[start : start + batch], preprocessing).to(device))
        yield below.permute(0, 2, 3, 1).float().cpu().numpy()


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

    Raises ArtifactMissing if there is none, ArtifactMismatch if its weights are not those the manifest names, or its
    config is of another version of courier.
    """
    manifest = artifact.read(pretrain, kind=KIND)
    preprocessing = Preprocessing(**manifest.facts["preprocessing"])
    found = space_id(artifact.sha256_file(pretrain / WEIGHTS), preprocessing)
    if found != manifest.facts["space_id"]:
        raise artifact.ArtifactMismatch(
            f"{pretrain / WEIGHTS} belongs to space {found}, its manifest says {manifest.facts['space_id']}: "
            "rebuild the pretrain artifact"
        )
    encoder = build_encoder(_saved_config(pretrain, manifest.config))
    encoder.load_state_dict(load_file(pretrain / WEIGHTS))
    return LoadedEncoder(encoder.to(device).eval(), preprocessing, found, manifest.facts["encoder"])


def _saved_config(pretrain: Path, config: Mapping[str, Any]) -> CourierConfig:
    try:
        return from_mapping(CourierConfig(), config)
    except CourierError as error:
        raise artifact.ArtifactMismatch(
            f"{pretrain} was made by another version of courier ({error}): rebuild the pretrain artifact"
        ) from None


def _head(kind: str, width_in: int, hidden: int, width: int) -> nn.Sequential:
    if kind == "linear":
        return nn.Sequential(nn.Linear(width_in, width))
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width))
    raise CourierError(f"unknown head {kind!r}: choose one of {', '.join(HEADS)}")


def _statistics(one: Tensor) -> Iterator[Tensor]:
    """one: (N, C, H, W) -> mean and standard deviation over space, (N, C) each; of a narrow map also the products."""
    flat = one.flatten(2)
    deviation, mean = torch.std_mean(flat, dim=2, correction=0)
    yield mean
    yield deviation
    if one.shape[1] <= PRODUCT_CHANNELS:
        row, column = torch.triu_indices(one.shape[1], one.shape[1], device=one.device)
        yield (flat @ flat.transpose(1, 2) / flat.shape[2])[:, row, column]


def _statistics_width(channels: Sequence[int]) -> int:
    return sum(2 * c + (c * (c + 1) // 2 if c <= PRODUCT_CHANNELS else 0) for c in channels)


def _category_means(standard: Tensor, categories: Tensor) -> Tensor:
    """(N, width), (N,) -> (largest category + 1, width); zero for a number that no row has."""
    total = standard.new_zeros(int(categories.max()) + 1, standard.shape[1]).index_add_(0, categories, standard)
    return total / torch.bincount(categories).clamp(min=1)[:, None]


def _principal_basis(standard: Tensor, components: int, whitening: float) -> Tensor:
    """(N, width) with mean zero -> (width, components): axes of greatest spread, scaled to a mean square of one.

    From the N x N products of at most BASIS_IMAGES rows, evenly spaced. Columns beyond the rank stay zero: a singular
    value counts where it is more than rounding leaves in numbers of this precision, by numpy.linalg.matrix_rank's rule.
    The products are double: in float32 they would leave the root of its precision, a thousand times as much.
    """
    rows = standard[:: -(-len(standard) // BASIS_IMAGES)].double()
    squares, combinations = torch.linalg.eigh(rows @ rows.T / len(rows))
    spread = squares.clamp(min=0).sqrt().flip(0)
    rounding = max(rows.shape) * torch.finfo(standard.dtype).eps
    rank = min(components, int((spread > rounding * spread[0]).sum()))
    spread, combinations = spread[:rank], combinations.flip(1)[:, :rank]
    axes = rows.T @ combinations / (spread * len(rows) ** 0.5)
    scale = spread**-whitening / (spread ** (2 - 2 * whitening)).mean().sqrt()
    return F.pad(axes * scale, (0, components - rank)).float()
