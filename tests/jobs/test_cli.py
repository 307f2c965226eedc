"""What `courier run` says at its end, and what becomes of its release."""

import json

import pytest
import structlog
from recorded_releases import build_release, write_stages

from jobs import cli
from model import releases
from model.release_database import url_in, writing


@pytest.fixture
def said(tmp_path, monkeypatch):
    """The events that a run logs whose images stage left this report, and whose stages did what is given."""

    def run(report, done):
        monkeypatch.setattr(cli, "run_stages", lambda *_, **__: done)
        (tmp_path / "raw").mkdir()
        (tmp_path / "ws" / "reports").mkdir(parents=True)
        (tmp_path / "ws" / "reports" / "coverage.json").write_text(json.dumps(report), "utf-8")
        with structlog.testing.capture_logs() as told, pytest.raises(SystemExit) as ended:
            cli.run_main([str(tmp_path / "raw"), "--workspace", str(tmp_path / "ws")])
        assert ended.value.code == 0
        return {one["event"]: one for one in told}

    return run


LOST = {"rows": {"accepted": 200}, "by_reason": {"shared_by_many": 157, "not_found": 3}}


@pytest.mark.parametrize("what", ["built", "skipped"])
def test_a_run_says_at_its_end_which_rules_took_pictures_from_how_many_items(said, tmp_path, what):
    line = said(LOST, {"images": what})["items_without_picture"]
    assert (line["log_level"], line["items"], line["of"]) == ("warning", 160, 200)
    assert line["by_reason"] == LOST["by_reason"]
    assert line["report"] == str(tmp_path / "ws" / "reports" / "coverage.html")


def test_a_run_that_lost_no_picture_or_made_no_images_says_nothing_of_them(said):
    assert "items_without_picture" not in said(LOST | {"by_reason": {}}, {"images": "built"})


def test_a_run_of_another_stage_alone_says_nothing_of_pictures(said):
    assert "items_without_picture" not in said(LOST, {"cluster": "built"})


@pytest.fixture
def ran(tmp_path, monkeypatch, capsys):
    """A run whose stages made the release `version`: its exit status, what it logs, what it prints on stderr."""
    (tmp_path / "raw").mkdir()

    def run(version, *options):
        def made(_, *, folders, **__):
            folders["release"] = tmp_path / "ws" / "release" / version
            return {"release": "built"}

        monkeypatch.setattr(cli, "run_stages", made)
        with structlog.testing.capture_logs() as told, pytest.raises(SystemExit) as ended:
            cli.run_main([str(tmp_path / "raw"), "--workspace", str(tmp_path / "ws"), *options])
        return ended.value.code or 0, {one["event"]: one for one in told}, capsys.readouterr().err

    return run


def test_a_run_lets_its_release_answer_unless_a_gate_fails_or_a_person_decided_otherwise(tmp_path, ran):
    pytest.importorskip("torch")
    ws = tmp_path / "ws"
    one, two, worse = (
        build_release(ws, write_stages(ws, name, seed=seed, auc=auc), name)
        for seed, (name, auc) in enumerate((("a", 0.6), ("b", 0.7), ("c", 0.5)))
    )
    status, told, _ = ran("a", "--why", "the first")
    assert (status, told["release_answers"]["release"]) == (0, one)
    assert "release_answers" not in ran("a")[1], "a second run has nothing to say"
    assert ran("b")[0] == 0
    status, told, printed = ran("c")
    assert (status, "release_answers" in told) == (3, False)
    assert f"{worse} is not promoted: {worse} has an AUC of 0.5000, {two} 0.7000" in " ".join(printed.split())
    with writing(url_in(ws)) as session:
        releases.roll_back(session, now=releases.find(session, one).created_at, by="eve")
        assert [act.why for act in releases.acts(session, one)][1] == "the first"
    status, told, _ = ran("b")
    assert (status, told["release_not_promoted"]["because"][:16]) == (0, "eve rolled back ")
    assert ran("b", "--promote", "force")[1]["release_answers"]["release"] == two
    assert ran("a", "--promote", "never")[1]["release_not_promoted"]["release"] == one
