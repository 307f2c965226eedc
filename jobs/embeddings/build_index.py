"""Build the nearest-neighbour index over every item with a vector, and measure what it misses: the index stage."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow.parquet as pq
import structlog
import typer

from jobs.config import IndexConfig
from model import artifact
from model.artifact import Manifest
from model.vector_index import VectorIndex

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

KIND = "index"
DEFAULTS = IndexConfig()


def build(*, embed: Path, out: Path, config: IndexConfig) -> Manifest:
    """Write `index.faiss` and `items.parquet` (item_id, label, image_id; in index order).

    Items that share an image have a row each, in the order of their ids. recall_at_10 is measured against exact search
    with the vectors of `config.recall_queries` items drawn by `config.seed`.
    Raises ArtifactMissing or ArtifactMismatch for its input.
    """
    embedded = artifact.read(embed, kind="embed")
    begun = time.monotonic()
    items = pq.read_table(embed / "items.parquet", columns=["item_id", "image_id", "row"]).sort_by("item_id")
    vectors = np.load(embed / "vectors.npy")[items["row"].to_numpy()]
    index = VectorIndex.build(vectors, items["item_id"].to_pylist(), kind=config.kind, seed=config.seed)
    drawn = min(config.recall_queries, len(vectors))
    queries = vectors[np.random.default_rng(config.seed).choice(len(vectors), drawn, replace=False)]
    with artifact.write(out, kind=KIND, inputs={"embed": artifact.digest(embed)}, config=asdict(config)) as draft:
        index.save(draft.path, {"image_id": items["image_id"].to_pylist()})
        draft.facts |= {
            "space_id": embedded.facts["space_id"],
            "items": len(index),
            "kind": index.kind,
            "recall_at_10": round(index.recall_at(10, queries), 4),
            "queries": drawn,
            "metric": "inner_product",
        }
    log.info("index_built", **draft.facts, seconds=round(time.monotonic() - begun, 1))
    return artifact.read(out, kind=KIND)


@app.command()
def build_index(
    embed: Annotated[Path, typer.Option(help="the embed artifact")],
    out: Annotated[Path, typer.Option(help="where the index artifact goes")],
    kind: Annotated[Literal["auto", "flat", "ivf"], typer.Option(help="auto picks by size")] = "auto",
    recall_queries: Annotated[
        int, typer.Option(min=1, help="queries that measure the recall")
    ] = DEFAULTS.recall_queries,
    seed: Annotated[int, typer.Option(min=0)] = DEFAULTS.seed,
) -> None:
    """Build the nearest-neighbour index, and measure what it misses."""
    config = IndexConfig(kind=kind, recall_queries=recall_queries, seed=seed)
    print(json.dumps(dict(build(embed=embed, out=out, config=config).facts), indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    app(args=argv)


if __name__ == "__main__":
    main()
