"""Sabotage: each way in which a release can be damaged or mixed is found by `courier release verify`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from recorded_releases import AT, ITEMS, build_release, let_answer, write_stages

from jobs.releases.verify import faults
from model import artifact
from model.release_database import reading, url_in
from model.releases import Release, find

Folders = dict[str, Path]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of stages, `a` and `b`, and a release of the first."""
    folder = tmp_path_factory.mktemp("two")
    write_stages(folder, "b", seed=1)
    (folder / "id").write_text(build_release(folder, write_stages(folder, "a"), "a"), "utf-8")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "ws"))


def release(workspace: Path) -> Release:
    with reading(url_in(workspace)) as session:
        return find(session, (workspace / "id").read_text("utf-8"))


def truncate_vectors(workspace: Path) -> None:
    path = workspace / "embed" / "a" / "vectors.npy"
    path.write_bytes(path.read_bytes()[:-4])


def change_a_byte(workspace: Path) -> None:
    path = workspace / "index" / "a" / "index.faiss"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def half_write(workspace: Path) -> None:
    (workspace / "ctr" / "a" / artifact.MANIFEST).unlink()


def cut_a_manifest(workspace: Path) -> None:
    path = workspace / "ctr" / "a" / artifact.MANIFEST
    path.write_text(path.read_text("utf-8")[:50], "utf-8")


def swap(stage: str) -> Callable[[Path], None]:
    def swapped(workspace: Path) -> None:
        shutil.rmtree(workspace / stage / "a")
        shutil.copytree(workspace / stage / "b", workspace / stage / "a")

    return swapped


def test_a_whole_release_has_no_fault(workspace: Path) -> None:
    assert faults(workspace, release(workspace)) == []


@pytest.mark.parametrize(
    ("sabotage", "sentence"),
    [
        (truncate_vectors, "embed/a/vectors.npy is missing or was changed after it was built: rebuild the embed"),
        (change_a_byte, "index/a/index.faiss has other bytes than when it was built: rebuild the index artifact"),
        (half_write, "no finished ctr artifact at"),
        (cut_a_manifest, "ctr/a/manifest.json is not a manifest"),
        (swap("index"), "index/a was rebuilt after r"),
        (swap("cluster"), "cluster/a was rebuilt after r"),
    ],
)
def test_damage_since_it_was_recorded_is_found(
    workspace: Path, sabotage: Callable[[Path], None], sentence: str
) -> None:
    named = release(workspace)
    sabotage(workspace)
    [said] = faults(workspace, named)
    assert sentence in said
    assert "\n" not in said


def recorded(workspace: Path, folders: Folders, space: str = "s0") -> Release:
    """A release of whatever these folders hold, past the checks of the release stage."""
    named = {
        stage: {"path": folder.relative_to(workspace).as_posix(), "digest": artifact.digest(folder)}
        for stage, folder in folders.items()
        if stage != "features"
    }
    made = Release(release_id="r1", created_at=AT, space_id=space, ctr_model="m/n", artifacts=named, metrics={})
    return let_answer(workspace, made)


@pytest.mark.parametrize("stage", ["cluster", "index", "embed", "ctr"])
def test_a_part_of_another_space_is_found(workspace: Path, stage: str) -> None:
    folders = {each: workspace / each / "a" for each in release(workspace).artifacts}
    said = faults(workspace, recorded(workspace, folders | {stage: workspace / stage / "b"}))
    assert any(f"{stage} s1" in sentence for sentence in said), said
    assert any("was made from another" in sentence for sentence in said), said


def test_a_release_of_another_space_than_its_artifacts_is_found(workspace: Path) -> None:
    folders = {each: workspace / each / "a" for each in release(workspace).artifacts}
    assert faults(workspace, recorded(workspace, folders, "s7")) == ["its artifacts are of space s0, it of s7"]


def test_vectors_of_another_width_than_the_contracts_are_found(tmp_path: Path) -> None:
    [said] = faults(tmp_path, recorded(tmp_path, write_stages(tmp_path, width=8)))
    assert said.endswith("is 8 wide, contract says 256: run `courier run --from embed`")


def test_an_index_of_other_items_is_found(tmp_path: Path) -> None:
    folders, other = write_stages(tmp_path), write_stages(tmp_path, "more", items=(*ITEMS, "i9"))
    said = faults(tmp_path, recorded(tmp_path, folders | {"index": other["index"]}))
    assert any("1 items are in the index and not in embed (as 'i9')" in sentence for sentence in said)
