"""What a run does with its release: gates, force, and never undoing what a person decided."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from recorded_releases import build_release, write_stages

from jobs.config import PromotionConfig
from jobs.releases.promotion import Decision, Reasons, decide
from model import releases
from model.artifact import ArtifactMissing
from model.release_database import reading, url_in, writing
from model.releases import Act

pytest.importorskip("torch")
GATED = PromotionConfig()
NEVER, FORCE = replace(GATED, mode="never"), replace(GATED, mode="force")
NOW = datetime(2024, 6, 1, tzinfo=UTC)


def made(workspace: Path, version: str, **how: Any) -> str:
    return build_release(workspace, write_stages(workspace, version, **how), version)


def ran(workspace: Path, release_id: str, config: PromotionConfig = GATED) -> Decision:
    return decide(workspace, url_in(workspace), release_id, config, Reasons(by="ci", why="nightly"))


def acts(workspace: Path, release_id: str) -> list[Act]:
    with reading(url_in(workspace)) as session:
        return releases.acts(session, release_id)


def test_the_first_release_answers_once_its_gates_pass_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    one = made(tmp_path, "a")
    assert ran(tmp_path, one) == Decision(release_id=one, current_id=one)
    history = acts(tmp_path, one)
    assert (history[-1].act, history[-1].done_by, history[-1].why) == ("promoted", "ci", "nightly")
    assert history[-1].gates == {"collapse": None, "recall": None, "reconciliation": None, "evaluation": None}
    assert ran(tmp_path, one).answers
    assert acts(tmp_path, one) == history


def test_a_gate_that_fails_leaves_the_old_release_and_says_so_once(tmp_path: Path) -> None:
    one, worse = made(tmp_path, "a"), made(tmp_path, "b", seed=1, auc=0.5)
    ran(tmp_path, one)
    for _ in range(2):
        decision = ran(tmp_path, worse)
        assert not decision.answers
        assert decision.current_id == one
        [sentence] = decision.failed
        assert "has an AUC of 0.5000" in sentence
    assert [act.act for act in acts(tmp_path, worse)] == ["created", "held_back"]
    assert ran(tmp_path, worse, replace(GATED, max_auc_loss=0.2)).answers


def test_every_gate_that_fails_says_its_sentence(tmp_path: Path) -> None:
    facts = {"pretrain": {"collapse": {"deviation": 0, "effective_rank": 1, "alignment": 0, "uniformity": 0}}}
    bad = made(tmp_path, "a", facts=facts | {"index": {"recall_at_10": 0.1}})
    assert len(ran(tmp_path, bad).failed) == 2


def test_force_asks_no_gate_and_never_promotes_nothing(tmp_path: Path) -> None:
    one = made(tmp_path, "a", facts={"index": {"recall_at_10": 0.1}})
    kept = ran(tmp_path, one, NEVER)
    assert (kept.answers, kept.failed) == (False, ())
    assert "courier release promote" in (kept.because or "")
    assert ran(tmp_path, one, FORCE).answers
    assert acts(tmp_path, one)[-1].gates == {}


def test_a_run_does_not_promote_again_what_was_rolled_back_but_does_the_next_release(tmp_path: Path) -> None:
    one, two = made(tmp_path, "a"), made(tmp_path, "b", seed=1)
    ran(tmp_path, one)
    ran(tmp_path, two)
    with writing(url_in(tmp_path)) as session:
        releases.roll_back(session, now=NOW, by="eve", why="clicks fell")
    again = ran(tmp_path, two)
    assert (again.answers, again.current_id, again.failed) == (False, one, ())
    deed = f"eve rolled back to {one} on 2024-06-01 (clicks fell)"
    assert again.because == f"{deed}: say `courier release promote {two}` to let it answer again"
    assert ran(tmp_path, made(tmp_path, "c", seed=2)).answers
    assert ran(tmp_path, two, FORCE).answers


def test_nor_what_a_person_replaced_by_hand(tmp_path: Path) -> None:
    one, two = made(tmp_path, "a"), made(tmp_path, "b", seed=1)
    ran(tmp_path, one)
    ran(tmp_path, two)
    with writing(url_in(tmp_path)) as session:
        releases.promote(session, one, now=NOW, by="eve")
    assert (ran(tmp_path, two).because or "").startswith(f"eve promoted {one} in its place on 2024-06-01: ")


def test_what_a_run_replaced_a_run_brings_back(tmp_path: Path) -> None:
    one, two = made(tmp_path, "a"), made(tmp_path, "b", seed=1)
    for release_id in (one, two, one):  # as the settings go to and fro
        assert ran(tmp_path, release_id).answers


def test_a_retired_release_stays_retired(tmp_path: Path) -> None:
    one, two = made(tmp_path, "a"), made(tmp_path, "b", seed=1)
    ran(tmp_path, two)
    with writing(url_in(tmp_path)) as session:
        releases.retire(session, one, now=NOW, by="eve")
    assert "it was retired on 2024-06-01" in (ran(tmp_path, one).because or "")


def test_a_release_whose_artifact_is_gone_is_refused(tmp_path: Path) -> None:
    one = made(tmp_path, "a")
    (tmp_path / "index" / "a" / "manifest.json").unlink()
    with pytest.raises(ArtifactMissing, match="no finished index artifact"):
        ran(tmp_path, one)
