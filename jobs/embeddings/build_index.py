"""Build the nearest-neighbour index over every item with a vector, and measure what it misses: the index stage."""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import structlog

from jobs.config import IndexConfig
from model import artifact
from model.artifact import Manifest
from model.vector_index import VectorIndex

log = structlog.get_logger()

KIND = "index"


def build(*, embed: Path, out: Path, config: IndexConfig) -> Manifest:
    """Write `index.faiss` and `items.parquet` (item_id, label, image_id; in index order).

    Items that share an image have a row each, in the order of their ids. recall_at_10 is measured against exact search
    with the vectors of `config.recall_queries` items sampled by `config.seed`.
    Raises ArtifactMissing or ArtifactMismatch for its input.
    """
    embedded = artifact.read(embed, kind="embed")
    begun = time.monotonic()
    items = pq.read_table(embed / "items.parquet", columns=["item_id", "image_id", "row"]).sort_by("item_id")
    vectors = np.load(embed / "vectors.npy")[items["row"].to_numpy()]
    index = VectorIndex.build(vectors, items["item_id"].to_pylist(), kind=config.kind, seed=config.seed)
    queried = min(config.recall_queries, len(vectors))
    queries = vectors[np.random.default_rng(config.seed).choice(len(vectors), queried, replace=False)]
    with artifact.write(out, kind=KIND, inputs={"embed": artifact.digest(embed)}, config=asdict(config)) as draft:
        index.save(draft.path, {"image_id": items["image_id"].to_pylist()})
        draft.facts |= {
            "space_id": embedded.facts["space_id"],
            "items": len(index),
            "kind": index.kind,
            "recall_at_10": round(index.recall_at(10, queries), 4),
            "queries": queried,
            "metric": "inner_product",
        }
    log.info("index_built", **draft.facts, seconds=round(time.monotonic() - begun, 1))
    return artifact.read(out, kind=KIND)
