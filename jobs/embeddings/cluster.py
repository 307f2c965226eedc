"""Fit the codebooks and give every item its cluster ID: the cluster stage."""

import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import structlog

from jobs.config import ClusterConfig
from model import artifact
from model.artifact import Manifest
from model.cluster_id import packed
from model.codebook import Codebooks
from model.errors import CourierError

log = structlog.get_logger()

KIND = "cluster"
CENTROIDS = "centroids.npy"
ITEMS = "items.parquet"
TOLD_LETTERS = 60  # of an id in a sentence


class NothingToFit(CourierError):
    """No image that a codebook could be fitted on; the message says what to rebuild."""


def build(*, embed: Path, sequences: Path, out: Path, config: ClusterConfig) -> Manifest:
    """Write the centres and every usable item's cluster ID.

    The centres are fitted on the images shown before the validation period and on nothing later: an item of the test
    period is put into clusters that were there before it. Each distinct image counts once.
    Raises ArtifactMissing or ArtifactMismatch for its inputs, NothingToFit where no shown item has a usable image.
    """
    embedded = artifact.read(embed, kind="embed")
    splits = artifact.read(sequences, kind="sequences").facts["splits"]
    begun = time.monotonic()
    vectors = np.load(embed / "vectors.npy")
    items = pq.read_table(embed / "items.parquet", columns=["item_id", "row"])
    shown = _shown_before(sequences, datetime.fromisoformat(splits["valid_start"]))
    fitted = vectors[_rows_of(items, shown)]
    if not len(fitted):
        raise NothingToFit(_why_nothing(shown, items, splits["valid_start"]))
    codebooks = Codebooks.fit(fitted, **asdict(config))
    codes = codebooks.codes(vectors)[items["row"].to_numpy()]
    cluster_ids = packed(codes)
    occupancy = [level.occupancy(codes[:, place]) for place, level in enumerate(codebooks.levels)]
    inputs = artifact.digests({"embed": embed, "sequences": sequences})
    with artifact.write(out, kind=KIND, inputs=inputs, config=asdict(config)) as draft:
        np.save(draft.path / CENTROIDS, np.concatenate([level.centroids for level in codebooks.levels]))
        pq.write_table(pa.table({"item_id": items["item_id"], "cluster_id": cluster_ids}), draft.path / ITEMS)
        draft.facts |= {
            "space_id": embedded.facts["space_id"],
            "clusters": sum(map(len, codebooks.levels)),  # of all codebooks, in their order in centroids.npy
            "codebooks": [len(level) for level in codebooks.levels],
            "occupied": sum(int((count > 0).sum()) for count in occupancy),
            "largest_share": round(max(float(count.max() / count.sum()) for count in occupancy), 4),
            "inertia": round(codebooks.inertia(fitted), 6),
            "vectors": len(vectors),
            "fitted_on": len(fitted),
            "not_shown_in_training": len(vectors) - len(fitted),
        }
    log.info("codebook_fitted", **draft.facts, seconds=round(time.monotonic() - begun, 1))
    return artifact.read(out, kind=KIND)


def _shown_before(sequences: Path, cut: datetime) -> set[str]:
    """The items shown before `cut`."""
    impressions = ds.dataset(sequences / "impressions", format="parquet")
    shown: set[str] = set()
    for batch in impressions.to_batches(columns=["item_id"], filter=ds.field("request_time") < pa.scalar(cut)):
        shown.update(batch.column(0).unique().to_pylist())
    return shown


def _why_nothing(shown: set[str], items: pa.Table, cut: str) -> str:
    if not shown:
        return f"no item was shown before {cut}, where validation begins: bring events of a longer time"
    one, other = (ids[:TOLD_LETTERS] for ids in (min(shown), pc.min(items["item_id"]).as_py()))
    return (
        f"none of the {len(shown)} items shown before {cut} is among the {len(items)} with a vector (shown is "
        f"{one!r}, a vector has {other!r}): make events and items say the same item_id, or see coverage.html"
    )


def _rows_of(items: pa.Table, shown: set[str]) -> npt.NDArray[np.int64]:
    """The rows of the distinct vectors of the items shown, ascending."""
    is_shown = np.array([item in shown for item in items["item_id"].to_pylist()], dtype=bool)
    return np.unique(items["row"].to_numpy()[is_shown]).astype(np.int64)
