"""`courier release`: every subcommand answers in words and as JSON, and refuses in one sentence."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from recorded_releases import let_answer

from jobs.releases.commands import release_main
from model import artifact, releases
from model.release_database import NoRelease, SchemaMismatch, url_in
from model.releases import Release, ReleaseRefused

AT = datetime(2024, 6, 1, tzinfo=UTC)
Said = Callable[..., str]


def write_ctr(workspace: Path, trees: int) -> dict[str, str]:
    folder = workspace / "ctr" / str(trees)
    with artifact.write(folder, kind="ctr", inputs={}, config={"trees": trees, "seed": 0}) as draft:
        draft.facts["trees"] = trees
    return {"path": f"ctr/{trees}", "digest": artifact.digest(folder)}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Three releases, the last of which answers."""
    for n in (1, 2, 3):
        made = Release(
            release_id=f"r{n}",
            created_at=AT + n * timedelta(days=1),
            space_id=f"s{n}",
            ctr_model="lightgbm/none",
            artifacts={"ctr": write_ctr(tmp_path, n)},
            metrics={"auc": n / 10, "n": 5},
        )
        let_answer(tmp_path, made)
    return tmp_path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], workspace: Path) -> Said:
    """What a subcommand prints, of the workspace, ending with a status."""

    def say(*words: str, status: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            release_main([*words, "--workspace", str(workspace)])
        assert (stop.value.code or 0) == status
        return capsys.readouterr().out

    return say


def answer(said: Said, *words: str, status: int = 0) -> Any:
    return json.loads(said(*words, "--json", status=status))


def current(workspace: Path) -> str | None:
    found = releases.current(url_in(workspace))
    return found.release_id if found else None


def test_releases_are_listed_newest_first_with_the_one_that_answers_and_the_one_before(said: Said) -> None:
    listed = answer(said, "list")
    assert (listed["current"], listed["previous"]) == ("r3", "r2")
    assert [one["release_id"] for one in listed["releases"]] == ["r3", "r2", "r1"]
    lines = {line.split()[1]: line for line in said("list").splitlines() if line.strip()[:1] == "│"}
    assert "answers" in lines["r3"]
    assert "answered before" in lines["r2"]


def test_a_promoted_release_answers_and_a_rollback_undoes_the_promotion(said: Said, workspace: Path) -> None:
    assert answer(said, "promote", "r1") == {"release": "r1", "space_id": "s1", "ctr_model": "lightgbm/none"}
    assert current(workspace) == "r1"
    assert said("rollback") == "r3 answers again\n"
    assert current(workspace) == "r3"


def test_show_tells_artifacts_metrics_and_who_did_what_and_why(said: Said) -> None:
    said("promote", "r1", "--by", "bob", "--why", "r3 clicks less")
    said("rollback", "--by", "eve")
    shown = answer(said, "show", "r1")
    assert (shown["answers"], shown["metrics"]) == (False, {"auc": 0.1, "n": 5})
    assert list(shown["artifacts"]) == ["ctr"]
    assert [(one["act"], one["done_by"], one["why"]) for one in shown["acts"]] == [
        ("created", "ann", ""),
        ("promoted", "ann", ""),
        ("promoted", "ann", ""),
        ("promoted", "bob", "r3 clicks less"),
        ("rolled_back", "eve", ""),
    ]
    assert answer(said, "show")["release_id"] == "r3"
    words = said("show", "r1")
    assert "bob: promoted: r3 clicks less" in words
    assert "eve: left for r3, which was rolled back" in words


def test_without_by_the_user_of_the_process_is_written_down(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "fay")
    said("promote", "r2")
    assert answer(said, "show")["acts"][-1]["done_by"] == "fay"


def test_diff_tells_what_differs_and_the_settings_behind_it(said: Said) -> None:
    differ = answer(said, "diff", "r1", "r2")["differ"]
    assert differ["space_id"] == ["s1", "s2"]
    assert differ["metrics"] == {"auc": [0.1, 0.2]}
    assert list(differ["artifacts"]) == ["ctr"]
    assert differ["artifacts"]["ctr"]["config"] == {"trees": [1, 2]}
    assert "ctr_model" not in differ
    assert answer(said, "diff", "r1", "r1")["differ"] == {"metrics": {}, "artifacts": {}}
    assert "artifacts.ctr.config.trees" in said("diff", "r1", "r2")


def test_a_retired_release_is_listed_as_such_and_promoted_no_more(said: Said, workspace: Path) -> None:
    assert said("retire", "r1", "--why", "old") == "r1 is retired\n"
    assert answer(said, "list")["releases"][-1]["retired_at"]
    with pytest.raises(ReleaseRefused, match="r1 was retired"):
        release_main(["promote", "r1", "--workspace", str(workspace)])
    for kept in ("r2", "r3"):
        with pytest.raises(ReleaseRefused, match="cannot be retired: promote another one first"):
            release_main(["retire", kept, "--workspace", str(workspace)])


def test_a_whole_release_verifies_and_one_changed_byte_is_found(said: Said, workspace: Path) -> None:
    with artifact.write(workspace / "ctr" / "9", kind="ctr", inputs={}, config={}) as draft:
        (draft.path / "weights").write_bytes(b"12345")
    named = {"path": "ctr/9", "digest": artifact.digest(workspace / "ctr" / "9")}
    release = releases.current(url_in(workspace))
    assert release is not None
    fields = {name: getattr(release, name) for name in ("created_at", "space_id", "ctr_model", "metrics")}
    let_answer(workspace, Release(release_id="r9", artifacts={"ctr": named}, **fields))
    (workspace / "ctr" / "9" / "weights").write_bytes(b"12x45")
    found = answer(said, "verify", status=1)
    assert found["release"] == "r9"
    assert found["faults"] == [
        f"{workspace}/ctr/9/weights has other bytes than when it was built: rebuild the ctr artifact"
    ]


def test_what_cannot_be_done_is_refused_in_one_sentence_and_nothing_changes(said: Said, workspace: Path) -> None:
    with pytest.raises(NoRelease, match="no release 'r9': `courier release list` names them"):
        release_main(["promote", "r9", "--workspace", str(workspace)])
    assert current(workspace) == "r3"
    said("rollback")
    with pytest.raises(NoRelease, match="no release to roll back to"):
        release_main(["rollback", "--workspace", str(workspace)])
    assert current(workspace) == "r2"


def test_a_workspace_without_a_release_is_told_the_cure_and_left_as_it_is(tmp_path: Path) -> None:
    for words in (["list"], ["show"], ["verify"], ["rollback"], ["promote", "r1"]):
        with pytest.raises(NoRelease, match="`courier run RAW"):
            release_main([*words, "--workspace", str(tmp_path / "nowhere")])
    assert not (tmp_path / "nowhere").exists()


def test_an_older_database_is_refused_until_it_is_migrated(said: Said, workspace: Path) -> None:
    assert answer(said, "migrate", "--to", "0001") == {"migration": "0001"}
    with pytest.raises(SchemaMismatch, match="run `courier release migrate`"):
        release_main(["list", "--workspace", str(workspace)])
    assert said("migrate") == "the database of releases is at migration 0004\n"
    assert answer(said, "list")["current"] == "r3"


def test_both_wings_find_the_database_by_the_same_name(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.release import open_release
    from serving.settings import read_settings

    elsewhere = f"sqlite:///{tmp_path}/shared.db"
    release = Release(release_id="rx", created_at=AT, space_id="s", ctr_model="m/n", artifacts={}, metrics={})
    let_answer(tmp_path, release, url=elsewhere)
    monkeypatch.setenv("COURIER_RELEASES", elsewhere)
    assert answer(said, "list")["current"] == "rx"
    settings = read_settings(workspace=tmp_path)
    assert open_release(settings.workspace, settings.releases).release_id == "rx"
