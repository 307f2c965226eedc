"""Raw data is what its bytes are: no clock and no path counts, each table has an identity of its own."""

import os
import shutil
import time
from pathlib import Path

import pytest

from jobs.raw import identity
from jobs.raw.identity import KnownDigests, evaluation_inputs, hash_files, images_inputs, tables_inputs

EVENTS = "user_id,item_id,event_time,event_type,request_id,position\n"
ITEMS = "item_id,image_uri,category,title,price,created_at\n"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    (folder / "images").mkdir(parents=True)
    (folder / "events").mkdir()
    (folder / "events" / "1.csv").write_text(EVENTS)
    (folder / "items.csv").write_text(ITEMS)
    (folder / "images" / "a.png").write_bytes(b"a")
    return folder


def identities(raw: Path, hasher: identity.Hasher = hash_files) -> dict[str, str]:
    about = evaluation_inputs(raw, raw, hasher)
    return {**tables_inputs(raw, raw, hasher), **images_inputs(raw, raw, hasher), **about}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_touching_or_copying_changes_nothing(raw: Path, tmp_path: Path) -> None:
    before = identities(raw)
    for path in raw.rglob("*"):
        os.utime(path, ns=(1, 1))
    assert identities(raw) == before
    shutil.copytree(raw, tmp_path / "elsewhere")
    assert identities(tmp_path / "elsewhere") == before


@pytest.mark.parametrize(
    ("file", "text", "whose"),
    [
        ("events/1.csv", "x", {"events"}),
        ("events/2.csv", "x", {"events"}),
        ("events/_SUCCESS", "", set()),
        ("items.csv", "x", {"items"}),
        ("images/a.png", "b", {"image_files"}),
        ("images/b.png", "b", {"image_files"}),
        ("SOURCE.json", '{"sampled_negatives": true}', {"sampled_negatives", "source_and_truth"}),
        ("SOURCE.json", '{"name": "shop"}', {"source_and_truth"}),
        ("truth_items.parquet", "", {"source_and_truth"}),
    ],
)
def test_each_file_belongs_to_what_is_made_of_it(raw: Path, file: str, text: str, whose: set[str]) -> None:
    before = identities(raw)
    (raw / file).write_text(text)
    assert changed(before, identities(raw)) == whose


def test_files_that_are_as_long_and_as_old_as_before_are_told_apart(raw: Path) -> None:
    file = raw / "images" / "a.png"
    old = file.stat()
    before = identities(raw)
    file.write_bytes(b"b")
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert changed(before, identities(raw)) == {"image_files"}


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(files):  # type: ignore[no-untyped-def]
        wanted = list(files)
        read.extend(path.name for path in wanted)
        return hash_files(wanted)

    monkeypatch.setattr(identity, "hash_files", counted)
    monkeypatch.setattr(identity, "SETTLED_NS", -time.time_ns())  # what was written now counts as written long ago
    known = KnownDigests(tmp_path / "ws" / "digests.db")
    assert identities(raw, known) == identities(raw)
    assert sorted(set(read)) == ["1.csv", "a.png", "items.csv"]
    read.clear()
    assert identities(raw, known) == identities(raw)
    assert read == []
    (raw / "items.csv").write_text(ITEMS + "more")
    assert identities(raw, known) == identities(raw)
    assert read == ["items.csv"]


def test_a_file_written_a_moment_ago_is_read_again_for_it_may_be_written_in_the_same_tick(
    raw: Path, tmp_path: Path
) -> None:
    known = KnownDigests(tmp_path / "digests.db")
    before = identities(raw, known)
    (raw / "images" / "a.png").write_bytes(b"b")
    assert changed(before, identities(raw, known)) == {"image_files"}


def test_links_to_folders_are_followed_and_not_in_circles(raw: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (raw / "more").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(raw)
    before = identities(raw)
    (elsewhere / "c.png").touch()
    assert changed(before, identities(raw)) == {"image_files"}
