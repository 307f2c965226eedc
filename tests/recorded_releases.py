"""Small releases: their artifacts with vectors drawn from a seed, recorded and promoted without the stages' work."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contract import EMBEDDING_DIM
from infra.migrations.migrate import migrate
from model import artifact, releases
from model.release_database import url_in, writing
from model.releases import Release
from model.vector_index import VectorIndex

ITEMS = ("i1", "i2", "i3", "i4")
EVEN = {"deviation": 0.9, "effective_rank": 50.0, "alignment": 0.5, "uniformity": -2.0}
AT = datetime(2024, 6, 1, tzinfo=UTC)


def let_answer(workspace: Path, release: Release, *, url: str | None = None) -> Release:
    """Record a release in the workspace's database, or in that at `url`, and promote it."""
    where = url or url_in(workspace)
    migrate(where)
    with writing(where) as session:
        recorded = releases.record(session, release, by="ann")
        releases.promote(session, recorded.release_id, now=release.created_at, by="ann")
    return recorded


def drawn_vectors(seed: int, count: int = len(ITEMS), width: int = EMBEDDING_DIM) -> np.ndarray:
    """Unit vectors (count, width) float32."""
    drawn = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def write_stages(
    workspace: Path,
    version: str = "k",
    *,
    seed: int = 0,
    items: Sequence[str] = ITEMS,
    width: int = EMBEDDING_DIM,
    auc: float | None = 0.6,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Path]:
    """The artifacts of a release as the stages write them, at WORKSPACE/<stage>/<version>, each made of the others.

    seed: of the vectors, and the names of their space and codebook.  facts: stage -> facts of it that shall be others.
    """
    folders = {stage: workspace / stage / version for stage in STAGES}
    vectors, space, codebook = drawn_vectors(seed, len(items), width), f"s{seed}", f"c{seed}"
    ids = pa.array(items, pa.string())

    def finish(draft: artifact.Draft[Path], stage: str, **found: Any) -> None:
        draft.facts.update({**found, **(facts or {}).get(stage, {})})

    def of(*sources: str) -> dict[str, str]:
        return {source: artifact.digest(folders[source]) for source in sources}

    with artifact.write(folders["images"], kind="images", inputs={}, config={}) as draft:
        rows = {name: pa.nulls(len(ids), pa.string()) for name in ("title", "category", "image_uri", "duplicate_of")}
        rows |= {"item_id": ids, "image_id": ids, "status": pa.array(["ok"] * len(ids))}
        pq.write_table(pa.table(rows), draft.path / "items.parquet")
        finish(draft, "images", version=version)
    with artifact.write(folders["pretrain"], kind="pretrain", inputs={}, config={"method": "courier"}) as draft:
        (draft.path / "weights").write_bytes(vectors.tobytes()[:100])
        finish(draft, "pretrain", space_id=space, collapse=EVEN, distinct_images=1000)
    with artifact.write(folders["embed"], kind="embed", inputs=of("pretrain", "images"), config={}) as draft:
        np.save(draft.path / "vectors.npy", vectors)
        places = pa.array(range(len(ids)), pa.int64())
        pq.write_table(pa.table({"item_id": ids, "image_id": ids, "row": places}), draft.path / "items.parquet")
        finish(draft, "embed", space_id=space)
    with artifact.write(folders["codebook"], kind="codebook", inputs=of("embed"), config={}) as draft:
        np.save(draft.path / "centroids.npy", vectors[:1])
        finish(draft, "codebook", space_id=space, codebook_id=codebook)
    with artifact.write(folders["cluster"], kind="cluster", inputs=of("embed", "codebook"), config={}) as draft:
        pq.write_table(pa.table({"item_id": ids, "cluster_id": [seed] * len(ids)}), draft.path / "items.parquet")
        finish(draft, "cluster", space_id=space, codebook_id=codebook)
    with artifact.write(folders["features"], kind="features", inputs=of("embed", "cluster"), config={}) as draft:
        for view in ("item_embedding", "item_cluster"):
            (draft.path / view).mkdir()
            pq.write_table(
                pa.table({"item_id": ids, "codebook_id": [codebook] * len(ids)}), draft.path / view / "part-0.parquet"
            )
        finish(draft, "features", space_id=space, codebook_id=codebook)
    with artifact.write(folders["index"], kind="index", inputs=of("embed"), config={}) as draft:
        VectorIndex.build(vectors, list(items)).save(draft.path)
        finish(draft, "index", space_id=space, recall_at_10=1.0)
    with artifact.write(folders["materialize"], kind="materialize", inputs=of("features"), config={}) as draft:
        finish(draft, "materialize", space_id=space, codebook_id=codebook)
    with artifact.write(folders["ctr"], kind="ctr", inputs=of("embed"), config={}) as draft:
        (draft.path / "weights").write_text(f"{seed} {auc}", "utf-8")
        finish(draft, "ctr", space_id=space, best="lightgbm/none")
    with artifact.write(folders["evaluate"], kind="evaluate", inputs=of("ctr", "embed"), config={}) as draft:
        evaluation = {
            "schema": 1,
            "dataset": {"name": "a shop", "sampled_negatives": False},
            "rows": [{"model": "lightgbm", "images": "none", "auc": auc, "n": 10}],
        }
        (draft.path / "evaluation.json").write_text(json.dumps(evaluation), "utf-8")
        finish(draft, "evaluate", space_id=space)
    return folders


STAGES = ("images", "pretrain", "embed", "codebook", "cluster", "features", "index", "materialize", "ctr", "evaluate")


def build_release(workspace: Path, folders: Mapping[str, Path], version: str = "k") -> str:
    """Record the release that these artifacts make, as the release stage does; returns its id."""
    from jobs.releases import build

    named = {stage: path for stage, path in folders.items() if stage != "features"}
    return str(build.build(**named, workspace=workspace, out=workspace / "release" / version).facts["release_id"])
