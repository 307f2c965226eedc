"""What each stage depends on, saved in the manifest of what it builds; and the presets, a config for every stage."""

from dataclasses import dataclass, field
from typing import Final, Literal

from feature_repo.contract import CTR_HISTORY, PAGE_VIEW_SIZE, PRETRAIN_HISTORY
from model.courier.config import CourierConfig, CourierMethodConfig
from model.ctr.config import BoostedConfig, CtrConfig, NeuralConfig
from model.errors import CourierError

LONGEST_HISTORY: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestConfig:
    """Reading raw tables."""

    columns: tuple[str, ...] = ()  # "user_id=visitorid": what the raw files call a column of the contract


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencesConfig:
    """Behaviour sequences and the split by time."""

    page_view_size: int = PAGE_VIEW_SIZE
    pretrain_history: int = PRETRAIN_HISTORY
    ctr_history: int = CTR_HISTORY
    max_clicks_per_day: int = 1000  # of one user and UTC day; what a bot clicks beyond is set aside
    train_fraction: float = 0.8  # of the page views, in time order
    valid_fraction: float = 0.1  # the rest is the test period

    def __post_init__(self) -> None:
        """Raises CourierError for a history that is empty or too long, or a cap that lets nothing stand."""
        for name in ("pretrain_history", "ctr_history"):
            if not 1 <= getattr(self, name) <= LONGEST_HISTORY:
                raise CourierError(f"{name} is {getattr(self, name)}: give 1 to {LONGEST_HISTORY} clicks")
        for name in ("page_view_size", "max_clicks_per_day"):
            if getattr(self, name) < 1:
                raise CourierError(f"{name} is {getattr(self, name)}: give at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesConfig:
    """Reading, verifying and resizing image references."""

    size: int = 96
    shard_bytes: int = 128_000_000  # of pictures in one file at most; two are in memory while they are written
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    min_side: int = 8
    max_side: int = 32_768
    allowed_hosts: tuple[str, ...] = ()  # the only ones that https:// references may name; *.example.com is a pattern
    store_shards: int = 64  # of the store of examined images: what a killed run does again; 10,000 references each
    # A "no image" picture is shared by at least this many items; in every fifth shop five sizes share a picture ...
    placeholder_items: int = 6
    placeholder_categories: int = 3  # ... of at least this many categories, and more: jobs.rules.placeholders
    near_distance: int = 2  # bits of 64 by which the perceptual hashes of near-duplicates differ: docs/LOG.md


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookConfig:
    """The k-means codebooks."""

    clusters: int = 128  # of each codebook
    later_clusters: int = 0  # of each but the first, which sees the loudest part of style; 0: as many as that has
    codebooks: int = 1  # each of what the ones before leave; a part of style each, where its parts vary by themselves
    starts: int = 1  # of k-means, of which the best is kept
    iterations: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises CourierError for a number that leaves nothing to fit."""
        for name, least in (("clusters", 1), ("later_clusters", 0), ("codebooks", 1), ("starts", 1), ("iterations", 1)):
            if getattr(self, name) < least:
                raise CourierError(f"{name} is {getattr(self, name)}: give at least {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """The nearest-neighbour index; kind `auto` picks by the number of vectors."""

    kind: str = "auto"  # auto | flat | ivf
    recall_queries: int = 500
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """The comparison of CTR models."""

    bootstrap: int = 2000
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionConfig:
    """Whether `courier run` lets its release answer, and what the gates ask of it; no part of what is built."""

    mode: Literal["never", "gated", "force"] = "gated"
    min_recall: float = 0.9  # of the index against exact search, at 10
    max_auc_loss: float = 0.005  # below the current release's AUC; two test periods differ by chance already

    def __post_init__(self) -> None:
        """Raises CourierError for a share outside 0..1."""
        for name in ("min_recall", "max_auc_loss"):
            if not 0 <= getattr(self, name) <= 1:
                raise CourierError(f"{name} is {getattr(self, name)}: give 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """Every stage's config by its name; and where it is done and what is called old, no part of what is built."""

    engine: Literal["duckdb", "spark", "beam"] | None = (
        None  # of sequences and training rows; None: duckdb, or spark with a master
    )
    master: str | None = None  # where Spark runs, as for spark-submit
    encoder_days: int = 30  # an encoder that a release pins is called old when it is older; it stays all the same
    ingest: IngestConfig = field(default_factory=IngestConfig)
    sequences: SequencesConfig = field(default_factory=SequencesConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    pretrain: CourierConfig = field(default_factory=CourierConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    ctr: CtrConfig = field(default_factory=CtrConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    promotion: PromotionConfig = field(default_factory=PromotionConfig)  # of no stage: it makes none stale


PRESETS: Final[dict[str, PipelineConfig]] = {
    # For tests and a first look: minutes become seconds, and the figures mean nothing.
    "tiny": PipelineConfig(
        images=ImagesConfig(size=64),
        pretrain=CourierConfig(image_size=64, steps=60, batch_rows=64),
        codebook=CodebookConfig(clusters=16),
        index=IndexConfig(recall_queries=100),
        ctr=CtrConfig(boosted=BoostedConfig(trees=60), neural=NeuralConfig(epochs=1), vector_components=8),
        evaluate=EvaluateConfig(bootstrap=500),
    ),
    # Two cores and no GPU: frozen ImageNet features, everything after them trained.
    "demo": PipelineConfig(
        # The start is the linearised objective's best already; larger steps lead away from it: docs/LOG.md
        pretrain=CourierConfig(
            basis="category",
            feature_whitening=0.0,  # the start evens out what pages show: docs/LOG.md
            steps=400,
            learning_rate=1e-5,
            courier=CourierMethodConfig(head_start="preference", temperature=0.5),
        ),
        # by validation, docs/LOG.md: what users choose by most has more kinds than what they choose by less
        codebook=CodebookConfig(clusters=8, later_clusters=6, codebooks=3, starts=20),
    ),
    # A GPU: the whole backbone is trained at the paper's resolution.
    "full": PipelineConfig(
        images=ImagesConfig(size=224),
        pretrain=CourierConfig(trainable="all", image_size=224, steps=20_000, batch_rows=512, learning_rate=1e-4),
        codebook=CodebookConfig(clusters=1000),
        ctr=CtrConfig(boosted=BoostedConfig(trees=1000, leaves=63)),
    ),
}
