"""What each offline job depends on; saved in the manifest of what it builds."""

from dataclasses import dataclass

from feature_repo.contract import CTR_HISTORY, PAGE_VIEW_SIZE, PRETRAIN_HISTORY


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencesConfig:
    """Behaviour sequences and the split by time."""

    page_view_size: int = PAGE_VIEW_SIZE
    pretrain_history: int = PRETRAIN_HISTORY
    ctr_history: int = CTR_HISTORY
    train_fraction: float = 0.8  # of the page views, in time order
    valid_fraction: float = 0.1  # the rest is the test period


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesConfig:
    """Reading, verifying and resizing image references."""

    size: int = 96
    shards: int = 8
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    min_side: int = 8
    max_side: int = 32_768
    allowed_hosts: tuple[str, ...] = ()  # the only ones that https:// references may name; *.example.com is a pattern
    store_shards: int = 64  # of the store of examined images: what a killed run does again; 10,000 references each
    placeholder_items: int = 5  # one picture shared by at least this many items ...
    placeholder_categories: int = 3  # ... of at least this many categories is a "no image" picture
    near_distance: int = 2  # bits of 64 by which the perceptual hashes of near-duplicates differ: docs/LOG.md


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The k-means codebook."""

    clusters: int = 128
    iterations: int = 25
    seed: int = 0


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
