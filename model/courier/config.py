"""What a COURIER pre-training run depends on; saved beside its weights."""

from dataclasses import dataclass

from feature_repo.contract import EMBEDDING_DIM


@dataclass(frozen=True, slots=True, kw_only=True)
class CourierConfig:
    """One pre-training run. Defaults follow Yang et al. 2025 (COURIER) where the paper says."""

    backbone: str = "lite0"  # lite0 | small | swin_t
    trainable: str = "head"  # head: the backbone is frozen and its activations are computed once | all
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
    # random | taste: a linear head begins at the axes along which users' clicks agree, see linear_start.taste_axes; it
    # needs components of equal spread (feature_whitening 1).
    head_start: str = "random"
    feature_dropout: float = 0.0  # share of the standardised features zeroed while training the head
    heads: int = 4
    value_maps: bool = False  # of the attention; the paper has them, see IntentionReconstruction
    temperature: float = 0.05  # the paper's; a head on frozen features learns more at 0.5 (docs/LOG.md)
    weight_pv: float = 1.0
    weight_ucs: float = 1.0
    weight_click: float = 1.0
    # all, as in the paper | category: an image's negatives are of its own category. Who browses lamps clicks lamps:
    # against other categories the category alone wins, and that the CTR model knows already.
    negatives: str = "category"
    mask_false_negatives: bool = True  # the same image elsewhere in the batch is no negative
    batch_rows: int = 256  # of the global batch, over all processes
    steps: int = 400  # longer runs fit the training period's pages and lose on the next one
    warmup_steps: int = 50
    learning_rate: float = 3e-4
    weight_decay: float = 1e-6
    seed: int = 0
