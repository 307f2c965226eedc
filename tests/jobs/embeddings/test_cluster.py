"""A codebook is fitted on what was shown before the validation period, and every usable item gets an ID in it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import CodebookConfig
from jobs.embeddings import cluster, codebook
from jobs.embeddings.codebook import NothingToFit
from model import artifact
from model.artifact import ArtifactMismatch, ArtifactMissing, Manifest

CUT = datetime(2024, 3, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)
WIDTH = 256


def axis(number: int) -> npt.NDArray[np.float32]:
    return np.eye(WIDTH, dtype=np.float32)[number]


def write_embed(folder: Path, vectors: npt.NDArray[np.float32], rows: dict[str, int], space_id: str = "s1") -> Path:
    with artifact.write(folder, kind="embed", inputs={}, config={}) as draft:
        np.save(draft.path / "vectors.npy", vectors)
        items = sorted(rows)
        table = {
            "item_id": items,
            "image_id": [f"p{rows[item]}" for item in items],
            "row": pa.array([rows[item] for item in items], pa.int32()),
        }
        pq.write_table(pa.table(table), draft.path / "items.parquet")
        draft.facts["space_id"] = space_id
    return folder


def write_sequences(folder: Path, shown: dict[str, datetime]) -> Path:
    with artifact.write(folder, kind="sequences", inputs={}, config={}) as draft:
        times = pa.array(list(shown.values()), pa.timestamp("us", tz="UTC"))
        (draft.path / "impressions").mkdir()
        table = pa.table({"item_id": list(shown), "request_time": times})
        pq.write_table(table, draft.path / "impressions" / "part-0.parquet")
        draft.facts["splits"] = {"valid_start": CUT.isoformat()}
    return folder


def fit_and_cluster(embed: Path, sequences: Path, out: Path, config: CodebookConfig) -> tuple[Manifest, Manifest]:
    """The manifests of OUT/codebook and OUT/cluster."""
    fitted = codebook.build(embed=embed, sequences=sequences, out=out / "codebook", config=config)
    return fitted, cluster.build(embed=embed, codebook=out / "codebook", out=out / "cluster")


def cluster_ids(out: Path) -> dict[str, int]:
    table = pq.read_table(out / "items.parquet")
    assert table.schema.field("cluster_id").type == pa.int32()
    return dict(zip(*(table[name].to_pylist() for name in ("item_id", "cluster_id")), strict=True))


def test_what_is_shown_at_the_cut_or_later_shapes_no_cluster(tmp_path: Path) -> None:
    embed = write_embed(tmp_path / "embed", np.stack([axis(n) for n in range(4)]), {f"i{n}": n for n in range(4)})
    shown = {"i0": CUT - TICK, "i1": CUT - timedelta(days=9), "i2": CUT, "i9": CUT - TICK}
    sequences = write_sequences(tmp_path / "sequences", shown)
    fitted, clustered = fit_and_cluster(embed, sequences, tmp_path, CodebookConfig(clusters=8))
    centroids = np.load(tmp_path / "codebook" / "centroids.npy")
    assert {int(row.argmax()) for row in centroids} == {0, 1}
    assert (fitted.facts["fitted_on"], fitted.facts["codebooks"]) == (2, [2])
    assert fitted.facts["vectors"] == 2 + fitted.facts["not_shown_in_training"]
    assert fitted.facts["trained_until"] == CUT.isoformat()
    assert clustered.facts["items"] == 4
    assert set(cluster_ids(tmp_path / "cluster")) == {"i0", "i1", "i2", "i3"}


def test_items_that_share_an_image_share_a_cluster_and_count_once_in_the_fit(tmp_path: Path) -> None:
    rows = {"a": 0, "b": 0, "c": 0, "d": 1}
    embed = write_embed(tmp_path / "embed", np.stack([axis(0), axis(1)]), rows)
    sequences = write_sequences(tmp_path / "sequences", dict.fromkeys(rows, CUT - TICK))
    fitted, clustered = fit_and_cluster(embed, sequences, tmp_path, CodebookConfig(clusters=2))
    ids = cluster_ids(tmp_path / "cluster")
    assert ids["a"] == ids["b"] == ids["c"] != ids["d"]
    facts = fitted.facts
    assert (facts["vectors"], facts["fitted_on"], facts["not_shown_in_training"]) == (2, 2, 0)
    assert (facts["inertia"], facts["space_id"]) == (0.0, "s1")
    assert (facts["continues"], facts["overlap"], facts["churn"]) == (None, 0, None)
    facts = clustered.facts
    assert (facts["largest_share"], facts["occupied"], facts["gini"]) == ([0.75], [2], [0.25])
    assert facts["entropy"] == [round(0.75 * np.log2(4 / 3) + 0.25 * 2, 4)]
    assert facts["collisions"] == 0.0  # of two images
    assert (facts["space_id"], facts["codebook_id"]) == ("s1", fitted.facts["codebook_id"])


def test_the_same_inputs_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(300, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = {f"i{n:03}": n for n in range(300)}
    embed = write_embed(tmp_path / "embed", vectors, rows)
    sequences = write_sequences(tmp_path / "sequences", dict.fromkeys(rows, CUT - TICK))
    config = CodebookConfig(clusters=16, iterations=5)
    first, second = (fit_and_cluster(embed, sequences, tmp_path / name, config) for name in "ab")
    assert [one.files for one in first] == [one.files for one in second]
    assert [one.facts for one in first] == [one.facts for one in second]
    fitted, clustered = first
    assert fitted.config["clusters"] == 16
    assert fitted.inputs == {"embed": artifact.digest(embed), "sequences": artifact.digest(sequences)}
    assert clustered.inputs == {
        "embed": artifact.digest(embed),
        "codebook": artifact.digest(tmp_path / "a" / "codebook"),
    }


def test_a_catalogue_that_was_never_shown_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    embed = write_embed(tmp_path / "embed", axis(0)[None], {"a": 0})
    sequences = write_sequences(tmp_path / "sequences", {"a": CUT})
    with pytest.raises(NothingToFit, match=r"no item was shown before 20\S+, where validation begins: bring events"):
        codebook.build(embed=embed, sequences=sequences, out=tmp_path / "out", config=CodebookConfig())
    assert not (tmp_path / "out").exists()


def test_items_shown_of_which_none_has_a_vector_are_told_by_number_and_name(tmp_path: Path) -> None:
    embed = write_embed(tmp_path / "embed", axis(0)[None], {"29176": 0})
    sequences = write_sequences(tmp_path / "sequences", dict.fromkeys(["7.0", "29176.0"], CUT - TICK))
    told = r"none of the 2 items shown before 20\S+ is among the 1 with a vector \(shown is '29176.0', a vector has '29"
    with pytest.raises(NothingToFit, match=told):
        codebook.build(embed=embed, sequences=sequences, out=tmp_path / "out", config=CodebookConfig())


def test_a_missing_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no finished embed artifact"):
        codebook.build(embed=tmp_path, sequences=tmp_path, out=tmp_path / "out", config=CodebookConfig())


def test_the_manifest_says_the_whole_config_and_what_was_fitted_on(tmp_path: Path) -> None:
    embed = write_embed(tmp_path / "embed", axis(0)[None], {"a": 0})
    sequences = write_sequences(tmp_path / "sequences", {"a": CUT - TICK})
    codebook.build(embed=embed, sequences=sequences, out=tmp_path / "out", config=CodebookConfig(clusters=4))
    manifest = artifact.read(tmp_path / "out", kind="codebook")
    assert manifest.facts["fitted_on"] == 1
    assert manifest.config == {
        "clusters": 4,
        "later_clusters": 0,
        "codebooks": 1,
        "starts": 1,
        "iterations": 25,
        "seed": 0,
    }


def drawn(count: int, seed: int) -> npt.NDArray[np.float32]:
    """Unit vectors in eight groups."""
    rng = np.random.default_rng(seed)
    vectors = np.eye(WIDTH)[rng.integers(0, 8, count)] + 0.02 * rng.normal(size=(count, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("space_id", ["s1", "s2"])
def test_a_codebook_that_continues_another_keeps_the_codes_of_items_that_both_know(
    tmp_path: Path, space_id: str
) -> None:
    vectors, config = drawn(200, 0), CodebookConfig(clusters=8, starts=3)
    rows = {f"i{n:03}": n for n in range(160)}
    sequences = write_sequences(tmp_path / "sequences", dict.fromkeys(rows, CUT - TICK))
    old, _ = fit_and_cluster(
        write_embed(tmp_path / "old" / "embed", vectors[:160], rows), sequences, tmp_path / "old", config
    )
    # In the new catalogue 40 items are gone and 40 came, which makes other clusters the largest.
    later = {f"i{n:03}": n - 40 for n in range(40, 200)}
    embed = write_embed(tmp_path / "new" / "embed", vectors[40:], later, space_id)
    shown = write_sequences(tmp_path / "later", dict.fromkeys(later, CUT - TICK))
    released = {name: tmp_path / "old" / name for name in ("codebook", "cluster")}
    out = tmp_path / "new" / "codebook"
    facts = codebook.build(embed=embed, sequences=shown, out=out, config=config, released=released).facts
    assert (facts["continues"], facts["overlap"], facts["churn"]) == (old.facts["codebook_id"], 120, 0.0)
    cluster.build(embed=embed, codebook=out, out=tmp_path / "new" / "cluster")
    before, after = (cluster_ids(tmp_path / when / "cluster") for when in ("old", "new"))
    assert {item: after[item] for item in before.keys() & after.keys()} == {
        item: before[item] for item in before.keys() & after.keys()
    }


def test_churn_is_counted_over_the_items_that_both_know(tmp_path: Path) -> None:
    rows = {f"i{n}": n for n in range(6)}
    sequences = write_sequences(tmp_path / "sequences", dict.fromkeys(rows, CUT - TICK))
    config = CodebookConfig(clusters=2)
    groups = np.stack([axis(0)] * 3 + [axis(1)] * 3)
    fit_and_cluster(write_embed(tmp_path / "embed", groups, rows), sequences, tmp_path, config)
    moved = write_embed(tmp_path / "moved", np.stack([axis(0)] * 4 + [axis(1)] * 2), rows)
    released = {name: tmp_path / name for name in ("codebook", "cluster")}
    facts = codebook.build(
        embed=moved, sequences=sequences, out=tmp_path / "out", config=config, released=released
    ).facts
    assert (facts["overlap"], facts["churn"]) == (6, round(1 / 6, 4))


def test_a_codebook_of_another_space_is_refused(tmp_path: Path) -> None:
    sequences = write_sequences(tmp_path / "sequences", {"a": CUT - TICK})
    embed = write_embed(tmp_path / "embed", axis(0)[None], {"a": 0})
    codebook.build(embed=embed, sequences=sequences, out=tmp_path / "codebook", config=CodebookConfig(clusters=4))
    other = write_embed(tmp_path / "other", axis(0)[None], {"a": 0}, "s2")
    with pytest.raises(ArtifactMismatch, match=r"codebook is of space s1, \S*other of s2: rebuild the codebook"):
        cluster.build(embed=other, codebook=tmp_path / "codebook", out=tmp_path / "out")
