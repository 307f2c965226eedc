"""An artifact is whole or it is not there."""

import hashlib
import json
import math
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
from model.artifact import AnyPath

WRITERS = {"alone": artifact.write, "together": artifact.write_together}


def write_note(out: AnyPath, text: str = "hello", kind: str = "note", how: str = "alone") -> None:
    with WRITERS[how](out, kind=kind, inputs={"raw": "abc"}, config={"size": 3}) as draft:
        (draft.path / "note.txt").write_text(text, "utf-8")
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
            (draft.path / "note.txt").write_text("half", "utf-8")
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
            (draft.path / "note.txt").write_text("half", "utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(artifact.ArtifactMissing):
        artifact.read(tmp_path / "a", kind="note")
    (tmp_path / f".note.json-12345678{artifact.PARTIAL}").write_text("ha")  # as of a killed write_whole
    assert artifact.sweep(tmp_path) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_rebuild_of_the_same_content_is_the_same_artifact_whenever_and_wherever_it_was_made(tmp_path: Path) -> None:
    for name, raw in (("a", "abc"), ("elsewhere/b", "another input")):
        out = tmp_path / name
        with artifact.write(out, kind="note", inputs={"raw": raw}, config={"made": name}) as draft:
            (draft.path / "note.txt").write_text("hello", "utf-8")
            (draft.path / "log.txt").write_text(name, "utf-8")
            draft.facts["words"], draft.notes["seconds"], draft.log_files = 1, len(name), ("log.txt",)
    assert artifact.digest(tmp_path / "a") == artifact.digest(tmp_path / "elsewhere" / "b")
    assert artifact.read(tmp_path / "a", kind="note").notes == {"seconds": 1}


@pytest.mark.parametrize("what", ["text", "words", "kind", "name"])
def test_other_content_is_another_artifact(tmp_path: Path, what: str) -> None:
    write_note(tmp_path / "a")
    with artifact.write(tmp_path / "b", kind="memo" if what == "kind" else "note", inputs={}, config={}) as draft:
        file = draft.path / ("memo.txt" if what == "name" else "note.txt")
        file.write_text("hullo" if what == "text" else "hello", "utf-8")
        draft.facts["words"] = 2 if what == "words" else 1
    assert artifact.digest(tmp_path / "a") != artifact.digest(tmp_path / "b")


def test_a_fact_that_is_not_defined_is_null_in_a_manifest_that_every_reader_takes(tmp_path: Path) -> None:
    with artifact.write(tmp_path / "a", kind="note", inputs={}, config={}) as draft:
        draft.facts |= {"entropy": math.nan, "losses": [0.5, math.inf]}
        draft.notes["speed"] = -math.inf
    words: list[str] = []
    json.loads((tmp_path / "a" / artifact.MANIFEST).read_text("utf-8"), parse_constant=words.append)
    assert words == []
    manifest = artifact.read(tmp_path / "a", kind="note")
    assert manifest.facts == {"entropy": None, "losses": [0.5, None]}
    assert manifest.notes == {"speed": None}


def test_a_part_has_a_digest_of_its_own_and_what_is_no_part_that_of_the_whole(tmp_path: Path) -> None:
    with artifact.write(tmp_path / "a", kind="note", inputs={}, config={}) as draft:
        draft.parts["words"] = "1234"
    whole = artifact.digest(tmp_path / "a")
    named = {"a/words": tmp_path / "a", "a/letters": tmp_path / "a", "a": tmp_path / "a"}
    assert artifact.digests(named) == {"a/words": "1234", "a/letters": whole, "a": whole}


REPLACING = """
    import os, signal, sys
    from pathlib import Path
    from model import artifact
    if sys.argv[2] == "no exchange":
        artifact._exchange = lambda one, other: False
    steps, rename = int(sys.argv[3]), Path.rename
    def counted(self, target):
        global steps
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        steps -= 1
        return rename(self, target)
    Path.rename = counted
    if sys.argv[2] == "exchange":
        exchange = artifact._exchange
        def killed(one, other):
            assert exchange(one, other)
            os.kill(os.getpid(), signal.SIGKILL)
        artifact._exchange = killed
    with artifact.write(Path(sys.argv[1]), kind="note", inputs={}, config={}) as draft:
        (draft.path / "note.txt").write_text("new", "utf-8")
"""


@pytest.mark.parametrize(
    ("how", "renames", "left"), [("exchange", 9, "new"), ("no exchange", 0, "hello"), ("no exchange", 1, "hello")]
)
def test_a_crash_inside_a_replace_leaves_the_old_or_the_new_artifact(
    tmp_path: Path, how: str, renames: int, left: str
) -> None:
    write_note(tmp_path / "a-1")  # a hyphen, as in a rebuilt stage's name
    command = [sys.executable, "-c", textwrap.dedent(REPLACING), str(tmp_path / "a-1"), how, str(renames)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == -signal.SIGKILL
    artifact.sweep(tmp_path)
    artifact.read(tmp_path / "a-1", kind="note")
    assert (tmp_path / "a-1" / "note.txt").read_text("utf-8") == left
    assert [path.name for path in tmp_path.iterdir()] == ["a-1"]


def test_where_folders_cannot_change_places_an_artifact_is_replaced_all_the_same(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(artifact, "_exchange", lambda *_: False)
    write_note(tmp_path / "a")
    write_note(tmp_path / "a", "new")
    assert (tmp_path / "a" / "note.txt").read_text("utf-8") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_missing_artifact_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(artifact.ArtifactMissing, match="no finished note artifact"):
        artifact.read(tmp_path / "a", kind="note")
    with pytest.raises(artifact.ArtifactMissing):
        artifact.digest(tmp_path / "a")


def test_a_file_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("of the project", "utf-8")
    with pytest.raises(artifact.ArtifactMissing, match="no finished embed artifact"):
        artifact.read(tmp_path / "README.md", kind="embed")


def test_another_kind_is_refused(tmp_path: Path) -> None:
    write_note(tmp_path / "a")
    with pytest.raises(artifact.ArtifactMismatch, match="is a note artifact"):
        artifact.read(tmp_path / "a", kind="index")


@pytest.mark.parametrize("damage", ["remove", "grow"])
def test_a_file_that_changed_behind_the_manifest_is_refused(tmp_path: Path, damage: str) -> None:
    write_note(tmp_path / "a")
    file = tmp_path / "a" / "note.txt"
    file.unlink() if damage == "remove" else file.write_text("hello, hello", "utf-8")
    with pytest.raises(artifact.ArtifactMismatch, match="missing or was changed"):
        artifact.read(tmp_path / "a", kind="note")


def test_a_manifest_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / artifact.MANIFEST).write_text(json.dumps({"surprise": 1}), "utf-8")
    with pytest.raises(artifact.ArtifactMismatch, match="is not a manifest"):
        artifact.read(tmp_path, kind="note")


# --- wherever it lies -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """Where an artifact may lie: a folder of this machine, and stores in which nothing can be renamed."""
    if request.param == "s3":
        return request.getfixturevalue("bucket") / "shop" / "a"
    return tmp_path / "a" if request.param == "folder" else UPath(f"memory://bucket-{uuid.uuid4().hex}/a")


@pytest.mark.parametrize("how", WRITERS)
def test_an_artifact_is_the_same_wherever_it_lies_and_however_it_came_there(place: AnyPath, how: str) -> None:
    with WRITERS[how](place, kind="note", inputs={}, config={}) as draft:
        write_deep(draft.path)
        draft.facts["words"] = 1
    manifest = artifact.read(place, kind="note")
    assert manifest.facts == {"words": 1}
    assert {name: facts["bytes"] for name, facts in manifest.files.items()} == {"note.txt": 5, "deep/er/old.txt": 3}
    assert manifest.files["note.txt"]["sha256"] == hashlib.sha256(b"hello").hexdigest()
    assert (place / "note.txt").read_text("utf-8") == "hello"
    held = {"note.txt": hashlib.sha256(b"hello").hexdigest(), "deep/er/old.txt": hashlib.sha256(b"old").hexdigest()}
    content = {"kind": "note", "format": artifact.FORMAT, "files": held, "facts": {"words": 1}}
    assert artifact.digest(place) == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_deep(folder: AnyPath) -> None:
    (folder / "deep" / "er").mkdir(parents=True, exist_ok=True)
    (folder / "deep" / "er" / "old.txt").write_text("old", "utf-8")
    (folder / "note.txt").write_text("hello", "utf-8")


@pytest.mark.parametrize("how", WRITERS)
def test_where_the_writer_failed_there_is_nothing(place: AnyPath, how: str) -> None:
    def fail() -> None:
        with WRITERS[how](place, kind="note", inputs={}, config={}) as draft:
            write_deep(draft.path)
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        fail()
    with pytest.raises(artifact.ArtifactMissing):
        artifact.read(place, kind="note")
    with pytest.raises(artifact.ArtifactMissing):
        artifact.digest(place)
    assert not place.is_dir() or not list(place.rglob("*"))


@pytest.mark.parametrize("how", WRITERS)
def test_a_replaced_artifact_keeps_no_file_of_the_old_one(place: AnyPath, how: str) -> None:
    with WRITERS[how](place, kind="note", inputs={}, config={}) as draft:
        write_deep(draft.path)
    old = artifact.digest(place)
    write_note(place, how=how)
    assert artifact.digest(place) != old
    assert set(artifact.read(place, kind="note").files) == {"note.txt"}
    assert [path.name for path in place.rglob("*.txt")] == ["note.txt"]


def test_a_file_that_is_gone_or_of_another_size_is_refused_wherever_it_lies(place: AnyPath) -> None:
    write_note(place)
    (place / "note.txt").write_text("longer than before", "utf-8")
    with pytest.raises(artifact.ArtifactMismatch, match=r"note\.txt is missing or was changed"):
        artifact.read(place, kind="note")
    (place / "note.txt").unlink()
    with pytest.raises(artifact.ArtifactMismatch, match=r"note\.txt is missing or was changed"):
        artifact.read(place, kind="note")


def test_what_is_swept_is_drafts_and_never_an_artifact(place: AnyPath) -> None:
    write_note(place)
    write_deep(place.parent / f".b-12345678{artifact.PARTIAL}")
    assert artifact.sweep(place.parent) == 1
    assert artifact.sweep(place.parent) == artifact.sweep(place / "nowhere") == 0
    assert artifact.read(place, kind="note").facts == {"words": 1}


@pytest.mark.parametrize("how", WRITERS)
def test_on_a_store_the_old_manifest_goes_first_and_the_new_one_comes_last(monkeypatch, how: str) -> None:
    place = UPath(f"memory://bucket-{uuid.uuid4().hex}/a")
    with artifact.write(place, kind="note", inputs={}, config={}) as draft:
        write_deep(draft.path)
    store, seen = type(place.fs), []

    def watched(deed: str) -> None:
        real = getattr(store, deed)

        def watch(fs: Any, path: Any, *more: Any, **options: Any) -> Any:
            target = more[0] if deed == "put_file" else path
            seen.append((deed, str(target).removeprefix(place.path + "/"), place.joinpath("manifest.json").exists()))
            return real(fs, path, *more, **options)

        monkeypatch.setattr(store, deed, watch)

    for deed in ("rm", "put_file", "pipe_file", "_open"):
        watched(deed)
    write_note(place, "hello again", how=how)
    changed = [(name, there) for deed, name, there in seen if not (deed == "_open" and name == "manifest.json")]
    assert changed[0] == ("manifest.json", True)  # the old one goes while nothing else has changed
    assert changed[-1] == ("manifest.json", False)  # the new one comes when all else has
    assert {there for _, there in changed[1:]} == {False}
    assert {name for name, _ in changed[1:-1]} >= {"note.txt", "deep"}
    assert artifact.read(place, kind="note").files["note.txt"]["bytes"] == 11


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.parametrize("there_before", [False, True])
def test_a_writer_killed_before_its_manifest_came_leaves_no_artifact_and_a_rerun_heals_it(
    bucket: UPath, how: str, there_before: bool
) -> None:
    place = bucket / "a"
    if there_before:
        with artifact.write(place, kind="note", inputs={}, config={}) as draft:
            write_deep(draft.path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(place), how], env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in place.rglob("*.txt")] == ["note.txt"]  # which had come already
    with pytest.raises(artifact.ArtifactMissing):
        artifact.read(place, kind="note")
    write_note(place, "hello again", how=how)
    assert artifact.read(place, kind="note").files["note.txt"]["bytes"] == 11


KILLED = """
    import os, signal, sys
    from model import artifact
    from jobs.paths import any_path

    def killing(real):
        def send(*places, **options):
            if any(str(place).endswith("manifest.json") for place in places):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*places, **options)
        return send

    write = {"alone": artifact.write, "together": artifact.write_together}[sys.argv[2]]
    place = any_path(sys.argv[1])
    with write(place, kind="note", inputs={}, config={}) as draft:
        (draft.path / "note.txt").write_text("half", "utf-8")
        place.fs.put_file, place.fs.pipe_file = map(killing, (place.fs.put_file, place.fs.pipe_file))
"""
