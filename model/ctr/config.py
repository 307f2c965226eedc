"""What the CTR models' training depends on; saved beside their weights."""

from dataclasses import dataclass, field

MODELS = ("lightgbm", "neural")
IMAGES = ("none", "vector", "simscore", "cluster_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoostedConfig:
    """LightGBM's settings."""

    trees: int = 300
    leaves: int = 31
    learning_rate: float = 0.05
    min_rows_in_leaf: int = 100
    patience: int = 30  # trees without a better validation log loss


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuralConfig:
    """The target-attention network's settings."""

    id_width: int = 16
    hidden: tuple[int, ...] = (64, 32)
    batch_rows: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    epochs: int = 4  # at most: early stopping is part of the protocol (one-epoch phenomenon, Zhang et al. 2022)


@dataclass(frozen=True, slots=True, kw_only=True)
class CtrConfig:
    """Every CTR model of a run, and the seed they share."""

    models: tuple[str, ...] = MODELS
    images: tuple[str, ...] = IMAGES
    boosted: BoostedConfig = field(default_factory=BoostedConfig)
    neural: NeuralConfig = field(default_factory=NeuralConfig)
    vector_components: int = 32  # principal components of a vector that LightGBM sees
    seed: int = 0
    threads: int = 0  # 0: all cores; the number is part of what makes a run repeatable
