"""The cluster stage fits on what was shown before the validation period, and gives every usable item an ID."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import ClusterConfig
from jobs.embeddings import cluster
from jobs.embeddings.cluster import NothingToFit
from model import artifact
from model.artifact import ArtifactMissing

CUT = datetime(2024, 3, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)
WIDTH = 256


def axis(number: int) -> npt.NDArray[np.float32]:
    return np.eye(WIDTH, dtype=np.float32)[number]


def write_embed(folder: Path, vectors: npt.NDArray[np.float32], rows: dict[str, int]) -> Path:
    with artifact.write(folder, kind="embed", inputs={}, config={}) as draft:
        np.save(draft.path / "vectors.npy", vectors)
        items = sorted(rows)
        table = {
            "item_id": items,
            "image_id": [f"p{rows[item]}" for item in items],
            "row": pa.array([rows[item] for item in items], pa.int32()),
        }
        pq.write_table(pa.table(table), draft.path / "items.parquet")
        draft.facts["space_id"] = "s1"
    return folder


def write_sequences(folder: Path, shown: dict[str, datetime]) -> Path:
    with artifact.write(folder, kind="sequences", inputs={}, config={}) as draft:
        times = pa.array(list(shown.values()), pa.timestamp("us", tz="UTC"))
        (draft.path / "impressions").mkdir()
        table = pa.table({"item_id": list(shown), "request_time": times})
        pq.write_table(table, draft.path / "impressions" / "part-0.parquet")
        draft.facts["splits"] = {"valid_start": CUT.isoformat()}
    return folder


def cluster_ids(out: Path) -> dict[str, int]:
    table = pq.read_table(out / "items.parquet")
    assert table.schema.field("cluster_id").type == pa.int32()
    return dict(zip(*(table[name].to_pylist() for name in ("item_id", "cluster_id")), strict=True))


def test_what_is_shown_at_the_cut_or_later_shapes_no_cluster(tmp_path: Path) -> None:
    embed = write_embed(tmp_path / "embed", np.stack([axis(n) for n in range(4)]), {f"i{n}": n for n in range(4)})
    shown = {"i0": CUT - TICK, "i1": CUT - timedelta(days=9), "i2": CUT, "i9": CUT - TICK}
    sequences = write_sequences(tmp_path / "sequences", shown)
    manifest = cluster.build(embed=embed, sequences=sequences, out=tmp_path / "out", config=ClusterConfig(clusters=8))
    centroids = np.load(tmp_path / "out" / "centroids.npy")
    assert {int(row.argmax()) for row in centroids} == {0, 1}
    assert (manifest.facts["fitted_on"], manifest.facts["clusters"]) == (2, 2)
    assert manifest.facts["vectors"] == 2 + manifest.facts["not_shown_in_training"]
    assert set(cluster_ids(tmp_path / "out")) == {"i0", "i1", "i2", "i3"}


def test_items_that_share_an_image_share_a_cluster_and_count_once_in_the_fit(tmp_path: Path) -> None:
    rows = {"a": 0, "b": 0, "c": 0, "d": 1}
    embed = write_embed(tmp_path / "embed", np.stack([axis(0), axis(1)]), rows)
    sequences = write_sequences(tmp_path / "sequences", dict.fromkeys(rows, CUT - TICK))
    facts = cluster.build(
        embed=embed, sequences=sequences, out=tmp_path / "out", config=ClusterConfig(clusters=2)
    ).facts
    ids = cluster_ids(tmp_path / "out")
    assert ids["a"] == ids["b"] == ids["c"] != ids["d"]
    assert (facts["vectors"], facts["fitted_on"], facts["not_shown_in_training"]) == (2, 2, 0)
    assert facts["largest_share"] == 0.75
    assert facts["occupied"] == 2
    assert facts["inertia"] == 0.0
    assert facts["space_id"] == "s1"


def test_the_same_inputs_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(300, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = {f"i{n:03}": n for n in range(300)}
    embed = write_embed(tmp_path / "embed", vectors, rows)
    sequences = write_sequences(tmp_path / "sequences", dict.fromkeys(rows, CUT - TICK))
    config = ClusterConfig(clusters=16, iterations=5)
    first, second = (
        cluster.build(embed=embed, sequences=sequences, out=tmp_path / name, config=config) for name in "ab"
    )
    assert first.files == second.files
    assert first.facts == second.facts
    assert first.config["clusters"] == 16
    assert first.inputs == {"embed": artifact.digest(embed), "sequences": artifact.digest(sequences)}


def test_a_catalogue_that_was_never_shown_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    embed = write_embed(tmp_path / "embed", axis(0)[None], {"a": 0})
    sequences = write_sequences(tmp_path / "sequences", {"a": CUT})
    with pytest.raises(NothingToFit, match=r"no item was shown before 20\S+, where validation begins: bring events"):
        cluster.build(embed=embed, sequences=sequences, out=tmp_path / "out", config=ClusterConfig())
    assert not (tmp_path / "out").exists()


def test_items_shown_of_which_none_has_a_vector_are_told_by_number_and_name(tmp_path: Path) -> None:
    embed = write_embed(tmp_path / "embed", axis(0)[None], {"29176": 0})
    sequences = write_sequences(tmp_path / "sequences", dict.fromkeys(["7.0", "29176.0"], CUT - TICK))
    told = r"none of the 2 items shown before 20\S+ is among the 1 with a vector \(shown is '29176.0', a vector has '29"
    with pytest.raises(NothingToFit, match=told):
        cluster.build(embed=embed, sequences=sequences, out=tmp_path / "out", config=ClusterConfig())


def test_a_missing_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no finished embed artifact"):
        cluster.build(embed=tmp_path, sequences=tmp_path, out=tmp_path / "out", config=ClusterConfig())


def test_the_manifest_says_the_whole_config_and_what_was_fitted_on(tmp_path: Path) -> None:
    embed = write_embed(tmp_path / "embed", axis(0)[None], {"a": 0})
    sequences = write_sequences(tmp_path / "sequences", {"a": CUT - TICK})
    cluster.build(embed=embed, sequences=sequences, out=tmp_path / "out", config=ClusterConfig(clusters=4))
    manifest = artifact.read(tmp_path / "out", kind="cluster")
    assert manifest.facts["fitted_on"] == 1
    assert manifest.config == {
        "clusters": 4,
        "later_clusters": 0,
        "codebooks": 1,
        "starts": 1,
        "iterations": 25,
        "seed": 0,
    }
