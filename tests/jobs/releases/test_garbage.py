"""`courier gc` keeps what releases and runs are made of, removes the rest, and ends the same wherever it was killed."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from recorded_releases import STAGES, build_release, let_answer, write_stages

from jobs import pipeline
from jobs.releases import garbage
from jobs.releases.garbage import find, remove
from model import artifact, releases
from model.release_database import reading, url_in, writing

NOW = datetime(2024, 6, 1, tzinfo=UTC)
KEYS = [f"{number:012x}" for number in range(1, 6)]
Names = Mapping[str, set[str]]


def promote(workspace: Path, release_id: str) -> None:
    with writing(url_in(workspace)) as session:
        releases.promote(session, release_id, now=NOW, by="ann")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Five releases of a workspace, oldest first, of which the last answers; each with artifacts of its own."""
    folder, made = tmp_path_factory.mktemp("five"), []
    for seed, key in enumerate(KEYS):
        made.append(build_release(folder, write_stages(folder, key, seed=seed), key))
        promote(folder, made[-1])
        for stage in (*STAGES, "release"):
            (folder / stage / f"{key}.json").write_text("{}", "utf-8")
    return folder, made


@pytest.fixture
def five(tmp_path: Path, template: tuple[Path, list[str]]) -> list[str]:
    """The ids of the template's releases, in a workspace of the test's own."""
    shutil.copytree(template[0], tmp_path, dirs_exist_ok=True)
    return template[1]


def versions(workspace: Path) -> Names:
    """The versions on disk by stage."""
    stages = (*STAGES, "release")
    return {stage: {path.name for path in (workspace / stage).iterdir() if path.is_dir()} for stage in stages}


def everywhere(*keys: str) -> Names:
    return {stage: set(keys) for stage in (*STAGES, "release")}


def retired(workspace: Path) -> set[str]:
    with reading(url_in(workspace)) as session:
        return {one.release_id for one in releases.list_releases(session) if one.retired_at is not None}


def collect(workspace: Path, fresh: set[Path] | None = None, keep: int = 2) -> garbage.Garbage:
    found = find(workspace, fresh or set(), keep=keep)
    remove(workspace, found, now=NOW, by="ann")
    return found


def test_the_newest_releases_stay_whole_and_the_others_are_retired_and_gone(tmp_path: Path, five: list[str]) -> None:
    found = collect(tmp_path)
    assert set(found.releases) == retired(tmp_path) == set(five[:3])
    assert versions(tmp_path) == everywhere(*KEYS[3:])
    assert {file.stem for file in (tmp_path / "index").glob("*.json")} == set(KEYS[3:])


def test_what_is_freed_is_counted_by_stage_before_it_goes(tmp_path: Path, five: list[str]) -> None:
    del five
    found = find(tmp_path, set(), keep=4)
    files = [path for path in (tmp_path / "index" / KEYS[0]).rglob("*") if path.is_file()]
    assert found.bytes_by_stage()["index"] == sum(path.stat().st_size for path in files) > 0
    assert versions(tmp_path) == everywhere(*KEYS), "nothing was removed yet"


def test_the_current_release_and_the_one_before_stay_however_old_they_are(tmp_path: Path, five: list[str]) -> None:
    promote(tmp_path, five[0])
    promote(tmp_path, five[1])
    collect(tmp_path, keep=1)
    assert retired(tmp_path) == set(five[2:4])
    assert versions(tmp_path) == everywhere(KEYS[0], KEYS[1], KEYS[4])


def test_what_a_run_considers_up_to_date_stays_with_all_that_it_is_made_from(tmp_path: Path, five: list[str]) -> None:
    del five
    collect(tmp_path, {tmp_path / "index" / KEYS[0]}, keep=1)
    left = versions(tmp_path)
    assert left["index"] == {KEYS[0], KEYS[3], KEYS[4]}
    assert KEYS[0] in left["embed"] & left["pretrain"] & left["images"], "the index is made from them"
    assert KEYS[0] not in left["cluster"] | left["ctr"]


def test_a_release_that_a_run_considers_up_to_date_is_not_retired(tmp_path: Path, five: list[str]) -> None:
    collect(tmp_path, {tmp_path / "release" / KEYS[0]}, keep=1)
    assert retired(tmp_path) == {five[1], five[2]}
    assert KEYS[0] in versions(tmp_path)["ctr"]


