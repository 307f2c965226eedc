"""The index stage: every item with a vector can be found, and what the index misses is measured."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import IndexConfig
from jobs.embeddings import build_index
from model import artifact
from model.vector_index import VectorIndex

WIDTH = 256


@pytest.fixture
def embed(tmp_path: Path) -> Path:
    """600 items over 599 images: i001 has the image of i000."""
    vectors = np.random.default_rng(0).normal(size=(599, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [0, 0, *range(1, 599)]
    with artifact.write(tmp_path / "embed", kind="embed", inputs={}, config={}) as draft:
        np.save(draft.path / "vectors.npy", vectors)
        table = {
            "item_id": [f"i{n:03}" for n in range(600)],
            "image_id": [f"p{row}" for row in rows],
            "row": pa.array(rows, pa.int32()),
        }
        pq.write_table(pa.table(table), draft.path / "items.parquet")
        draft.facts["space_id"] = "s1"
    return tmp_path / "embed"


def test_every_item_is_found_by_its_own_vector_and_twins_by_each_others(embed: Path, tmp_path: Path) -> None:
    build_index.build(embed=embed, out=tmp_path / "out", config=IndexConfig())
    index = VectorIndex.load(tmp_path / "out")
    vectors = np.load(embed / "vectors.npy")
    found, scores = index.search(vectors, 2)
    assert found[0] == ["i000", "i001"]
    assert scores[0].tolist() == [1.0, 1.0]
    assert [row[0] for row in found[1:]] == [f"i{n:03}" for n in range(2, 600)]


def test_the_ids_lie_beside_the_index_in_its_order(embed: Path, tmp_path: Path) -> None:
    build_index.build(embed=embed, out=tmp_path / "out", config=IndexConfig())
    table = pq.read_table(tmp_path / "out" / "items.parquet")
    assert table.column_names == ["item_id", "label", "image_id"]
    assert table.slice(0, 3).to_pydict() == {
        "item_id": ["i000", "i001", "i002"],
        "label": [0, 1, 2],
        "image_id": ["p0", "p0", "p1"],
    }


def test_the_manifest_says_what_the_index_is_and_what_it_misses(embed: Path, tmp_path: Path) -> None:
    manifest = build_index.build(embed=embed, out=tmp_path / "out", config=IndexConfig(recall_queries=50))
    assert manifest.facts == {
        "space_id": "s1",
        "items": 600,
        "kind": "flat",
        "recall_at_10": 1.0,
        "queries": 50,
        "metric": "inner_product",
    }
    assert manifest.inputs == {"embed": artifact.digest(embed)}


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_the_same_inputs_and_seed_give_the_same_bytes(embed: Path, tmp_path: Path, kind: str) -> None:
    config = IndexConfig(kind=kind, recall_queries=20)
    first, second = (build_index.build(embed=embed, out=tmp_path / name, config=config) for name in "ab")
    assert first.files == second.files
    assert first.facts == second.facts
