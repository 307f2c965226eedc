"""An artifact is whole or it is not there."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from model import artifact


def write_note(out: Path | UPath, text: str = "hello", kind: str = "note") -> None:
    with artifact.write(out, kind=kind, inputs={"raw": "abc"}, config={"size": 3}) as draft:
        (draft.path / "note.txt").write_text(text)
        draft.facts["words"] = 1


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    write_note(tmp_path / "a")
    manifest = artifact.read(tmp_path / "a", kind="note")
    assert manifest.facts == {"words": 1}
    assert manifest.inputs == {"raw": "abc"}
    assert manifest.files["note.txt"]["bytes"] == 5
    # sha256("hello"), from any other tool
    assert manifest.files["note.txt"]["sha256"] == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_a_failed_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with artifact.write(tmp_path / "a", kind="note", inputs={}, config={}) as draft:
            (draft.path / "note.txt").write_text("half")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_only_what_sweep_removes(tmp_path: Path) -> None:
    program = f"""
        import os, signal
        from pathlib import Path
        from model import artifact
        with artifact.write(Path({str(tmp_path / "a")!r}), kind="note", inputs={{}}, config={{}}) as draft:
            (draft.path / "note.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(artifact.ArtifactMissing):
        artifact.read(tmp_path / "a", kind="note")
    assert artifact.sweep(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_rebuilt_artifact_is_a_new_one(tmp_path: Path) -> None:
    write_note(tmp_path / "a")
    before = artifact.digest(tmp_path / "a")
    write_note(tmp_path / "a")
    assert artifact.digest(tmp_path / "a") != before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_missing_artifact_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(artifact.ArtifactMissing, match="no finished note artifact"):
        artifact.read(tmp_path / "a", kind="note")
    with pytest.raises(artifact.ArtifactMissing):
        artifact.digest(tmp_path / "a")


def test_another_kind_is_refused(tmp_path: Path) -> None:
    write_note(tmp_path / "a")
    with pytest.raises(artifact.ArtifactMismatch, match="is a note artifact"):
        artifact.read(tmp_path / "a", kind="index")


@pytest.mark.parametrize("damage", ["remove", "grow"])
def test_a_file_that_changed_behind_the_manifest_is_refused(tmp_path: Path, damage: str) -> None:
    write_note(tmp_path / "a")
    file = tmp_path / "a" / "note.txt"
    file.unlink() if damage == "remove" else file.write_text("hello, hello")
    with pytest.raises(artifact.ArtifactMismatch, match="missing or was changed"):
        artifact.read(tmp_path / "a", kind="note")


def test_a_manifest_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / artifact.MANIFEST).write_text(json.dumps({"surprise": 1}))
    with pytest.raises(artifact.ArtifactMismatch, match="is not a manifest"):
        artifact.read(tmp_path, kind="note")


@pytest.fixture(params=["folder", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | UPath:
    """Where an artifact may lie: a folder of this machine, and a store in which nothing can be renamed."""
    return tmp_path / "a" if request.param == "folder" else UPath(f"memory://bucket-{uuid.uuid4().hex}/a")


def test_an_artifact_is_the_same_wherever_it_lies(place: Path | UPath) -> None:
    write_note(place)
    manifest = artifact.read(place, kind="note")
    assert manifest.files["note.txt"]["bytes"] == 5
    assert (place / "note.txt").read_text() == "hello"
    assert artifact.digest(place) == hashlib.sha256((place / "manifest.json").read_bytes()).hexdigest()


def test_where_the_writer_failed_there_is_no_artifact(place: Path | UPath) -> None:
    def fail() -> None:
        with artifact.write(place, kind="note", inputs={}, config={}) as draft:
            (draft.path / "note.txt").write_text("half")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        fail()
    with pytest.raises(artifact.ArtifactMissing):
        artifact.read(place, kind="note")
    assert not place.exists()


def test_a_replaced_artifact_keeps_no_file_of_the_old_one(place: Path | UPath) -> None:
    with artifact.write(place, kind="note", inputs={}, config={}) as draft:
        (draft.path / "deep").mkdir()
        (draft.path / "deep" / "old.txt").write_text("old")
    old = artifact.digest(place)
    write_note(place)
    assert artifact.digest(place) != old
    assert not (place / "deep" / "old.txt").exists()
    assert set(artifact.read(place, kind="note").files) == {"note.txt"}


def test_while_files_are_on_their_way_neither_the_old_nor_the_new_artifact_is_there(monkeypatch) -> None:
    place = UPath(f"memory://bucket-{uuid.uuid4().hex}/a")
    write_note(place)
    sent, seen = type(place.fs).put_file, []

    def put_file(fs: Any, here: str, there: str, **options: Any) -> None:
        with pytest.raises(artifact.ArtifactMissing):
            artifact.read(place, kind="note")
        seen.append(there.rpartition("/")[2])
        sent(fs, here, there, **options)

    monkeypatch.setattr(type(place.fs), "put_file", put_file)
    write_note(place, "hello again")
    assert seen == ["note.txt", "manifest.json"]
    assert artifact.read(place, kind="note").files["note.txt"]["bytes"] == 11
