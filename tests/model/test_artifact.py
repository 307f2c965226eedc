"""An artifact is whole or it is not there."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from model import artifact


def write_note(out: Path, text: str = "hello", kind: str = "note") -> None:
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
