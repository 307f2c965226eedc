"""Releases are listed newest first, promoted by their id, and rolled back to the one that answered before."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.releases.build import record_and_promote
from jobs.releases.commands import promote_main, releases_main, rollback_main
from model import releases
from model.releases import NoRelease, Release

AT = datetime(2024, 6, 1, tzinfo=UTC)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Three releases, the last of which answers."""
    for n in (1, 2, 3):
        made = Release(
            release_id=f"r{n}",
            created_at=AT + n * timedelta(days=1),
            space_id=f"s{n}",
            ctr_model="lightgbm/none",
            artifacts={},
            metrics={},
        )
        record_and_promote(releases.url_in(tmp_path), made)
    return tmp_path


def said(capsys, main, *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, words)))
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


def test_releases_are_told_newest_first_with_the_one_that_answers(workspace, capsys) -> None:
    answer = json.loads(said(capsys, releases_main, "--workspace", workspace, "--json"))
    assert answer["current"] == "r3"
    assert [one["release_id"] for one in answer["releases"]] == ["r3", "r2", "r1"]
    [line] = [line for line in said(capsys, releases_main, "--workspace", workspace).splitlines() if "answers" in line]
    assert "r3" in line


def test_a_promoted_release_answers_and_a_rollback_undoes_the_promotion(workspace, capsys) -> None:
    assert json.loads(said(capsys, promote_main, "r1", "--workspace", workspace))["release"] == "r1"
    assert releases.current(workspace).release_id == "r1"
    assert json.loads(said(capsys, rollback_main, "--workspace", workspace))["release"] == "r3"
    assert releases.current(workspace).release_id == "r3"


def test_what_cannot_answer_is_refused_in_one_sentence_and_nothing_changes(workspace, tmp_path, capsys) -> None:
    with pytest.raises(NoRelease, match="no release 'r9': `courier releases` lists them"):
        promote_main(["r9", "--workspace", str(workspace)])
    assert releases.current(workspace).release_id == "r3"
    said(capsys, rollback_main, "--workspace", workspace)
    with pytest.raises(NoRelease, match="no release to roll back to"):
        rollback_main(["--workspace", str(workspace)])
    assert releases.current(workspace).release_id == "r2"
    with pytest.raises(NoRelease, match="`courier run RAW"):
        releases_main(["--workspace", str(tmp_path / "nowhere")])
    assert not (tmp_path / "nowhere").exists()
