"""What the CTR models' training depends on; saved beside their weights."""

from dataclasses import dataclass, field

from model.ctr.inputs.registry import trained_names

MODELS = ("lightgbm", "neural")
IMAGES = trained_names()


@dataclass(frozen=True, slots=True, kw_only=True)
class BoostedConfig:
    """LightGBM's settings."""

    trees: int = 200
    leaves: int = 31
    learning_rate: float = 0.1
    min_rows_in_leaf: int = 100
    patience: int = 20  # trees without a better validation log loss


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
    # The neural models begin with the current release's, where its codes and vectors still mean the same: docs/LOG.md
    warm_start: bool = False
    vector_components: int = 32  # principal components of a vector that LightGBM sees
    seed: int = 0
    # One, so that a run is the same on every machine. On two cores busy with other work, two threads took 4 to 20 times
    # as long as one, because they wait for each other by spinning.
    threads: int = 1
