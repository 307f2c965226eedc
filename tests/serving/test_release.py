"""A server that lacks a release's artifacts fetches them, whole and as recorded, or says in one sentence why not."""

import shutil
from pathlib import Path

import pytest
from recorded_releases import AT, EVEN, build_release, write_stages
from upath import UPath

from jobs.releases.commands import release_main
from model import artifact, releases
from model.artifact import ArtifactMismatch, ArtifactMissing
from model.release_database import CATALOGUE_FILE, url_in, writing
from serving import app
from serving.release import open_release
from serving.settings import read_settings

STAGES = ("images", "pretrain", "embed", "codebook", "cluster", "index", "materialize", "ctr", "evaluate")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose release answers."""
    folder = tmp_path_factory.mktemp("made")
    made = build_release(folder, write_stages(folder))
    with writing(url_in(folder)) as session:
        releases.promote(session, made, now=AT, by="ann")
    return folder


@pytest.fixture
def made(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "made"))


@pytest.fixture
def bare(made: Path, tmp_path: Path) -> Path:
    """Another host's workspace: the same database, no artifact."""
    (tmp_path / "bare").mkdir()
    shutil.copy(made / CATALOGUE_FILE, tmp_path / "bare" / CATALOGUE_FILE)
    return tmp_path / "bare"


def push(made: Path, place: str) -> None:
    with pytest.raises(SystemExit) as stop:
        release_main(["push", "--to", place, "--workspace", str(made)])
    assert not stop.value.code


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that hosts share, or a bucket."""
    return str(tmp_path / "shared") if request.param == "folder" else str(request.getfixturevalue("bucket"))


def test_what_a_server_lacks_is_fetched_once_and_is_what_was_recorded(made: Path, bare: Path, place: str) -> None:
    push(made, place)
    opened = open_release(bare, artifacts=place)
    assert set(opened.folders) == set(STAGES)
    for stage in STAGES:
        artifact.verify(bare / stage / "k", kind=stage)
        assert artifact.digest(bare / stage / "k") == artifact.digest(made / stage / "k")
    assert open_release(bare).release_id == opened.release_id, "all of it is here now"


def test_what_was_sent_already_is_not_sent_again(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(made, str(tmp_path / "shared"))
    (tmp_path / "shared" / "ctr" / "k" / artifact.MANIFEST).unlink()
    push(made, str(tmp_path / "shared"))
    assert capsys.readouterr().out.split("\n")[:2] == [f"{open_release(made).release_id}: sent {n}" for n in (9, 1)]


def test_bytes_that_were_changed_on_the_way_are_refused_and_leave_nothing(made: Path, bare: Path, place: str) -> None:
    push(made, place)
    there = (Path(place) if "://" not in place else UPath(place)) / "index" / "k" / "index.faiss"
    there.write_bytes(there.read_bytes()[:-1] + b"x")
    with pytest.raises(
        ArtifactMismatch, match=r"index.faiss has other bytes than its manifest says: send the artifact"
    ):
        open_release(bare, artifacts=place)
    assert list((bare / "index").iterdir()) == []


def test_another_artifact_at_the_same_path_is_refused(made: Path, bare: Path, tmp_path: Path) -> None:
    push(made, str(tmp_path / "shared"))
    write_stages(tmp_path / "shared", seed=1)
    with pytest.raises(ArtifactMismatch, match="is another artifact than r"):
        open_release(bare, artifacts=str(tmp_path / "shared"))


def test_what_is_nowhere_is_one_sentence(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no finished artifact at"):
        open_release(bare, artifacts=str(tmp_path / "nowhere"))
    with pytest.raises(ArtifactMissing, match="no finished images artifact"):
        open_release(bare)


def test_an_index_of_another_width_than_the_contracts_does_not_serve(tmp_path: Path) -> None:
    made = build_release(tmp_path, write_stages(tmp_path, width=8, facts={"pretrain": {"collapse": EVEN}}))
    with writing(url_in(tmp_path)) as session:
        releases.promote(session, made, now=AT, by="ann")
    with pytest.raises(ArtifactMismatch, match="is 8 wide, contract says 256: rebuild the index"):
        app.load_world(read_settings(workspace=tmp_path))
