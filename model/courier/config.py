"""What a pre-training run depends on, saved beside its weights: what all methods share, and what is each one's own."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Final, TypeVar

from feature_repo.contract import EMBEDDING_DIM, PRETRAIN_HISTORY
from model.settings import from_mapping, unflatten

# Marks a setting that a preset tunes for its own method and for what it trains: see `for_method`.
TUNED: Final = {"tuned": True}
Own = TypeVar("Own")


@dataclass(frozen=True, slots=True, kw_only=True)
class CourierMethodConfig:
    """Method courier's own. Defaults follow Yang et al. 2025 (COURIER) where the paper says."""

    # random | preference: a linear head begins at linear_start.preference_axes, along which users' clicks agree
    head_start: str = field(default="random", metadata=TUNED)
    heads: int = 4
    value_maps: bool = False  # of the attention; the paper has them, see IntentionReconstruction
    # the paper's; a head on frozen features learns more at 0.5 (docs/LOG.md)
    temperature: float = field(default=0.05, metadata=TUNED)
    weight_pv: float = 1.0
    weight_ucs: float = 1.0
    weight_click: float = 1.0
    # all, as in the paper | category: an image's negatives are of its own category. Who browses lamps clicks lamps:
    # against other categories the category alone wins, and that the CTR model knows already.
    negatives: str = "category"
    # What follows is for ablations.
    attention: str = "cross"  # cross: the history rebuilds a known image | self: it foretells the next one, unknown
    projection_head: bool = False  # the losses see an MLP of the vector that is saved
    history_order: str = "newest"  # newest: of a history the last click is rebuilt | random: any, as BERT masks


@dataclass(frozen=True, slots=True, kw_only=True)
class SimClrConfig:
    """Method simclr's own, of Chen et al. 2020, https://arxiv.org/abs/2002.05709."""

    temperature: float = 0.2
    projection_width: int = 128  # of what its head projects to: section 2.2


@dataclass(frozen=True, slots=True, kw_only=True)
class SimSiamConfig:
    """Method simsiam's own, of Chen & He 2021, https://arxiv.org/abs/2011.10566."""

    bottleneck: int = 4  # its prediction head narrows to a quarter: section 4.4


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Method clip's own, of Radford et al. 2021, https://arxiv.org/abs/2103.00020."""

    temperature: float = 0.1  # a constant here


@dataclass(frozen=True, slots=True, kw_only=True)
class CourierConfig:
    """One pre-training run: what every method shares, and under each method's name what is its own.

    The methods imagenet and random train nothing and have nothing of their own.
    """

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
    # principal components of the frozen features that the head sees; 0: the features themselves
    feature_components: int = field(default=256, metadata=TUNED)
    feature_whitening: float = field(default=0.5, metadata=TUNED)  # 0: components keep their spread, 1: all are alike
    # what the components are the spread of: all images | category: those of one category
    basis: str = field(default="all", metadata=TUNED)
    feature_dropout: float = 0.0  # share of the standardised features zeroed while training the head
    mask_false_negatives: bool = True  # the same image elsewhere in the batch is no negative
    history: int = PRETRAIN_HISTORY  # clicks before the page view, at most; no more than the sequences artifact holds
    batch_rows: int = 256  # of the global batch, over all processes
    steps: int = 400  # longer runs fit the training period's pages and lose on the next one
    warmup_steps: int = 50
    learning_rate: float = field(default=3e-4, metadata=TUNED)
    weight_decay: float = 1e-6
    chunk_images: int = 0  # gradient caching: encode so many images at a time, twice; 0: all at once
    recompute_activations: bool = False  # activation checkpointing of the backbone
    precision: str = "auto"  # auto: bf16 on a GPU, fp32 on a CPU | fp32 | bf16 | fp16
    seed: int = 0
    courier: CourierMethodConfig = field(default_factory=CourierMethodConfig)
    simclr: SimClrConfig = field(default_factory=SimClrConfig)
    simsiam: SimSiamConfig = field(default_factory=SimSiamConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)


def own_configs(config: CourierConfig) -> dict[str, Any]:
    """What is each method's own, by the method's name; a method that has nothing is missing."""
    values = {one.name: getattr(config, one.name) for one in fields(config)}
    return {name: value for name, value in values.items() if is_dataclass(value)}


def for_method(config: CourierConfig, settings: Mapping[str, Any]) -> CourierConfig:
    """A preset's config with these settings, {"steps": 10, "courier.heads": 8}.

    With another method, or where something else is trained, what is TUNED is at its default: it would only hinder.
    What is another method's own is always.
    Raises CourierError for a setting that there is not, or of another type.
    """
    given = unflatten(settings)
    wanted = from_mapping(config, given)
    if (wanted.method, wanted.trainable) != (config.method, config.trainable):
        config = replace(_untuned(config), courier=_untuned(config.courier))
    idle = {name: type(own)() for name, own in own_configs(config).items() if name != wanted.method}
    return from_mapping(replace(config, **idle), given)


def _untuned(config: Own) -> Own:
    """The config with what is TUNED at its default."""
    tuned = {one.name: one.default for one in fields(config) if one.metadata == TUNED}  # type: ignore[arg-type]
    return replace(config, **tuned)  # type: ignore[type-var]
