"""What `courier run` says at its end."""

import json

import pytest
import structlog

from jobs import cli


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
