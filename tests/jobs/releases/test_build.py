"""The release stage binds artifacts of one space, records them once, and survives being killed at its worst moment."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.migrations.migrate import migrate
from jobs.releases import build
from jobs.releases.current import move_up, released, stands
from model import artifact, releases
from model.artifact import ArtifactMismatch, ArtifactMissing
from model.release_database import SchemaMismatch, reading, url_in

STAGES = ("images", "pretrain", "embed", "codebook", "cluster", "index", "materialize", "ctr", "evaluate")
FACTS: Mapping[str, Mapping[str, Any]] = {
    "images": {},
    "codebook": {"space_id": "s1", "codebook_id": "c1"},
    "cluster": {"space_id": "s1", "codebook_id": "c1"},
    "materialize": {"codebook_id": "c1", "as_of": "2024-06-01T00:00:00+00:00"},
    "index": {"space_id": "s1", "recall_at_10": 0.99},
    "ctr": {"space_id": "s1", "best": "lightgbm/cluster_id"},
    "evaluate": {},
}
EVALUATION = {
    "schema": 1,
    "dataset": {"name": "a shop", "sampled_negatives": False},
    "rows": [
        {"model": "lightgbm", "images": "none", "auc": 0.6, "n": 10},
        {"model": "lightgbm", "images": "cluster_id", "auc": 0.65, "n": 10, "cold": {"auc": 0.5}},
    ],
}


def write_stage(workspace: Path, stage: str, **changes: Any) -> Path:
    folder = workspace / stage / "k"
    facts = {**FACTS.get(stage, {"space_id": "s1"}), **changes.get("facts", {})}
    with artifact.write(folder, kind=stage, inputs=changes.get("inputs", {}), config={}) as draft:
        if stage == "evaluate":
            (draft.path / "evaluation.json").write_text(json.dumps(EVALUATION), "utf-8")
        draft.facts.update(facts)
    return folder


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, Path]:
    return {stage: write_stage(tmp_path, stage) for stage in STAGES}


def build_release(workspace: Path, stages: Mapping[str, Path]) -> artifact.Manifest:
    return build.build(**stages, workspace=workspace, out=workspace / "release" / "k")


def recorded(workspace: Path) -> releases.Release:
    """The newest release of a workspace."""
    with reading(url_in(workspace)) as session:
        return releases.list_releases(session)[0]


def test_a_release_names_its_space_its_artifacts_its_model_and_what_was_measured(
    tmp_path: Path, stages: dict[str, Path]
) -> None:
    manifest = build_release(tmp_path, stages)
    found = recorded(tmp_path)
    assert (found.space_id, found.codebook_id, found.ctr_model) == ("s1", "c1", "lightgbm/cluster_id")
    assert found.artifacts == {
        stage: {"path": f"{stage}/k", "digest": artifact.digest(path)} for stage, path in stages.items()
    }
    protocol = {"schema": 1, "dataset": "a shop", "sampled_negatives": False}
    assert found.metrics == {"recall_at_10": 0.99, "protocol": protocol, "auc": 0.65, "n": 10}
    written = json.loads((tmp_path / "release" / "k" / "release.json").read_text("utf-8"))
    assert written == build.document(found)
    assert manifest.facts["release_id"] == found.release_id == written["release_id"]
    assert manifest.inputs == {stage: artifact.digest(path) for stage, path in stages.items()}


def test_building_again_records_nothing_new(tmp_path: Path, stages: dict[str, Path]) -> None:
    build_release(tmp_path, stages)
    first, document = recorded(tmp_path), (tmp_path / "release" / "k" / "release.json").read_bytes()
    build_release(tmp_path, stages)
    assert recorded(tmp_path) == first
    assert (tmp_path / "release" / "k" / "release.json").read_bytes() == document
    with reading(url_in(tmp_path)) as session:
        assert len(releases.list_releases(session)) == 1


def test_another_artifact_makes_another_release(tmp_path: Path, stages: dict[str, Path]) -> None:
    build_release(tmp_path, stages)
    old = recorded(tmp_path)
    write_stage(tmp_path, "index", facts={"recall_at_10": 0.5})
    build_release(tmp_path, stages)
    assert recorded(tmp_path).release_id != old.release_id


def test_recording_a_release_lets_nothing_answer(tmp_path: Path, stages: dict[str, Path]) -> None:
    build_release(tmp_path, stages)
    assert releases.current(url_in(tmp_path)) is None


def test_the_stage_stands_while_the_database_knows_its_release(
    tmp_path: Path, stages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_release(tmp_path, stages)
    made = tmp_path / "release" / "k"
    assert stands(tmp_path, made, {})
    monkeypatch.setenv("COURIER_RELEASES", f"sqlite:///{tmp_path}/other.db")
    assert not stands(tmp_path, made, {})
    build_release(tmp_path, stages)
    with reading(f"sqlite:///{tmp_path}/other.db") as session:
        assert len(releases.list_releases(session)) == 1


def test_a_database_that_an_older_courier_made_is_moved_up_and_one_that_is_not_there_is_not_made(
    tmp_path: Path, stages: dict[str, Path]
) -> None:
    move_up(tmp_path)
    assert not (tmp_path / "catalogue.db").exists()
    build_release(tmp_path, stages)
    migrate(url_in(tmp_path), "0001")
    with pytest.raises(SchemaMismatch, match="run `courier release migrate`"):
        released(tmp_path)
    move_up(tmp_path)
    assert stands(tmp_path, tmp_path / "release" / "k", {})
    assert released(tmp_path) is None


def test_killed_between_the_catalogue_and_the_artifact_it_comes_to_the_same_end(
    tmp_path: Path, stages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "document", die)
    with pytest.raises(KeyboardInterrupt):
        build_release(tmp_path, stages)
    monkeypatch.undo()
    promised = recorded(tmp_path)
    assert not (tmp_path / "release" / "k").exists()
    build_release(tmp_path, stages)
    assert recorded(tmp_path) == promised
    assert json.loads((tmp_path / "release" / "k" / "release.json").read_text("utf-8")) == build.document(promised)


def test_a_workspace_that_moved_still_knows_its_artifacts(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    build_release(before, {stage: write_stage(before, stage) for stage in STAGES})
    before.rename(after)
    for stage, where in recorded(after).artifacts.items():
        assert artifact.digest(after / where["path"]) == where["digest"]
        artifact.read(after / where["path"], kind=stage)


@pytest.mark.parametrize(
    "stage", ["pretrain", "embed", "codebook", "cluster", "index", "ctr", "materialize", "evaluate"]
)
def test_two_spaces_make_no_release(tmp_path: Path, stages: dict[str, Path], stage: str) -> None:
    write_stage(tmp_path, stage, facts={"space_id": "s2"})
    with pytest.raises(ArtifactMismatch, match=f"{stage} s2"):
        build_release(tmp_path, stages)
    assert releases.current(url_in(tmp_path)) is None


@pytest.mark.parametrize("stage", ["codebook", "cluster", "materialize"])
@pytest.mark.parametrize("other", ["c2", None])
def test_two_codebooks_make_no_release(tmp_path: Path, stages: dict[str, Path], stage: str, other: str | None) -> None:
    write_stage(tmp_path, stage, facts={"codebook_id": other})
    with pytest.raises(ArtifactMismatch, match=f"a release is of one codebook, .*{stage} {other or 'none'}"):
        build_release(tmp_path, stages)


def test_a_stage_that_names_no_space_makes_no_release(tmp_path: Path, stages: dict[str, Path]) -> None:
    write_stage(tmp_path, "index", facts={"space_id": None})
    with pytest.raises(ArtifactMismatch, match="index none"):
        build_release(tmp_path, stages)


def test_a_stage_made_from_another_input_makes_no_release(tmp_path: Path, stages: dict[str, Path]) -> None:
    write_stage(tmp_path, "index", inputs={"embed": "an older digest", "elsewhere": "x"})
    with pytest.raises(ArtifactMismatch, match="index was made from another embed than the release's: rebuild index"):
        build_release(tmp_path, stages)


def test_what_is_pinned_may_be_of_earlier_pictures_and_vectors(tmp_path: Path, stages: dict[str, Path]) -> None:
    write_stage(tmp_path, "pretrain", inputs={"images/pictures": "those of last month"})
    write_stage(tmp_path, "codebook", inputs={"embed": "the vectors of last month"})
    build_release(tmp_path, stages)
    assert recorded(tmp_path).artifacts["codebook"]["path"] == "codebook/k"


def test_a_missing_artifact_is_told(tmp_path: Path, stages: dict[str, Path]) -> None:
    (stages["ctr"] / artifact.MANIFEST).unlink()
    with pytest.raises(ArtifactMissing, match="no finished ctr artifact"):
        build_release(tmp_path, stages)
