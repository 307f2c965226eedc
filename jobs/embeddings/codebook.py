"""Fit the codebooks, or continue those of the current release: the codebook stage."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import structlog

from jobs.config import CodebookConfig
from model import artifact
from model.artifact import Manifest
from model.cluster_id import unpacked
from model.codebook import Codebooks
from model.codebook_continuity import churn, continue_codebooks
from model.errors import CourierError

log = structlog.get_logger()

KIND = "codebook"
TOLD_LETTERS = 60  # of an id in a sentence


class NothingToFit(CourierError):
    """No image that a codebook could be fitted on; the message says what to rebuild."""


def build(
    *, embed: Path, sequences: Path, out: Path, config: CodebookConfig, released: Mapping[str, Path] | None = None
) -> Manifest:
    """Write the centres of the codebooks.

    They are fitted on the images shown before the validation period and on nothing later: an item of the test period
    is put into clusters that were there before it. Each distinct image counts once.
    released: `codebook` and `cluster` of the current release, whose codes the items keep where they can: in the same
    space k-means starts from its centres, and in any space the clusters have the ids that keep most items' codes.
    Facts: churn is the share of the `overlap`, items that both know, whose first code changed.
    Raises ArtifactMissing or ArtifactMismatch for its inputs, NothingToFit where no shown item has a usable image.
    """
    space_id = str(artifact.read(embed, kind="embed").facts["space_id"])
    valid_start = artifact.read(sequences, kind="sequences").facts["splits"]["valid_start"]
    begun = time.monotonic()
    vectors = np.load(embed / "vectors.npy")
    items = pq.read_table(embed / "items.parquet", columns=["item_id", "row"])
    shown = _shown_before(sequences, datetime.fromisoformat(valid_start))
    fitted = vectors[_rows_of(items, shown)]
    if not len(fitted):
        raise NothingToFit(_why_nothing(shown, items, valid_start))
    before = read_codebooks(released["codebook"]) if released else None
    begin = before[0] if before and before[1].facts["space_id"] == space_id else None
    codebooks = Codebooks.fit(fitted, **asdict(config), begin=begin)
    continuity: dict[str, Any] = {"continues": None, "overlap": 0, "churn": None}
    if released and before:
        codebooks, continuity = _continued(codebooks, vectors, items, released["cluster"], before[1])
    inputs = artifact.digests({"embed": embed, "sequences": sequences})
    with artifact.write(out, kind=KIND, inputs=inputs, config=asdict(config)) as draft:
        codebooks.save(draft.path)
        draft.facts |= {
            "space_id": space_id,
            "codebook_id": codebooks.codebook_id(space_id),
            "codebooks": [len(level) for level in codebooks.levels],  # in their order in the file of centres
            "inertia": round(codebooks.inertia(fitted), 6),
            "vectors": len(vectors),
            "fitted_on": len(fitted),
            "not_shown_in_training": len(vectors) - len(fitted),
            "trained_until": valid_start,
            **continuity,
        }
    log.info("codebook_fitted", **draft.facts, seconds=round(time.monotonic() - begun, 1))
    return artifact.read(out, kind=KIND)


def read_codebooks(folder: Path) -> tuple[Codebooks, Manifest]:
    """The codebooks of an artifact, and its manifest. Raises ArtifactMissing, ArtifactMismatch."""
    manifest = artifact.read(folder, kind=KIND)
    return Codebooks.load(folder, manifest.facts["codebooks"]), manifest


def _continued(
    codebooks: Codebooks, vectors: npt.NDArray[np.float32], items: pa.Table, cluster: Path, before: Manifest
) -> tuple[Codebooks, dict[str, Any]]:
    """The codebooks with the ids that most items had before, and the facts of how many keep theirs."""
    known = pq.read_table(cluster / "items.parquet", columns=["item_id", "cluster_id"])
    place = pc.index_in(items["item_id"].combine_chunks(), value_set=known["item_id"].combine_chunks())
    both = place.is_valid().to_numpy(zero_copy_only=False)
    old_ids = known["cluster_id"].combine_chunks().take(place.drop_null()).to_numpy()
    old = [unpacked(old_ids, level) for level in range(len(before.facts["codebooks"]))]
    rows = items["row"].to_numpy()[both]
    continued = continue_codebooks(codebooks, codebooks.codes(vectors)[rows], old)
    changed = churn(old[0], continued.codes(vectors)[rows, 0])
    facts = {"continues": before.facts["codebook_id"], "overlap": len(rows), "churn": round(changed, 4)}
    return continued, facts


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
