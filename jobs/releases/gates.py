"""What a release must show before `courier run` lets it answer: each gate passes, or fails with one sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contract import CODEBOOK_KEY, ITEM_CLUSTER, ITEM_EMBEDDING
from jobs.config import PromotionConfig
from model import artifact, strict_json
from model.artifact import Manifest
from model.releases import Release

COLLAPSE: Final = "collapse"
RECALL: Final = "recall"
RECONCILIATION: Final = "reconciliation"
EVALUATION: Final = "evaluation"
TOLD: Final = 3  # ids in a sentence
BLOCK: Final = 65_536  # vectors that are compared at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A release that may answer: its artifacts' folders and manifests, and the release that answers now."""

    release: Release
    folders: Mapping[str, Path]
    manifests: Mapping[str, Manifest]
    features: Path | None  # the features artifact that its online store was loaded with; None where it is gone
    current: Release | None


def open_candidate(workspace: Path, release: Release, current: Release | None) -> Candidate:
    """Find a release's artifacts in a workspace. Raises ArtifactMissing, ArtifactMismatch."""
    folders = {stage: workspace / where["path"] for stage, where in release.artifacts.items()}
    manifests = {stage: artifact.read(folder, kind=stage) for stage, folder in folders.items()}
    loaded = manifests["materialize"].inputs.get("features") if "materialize" in manifests else None
    return Candidate(
        release=release,
        folders=folders,
        manifests=manifests,
        features=_of_digest(workspace / "features", loaded),
        current=current,
    )


def _of_digest(folder: Path, digest: str | None) -> Path | None:
    finished = (path.parent for path in folder.glob(f"*/{artifact.MANIFEST}"))
    return next((path for path in finished if artifact.digest(path) == digest), None)


def ask_all(candidate: Candidate, config: PromotionConfig) -> dict[str, str | None]:
    """Every gate's answer: None where it passes, or one sentence."""
    return {
        COLLAPSE: collapse(candidate.manifests["pretrain"].facts),
        RECALL: recall(candidate.manifests["index"].facts, config.min_recall),
        RECONCILIATION: reconciliation(candidate.folders, candidate.features, candidate.release.codebook_id),
        EVALUATION: evaluation(candidate.release, candidate.current, config.max_auc_loss),
    }


def collapse(facts: Mapping[str, Any]) -> str | None:
    """Whether the encoder's vectors fill their space, by its manifest's figures and the bounds of pretrain."""
    from model.courier.training.collapse_metrics import CollapseMetrics, is_collapsed  # torch takes seconds

    figures = {name: math.nan if value is None else value for name, value in facts["collapse"].items()}
    if not is_collapsed(CollapseMetrics(**figures), facts["distinct_images"]):
        return None
    return (
        f"the encoder is collapsed: effective rank {figures['effective_rank']:.2f}, "
        f"deviation {figures['deviation']:.3f}: train it again"
    )


def recall(facts: Mapping[str, Any], least: float) -> str | None:
    """Whether the index finds what exact search finds. least: the share of the ten nearest, in 0..1."""
    found = facts["recall_at_10"]
    if found is not None and found >= least:
        return None
    return f"the index finds {found} of the ten nearest, promotion.min_recall asks {least}: set index.kind=flat"


def reconciliation(folders: Mapping[str, Path], features: Path | None, codebook_id: str | None) -> str | None:
    """Whether index, vectors, codes and the rows that the online store was loaded with are of the same items.

    The vectors of index and embed are compared bit by bit.  codebook_id: of the codes; None where
    the release names none.
    """
    indexed = _ids(folders["index"] / "items.parquet")
    tables = {"embed": folders["embed"], "cluster": folders["cluster"]}
    known = {name: _ids(folder / "items.parquet") for name, folder in tables.items()}
    if features is not None:
        known[ITEM_EMBEDDING.name] = _ids(features / ITEM_EMBEDDING.name)
        known[ITEM_CLUSTER.name] = _ids(features / ITEM_CLUSTER.name, codebook_id)
    for name, found in known.items():
        if said := _only_in(found - indexed, name, "the index") or _only_in(indexed - found, "the index", name):
            return said
    return _differing_vectors(folders["index"], folders["embed"])


def _ids(path: Path, codebook_id: str | None = None) -> set[str]:
    of = None if codebook_id is None else pc.field(CODEBOOK_KEY) == codebook_id
    return set(pq.read_table(path, columns=["item_id"], filters=of)["item_id"].to_pylist())


def _only_in(ids: set[str], one: str, other: str) -> str | None:
    if not ids:
        return None
    told = ", ".join(repr(item) for item in sorted(ids)[:TOLD])
    return f"{len(ids)} items are in {one} and not in {other} (as {told}): run `courier run --from embed`"


def _differing_vectors(index: Path, embed: Path) -> str | None:
    from model.vector_index import VectorIndex  # FAISS

    found = VectorIndex.load(index)
    items = pq.read_table(embed / "items.parquet", columns=["item_id", "row"])
    vectors = np.load(embed / "vectors.npy", mmap_mode="r")
    if vectors.shape[1] != found.width:
        return f"the index is {found.width} wide and the vectors {vectors.shape[1]}: run `courier run --from embed`"
    ids, rows = items["item_id"].to_pylist(), items["row"].to_numpy()
    differ: list[str] = []
    for start in range(0, len(ids), BLOCK):
        part = slice(start, start + BLOCK)
        same = (found.vectors(ids[part]) == vectors[rows[part]]).all(axis=1)
        differ += [ids[start + place] for place in np.flatnonzero(~same)]
    if not differ:
        return None
    return (
        f"{len(differ)} items have another vector in the index than in embed (as {differ[0]!r}): "
        "run `courier run --from index`"
    )


def evaluation(release: Release, current: Release | None, margin: float) -> str | None:
    """Whether the release's AUC is at most `margin` below the current one's. It passes where none answers.

    Releases that were recorded before protocols were are compared by their AUC alone.
    """
    if current is None or current.release_id == release.release_id:
        return None
    ours, theirs = (one.metrics.get("auc") for one in (release, current))
    protocols = [one.metrics.get("protocol") for one in (release, current)]
    if None not in protocols and protocols[0] != protocols[1]:
        return (
            f"{release.release_id} was evaluated otherwise ({strict_json.dumps(protocols[0])}) than "
            f"{current.release_id} ({strict_json.dumps(protocols[1])}): look at both, then say `--promote force`"
        )
    if theirs is None or (ours is not None and ours >= theirs - margin):
        return None
    measured = "no AUC" if ours is None else f"an AUC of {ours:.4f}"
    return (
        f"{release.release_id} has {measured}, {current.release_id} {theirs:.4f}, promotion.max_auc_loss "
        f"allows {margin} less: look, then say `--promote force`"
    )
