"""What a COURIER pre-training run depends on; saved beside its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from feature_repo.contract import EMBEDDING_DIM, PRETRAIN_HISTORY


@dataclass(frozen=True, slots=True, kw_only=True)
class CourierConfig:
    """One pre-training run. Defaults follow Yang et al. 2025 (COURIER) where the paper says."""

    method: str = "courier"  # one of model.courier.training.methods.METHODS
    backbone: str = "lite0"  # lite0 | small | swin_t
    # head: the backbone is frozen and its features are computed once | upper: its first `frozen_parts` are, and their
    # activations lie on disk | all
    trainable: str = "head"
    frozen_parts: int = 6  # of lite0's 9, small's 4 or swin_t's 5
    backbone_weights: str = "imagenet"  # imagenet | random | a local path (swin_t)
    image_size: int = 96
    width: int = EMBEDDING_DIM
    head: str = "linear"  # linear | mlp; without a projection head either way: its output is the embedding
    hidden: int = 1024  # of the mlp head
    feature_components: int = (
        256  # principal components of the frozen features that the head sees; 0: the features themselves
    )
    feature_whitening: float = 0.5  # 0: components keep their spread, 1: all have the same
    basis: str = "all"  # what the components are the spread of: all images | category: those of one category
    # random | taste: a linear head begins at the axes along which users' clicks agree, see linear_start.taste_axes
    head_start: str = "random"
    feature_dropout: float = 0.0  # share of the standardised features zeroed while training the head
    heads: int = 4
    value_maps: bool = False  # of the attention; the paper has them, see IntentionReconstruction
    temperature: float = 0.05  # the paper's; a head on frozen features learns more at 0.5 (docs/LOG.md)
    weight_pv: float = 1.0
    weight_ucs: float = 1.0
    weight_click: float = 1.0
    # What follows, to history_order, is for ablations.
    attention: str = "cross"  # cross: the history rebuilds a known image | self: it foretells the next one, unknown
    projection_head: bool = False  # the losses see an MLP of the vector that is kept
    history_order: str = "newest"  # newest: of a history the last click is rebuilt | random: any, as BERT masks
    # all, as in the paper | category: an image's negatives are of its own category. Who browses lamps clicks lamps:
    # against other categories the category alone wins, and that the CTR model knows already.
    negatives: str = "category"
    mask_false_negatives: bool = True  # the same image elsewhere in the batch is no negative
    history: int = PRETRAIN_HISTORY  # clicks before the page view, at most; no more than the sequences artifact holds
    batch_rows: int = 256  # of the global batch, over all processes
    steps: int = 400  # longer runs fit the training period's pages and lose on the next one
    warmup_steps: int = 50
    learning_rate: float = 3e-4
    weight_decay: float = 1e-6
    chunk_images: int = 0  # gradient caching: encode so many images at a time, twice; 0: all at once
    recompute_activations: bool = False  # activation checkpointing of the backbone
    precision: str = "auto"  # auto: bf16 on a GPU, fp32 on a CPU | fp32 | bf16 | fp16
    seed: int = 0


# What changes method courier alone.
OF_COURIER = (
    "head_start",
    "heads",
    "value_maps",
    "temperature",
    "weight_pv",
    "weight_ucs",
    "weight_click",
    "negatives",
    "attention",
    "projection_head",
    "history_order",
)
# What a preset may have tuned for courier's own losses and start, on frozen features: else it would only hinder.
TUNED = ("basis", "head_start", "feature_components", "feature_whitening", "temperature", "learning_rate")


def for_method(config: CourierConfig, settings: Mapping[str, Any]) -> CourierConfig:
    """The config with these settings; what else does not suit them is at its default.

    For another method that is what is OF_COURIER or TUNED, for a trained backbone what is TUNED.
    """
    wanted = replace(config, **settings)
    idle: tuple[str, ...] = () if wanted.method == "courier" else OF_COURIER + TUNED
    if wanted.trainable != "head":
        idle += TUNED
    defaults: dict[str, Any] = {field.name: field.default for field in fields(config)}
    return replace(config, **{name: defaults[name] for name in idle} | dict(settings))
