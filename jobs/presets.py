"""The named sizes of the road: for each preset, every stage's config."""

from typing import Any, Final

from jobs.config import ClusterConfig, EvaluateConfig, ImagesConfig, IndexConfig, SequencesConfig
from model.courier.config import CourierConfig
from model.ctr.config import BoostedConfig, CtrConfig, NeuralConfig

PRESETS: Final[dict[str, dict[str, Any]]] = {
    # For tests and a first look: minutes become seconds, and the figures mean nothing.
    "tiny": {
        "sequences": SequencesConfig(),
        "images": ImagesConfig(size=64, shards=2),
        "pretrain": CourierConfig(image_size=64, steps=60, batch_rows=64),
        "cluster": ClusterConfig(clusters=16),
        "index": IndexConfig(recall_queries=100),
        "ctr": CtrConfig(boosted=BoostedConfig(trees=60), neural=NeuralConfig(epochs=1), vector_components=8),
        "evaluate": EvaluateConfig(bootstrap=500),
    },
    # Two cores and no GPU: frozen ImageNet features, everything after them trained.
    "demo": {
        "sequences": SequencesConfig(),
        "images": ImagesConfig(),
        # The start is the linearised objective's best already; larger steps lead away from it: docs/LOG.md
        "pretrain": CourierConfig(
            basis="category",
            feature_whitening=0.0,  # the start evens out what pages show: docs/LOG.md
            head_start="taste",
            temperature=0.5,
            steps=400,
            learning_rate=1e-5,
        ),
        # by validation, docs/LOG.md: what users choose by most has more kinds than what they choose by less
        "cluster": ClusterConfig(clusters=8, later_clusters=6, codebooks=3, starts=20),
        "index": IndexConfig(),
        "ctr": CtrConfig(),
        "evaluate": EvaluateConfig(),
    },
    # A GPU: the whole backbone is trained at the paper's resolution.
    "full": {
        "sequences": SequencesConfig(),
        "images": ImagesConfig(size=224, shards=64),
        "pretrain": CourierConfig(trainable="all", image_size=224, steps=20_000, batch_rows=512, learning_rate=1e-4),
        "cluster": ClusterConfig(clusters=1000),
        "index": IndexConfig(),
        "ctr": CtrConfig(boosted=BoostedConfig(trees=1000, leaves=63)),
        "evaluate": EvaluateConfig(),
    },
}