def test_what_feast_reads_and_encoders_that_no_release_had_stay(tmp_path: Path, five: list[str]) -> None:
    del five
    (tmp_path / "feast").mkdir()
    (tmp_path / "feast" / "sources").symlink_to(f"../features/{KEYS[0]}")
    with artifact.write(tmp_path / "pretrain" / ("f" * 12), kind="pretrain", inputs={}, config={}) as draft:
        draft.facts["encoder"] = "simclr"
    collect(tmp_path, keep=1)
    left = versions(tmp_path)
    assert KEYS[0] in left["features"]
    assert "f" * 12 in left["pretrain"]


def test_what_no_stage_named_is_not_touched(tmp_path: Path, five: list[str]) -> None:
    del five
    for path in ("index/mine", "index/0123456789ab-copy", "reports/old", "image_store/x"):
        (tmp_path / path).mkdir(parents=True)
    collect(tmp_path, keep=1)
    for path in ("index/mine", "index/0123456789ab-copy", "reports/old", "image_store/x"):
        assert (tmp_path / path).is_dir()


def test_half_written_versions_and_rebuilt_ones_that_nobody_needs_go(tmp_path: Path, five: list[str]) -> None:
    del five
    half, rebuilt = tmp_path / "index" / ("e" * 12), tmp_path / "index" / f"{KEYS[0]}-1"
    half.mkdir()
    (half / "index.faiss").write_text("half", "utf-8")
    with artifact.write(rebuilt, kind="index", inputs={}, config={}) as draft:
        draft.facts["rebuilt"] = True
    with artifact.write(tmp_path / "index" / KEYS[4], kind="index", inputs={}, config={}) as draft:
        draft.facts["newest"] = True
    collect(tmp_path, keep=1)
    assert not half.exists()
    assert not rebuilt.exists()


class Killed(BaseException):
    """As if the process had ended there."""


def test_killed_at_any_point_and_run_again_it_ends_the_same(
    tmp_path: Path, five: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del five
    whole, kills = artifact.remove_folder, 0

    def remove_half(folder: Path) -> None:
        """Every second folder half removed, and then the end."""
        nonlocal kills
        if folder.name[-1] in "13" and sorted(path for path in folder.rglob("*") if path.is_file()):
            next(path for path in sorted(folder.rglob("*")) if path.is_file()).unlink()
            kills += 1
            raise Killed
        whole(folder)

    monkeypatch.setattr(artifact, "remove_folder", remove_half)
    while True:
        with suppress(Killed):
            collect(tmp_path)
            break
    assert kills >= 2 * len(STAGES)
    assert versions(tmp_path) == everywhere(*KEYS[3:])
    assert len(retired(tmp_path)) == 3
    for stage in STAGES:
        for key in KEYS[3:]:
            artifact.verify(tmp_path / stage / key, kind=stage)


def test_the_command_says_what_it_would_free_and_then_frees_it(
    tmp_path: Path, five: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"raw": str(tmp_path / "raw")}), "utf-8")
    fresh = pipeline.State(folder=tmp_path / "ctr" / KEYS[0], fresh=True)
    monkeypatch.setattr(garbage, "stage_states", lambda _: {"ctr": fresh})

    def said(*words: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as stop:
            garbage.main(["--workspace", str(tmp_path), "--keep", "1", "--json", *words])
        assert not stop.value.code
        return json.loads(capsys.readouterr().out)

    planned = said("--dry-run")
    assert versions(tmp_path) == everywhere(*KEYS)
    done = said()
    assert planned | {"dry_run": False} == done
    assert done["retired"] == five[2::-1]
    assert done["freed_bytes_in_all"] == sum(done["freed_bytes"].values()) > 0
    assert versions(tmp_path)["ctr"] == {KEYS[0], KEYS[3], KEYS[4]}
    assert said()["freed_bytes"] == {}


def test_releases_of_one_moment_are_kept_in_a_stated_order(tmp_path: Path) -> None:
    for name in ("r1", "r2", "r3"):
        let_answer(
            tmp_path,
            releases.Release(
                release_id=name, created_at=NOW - timedelta(0), space_id="s", ctr_model="m", artifacts={}, metrics={}
            ),
        )
    assert find(tmp_path, set(), keep=1).releases == ()
    promote(tmp_path, "r1")
    assert find(tmp_path, set(), keep=1).releases == ("r2",)
