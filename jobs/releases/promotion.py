"""Decide whether a release that was recorded shall answer: never, if its gates pass, or whatever they say."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from jobs.config import PromotionConfig
from jobs.releases import gates
from model import releases
from model.release_database import reading, writing
from model.releases import HELD_BACK, PROMOTED, Act, Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What became of a release.

    answers: whether it is the current one now.  failed: the sentences of the gates that it did not pass.
    because: why it does not answer where no gate failed.
    """

    release_id: str
    current_id: str | None
    failed: tuple[str, ...] = ()
    because: str | None = None

    @property
    def answers(self) -> bool:
        """Whether it is the current release now."""
        return self.release_id == self.current_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """Who asks for a promotion, and why."""

    by: str = field(default_factory=releases.user_name)
    why: str = ""


def decide(workspace: Path, url: str, release_id: str, config: PromotionConfig, reasons: Reasons) -> Decision:
    """Promote a release if `config` lets it, and say what became of it; a second call comes to the same end.

    A release that a person put out of its place, by a rollback or by promoting another, is not promoted again but by
    force, nor is a retired one: a run does not undo what people decide.
    Raises NoRelease, ArtifactMissing or ArtifactMismatch where an artifact of it is gone.
    """
    with reading(url) as session:
        release, current = releases.find(session, release_id), releases.answering(session)
        history = releases.acts(session, release_id)
    decision = Decision(release_id=release_id, current_id=current.release_id if current else None)
    if decision.answers:
        return decision
    if config.mode == "never":
        return replace(decision, because=f"say `courier release promote {release_id}` to let it answer")
    if config.mode == "gated":
        if said := _put_aside(release, history):
            return replace(decision, because=said)
        answers = gates.ask_all(gates.open_candidate(workspace, release, current), config)
        if failed := tuple(said for said in answers.values() if said):
            _hold_back(url, release_id, answers, history, reasons)
            return replace(decision, failed=failed)
    else:
        answers = {}  # nobody asked
    with writing(url) as session:
        releases.promote(session, release_id, now=datetime.now(UTC), by=reasons.by, why=reasons.why, gates=answers)
    return replace(decision, current_id=release_id)


def _put_aside(release: Release, history: list[Act]) -> str | None:
    """Why a run leaves this release where a person put it; None where no person did."""
    cure = f"say `courier release promote {release.release_id}` to let it answer again"
    if release.retired_at is not None:
        return f"it was retired on {release.retired_at:%Y-%m-%d}: make another release, or rebuild it"
    replaced = [act for act in history if act.previous_id == release.release_id]
    if not replaced or replaced[-1].gates is not None:  # a run replaced it, so a run may bring it back
        return None
    last = replaced[-1]
    deed = f"promoted {last.release_id} in its place" if last.act == PROMOTED else f"rolled back to {last.release_id}"
    why = f" ({last.why})" if last.why else ""
    return f"{last.done_by} {deed} on {last.done_at:%Y-%m-%d}{why}: {cure}"


def _hold_back(url: str, release_id: str, answers: dict[str, str | None], history: list[Act], reasons: Reasons) -> None:
    """Write down which gates failed, once: a run that is repeated says nothing new."""
    if history and history[-1].act == HELD_BACK and history[-1].gates == answers:
        return
    with writing(url) as session:
        releases.hold_back(session, release_id, gates=answers, now=datetime.now(UTC), by=reasons.by)
