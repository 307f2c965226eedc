"""Which releases exist, which one answers, and who let it: recording, promoting, rolling back, retiring.

It lies in the model because both wings need it: jobs record and promote, serving reads. `current` is one row, switched
in one transaction, so promoting and rolling back are the same cheap act.
"""

import getpass
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from model.errors import CourierError
from model.release_database import LONGEST_NAME, ActRow, CurrentRow, NoRelease, ReleaseRow, is_made, reading

ONLY_ROW: Final = 1

# What is done to a release, as `release_act` holds it.
CREATED: Final = "created"
PROMOTED: Final = "promoted"
ROLLED_BACK: Final = "rolled_back"
ROWS_DELETED: Final = "rows_deleted"  # from its artifacts, on somebody's request
HELD_BACK: Final = "held_back"  # a gate of `courier run` failed
RETIRED: Final = "retired"


class ReleaseRefused(CourierError):
    """This cannot be done to this release; the message says why, and what can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What answers together: one space, its codebook, its index and its CTR model.

    artifacts: stage -> {"path": relative to the workspace, "digest": of the manifest there}.
    ctr_model: "<model>/<images>", the variant of the ctr artifact that ranks.
    codebook_id: None of a release that was recorded before they named it.
    metrics: what was measured of it offline.  retired_at: since when it may not answer any more; None while it may.
    """

    release_id: str
    created_at: datetime
    space_id: str
    ctr_model: str
    artifacts: Mapping[str, Mapping[str, str]]
    metrics: Mapping[str, Any]
    codebook_id: str | None = None
    retired_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What was done to a release, when, by whom and why.

    act: one of CREATED, PROMOTED, ROLLED_BACK, HELD_BACK, RETIRED, ROWS_DELETED.
    release_id: of a switch, what answers after it.
    previous_id: of a switch, what answered before it.  gates: name -> null or the sentence of its failure, where
    `courier run` decided; None where a person did.
    """

    act: str
    release_id: str
    previous_id: str | None = None
    done_at: datetime
    done_by: str
    why: str
    gates: Mapping[str, str | None] | None = None


def user_name() -> str:
    """Who runs this process, as the operating system calls them."""
    try:
        return getpass.getuser()[:LONGEST_NAME]
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return "unknown"


# --- acts ------------------------------------------------------------------------------------------------------------


def record(session: Session, release: Release, *, by: str, why: str = "") -> Release:
    """Write `release` down unless it is there already; returns it as it was first recorded.

    One that was retired is taken up again, with the artifacts that it has now.
    """
    row = session.get(ReleaseRow, release.release_id)
    if row is None:
        row = ReleaseRow(**_columns(release))
        session.add(row)
        session.flush()
        _note(session, CREATED, row.release_id, now=release.created_at, by=by, why=why)
    elif row.retired_at is not None:
        again = _columns(release)
        row.retired_at, row.artifacts, row.codebook_id = None, again["artifacts"], again["codebook_id"]
        _note(session, CREATED, row.release_id, now=release.created_at, by=by, why=why or "made again")
    return _release(row)


def promote(
    session: Session,
    release_id: str,
    *,
    now: datetime,
    by: str,
    why: str = "",
    gates: Mapping[str, str | None] | None = None,
) -> Release:
    """Let this release answer from `now` on; a no-op where it does already.

    gates: what `courier run` found before it decided.
    Raises NoRelease for an unknown id, ReleaseRefused for a retired one.
    """
    release = find(session, release_id)
    if release.retired_at is not None:
        raise ReleaseRefused(
            f"{release_id} was retired on {release.retired_at:%Y-%m-%d} and its artifacts may be gone: "
            "promote another, or make it again with `courier run`"
        )
    row = session.get(CurrentRow, ONLY_ROW)
    if row is None:
        session.add(CurrentRow(row=ONLY_ROW, release_id=release_id, previous_id=None, since=now))
        _note(session, PROMOTED, release_id, now=now, by=by, why=why, gates=gates)
    elif row.release_id != release_id:
        row.previous_id, row.release_id, row.since = row.release_id, release_id, now
        _note(session, PROMOTED, release_id, previous=row.previous_id, now=now, by=by, why=why, gates=gates)
    session.flush()
    return release


def roll_back(session: Session, *, now: datetime, by: str, why: str = "") -> Release:
    """Let the release that answered before the current one answer again.

    One step: after it, an older release is promoted by its id. Raises NoRelease where nothing answered before.
    """
    row = session.get(CurrentRow, ONLY_ROW)
    if row is None or row.previous_id is None:
        raise NoRelease("there is no release to roll back to: promote one by its id")
    left, row.release_id, row.previous_id, row.since = row.release_id, row.previous_id, None, now
    _note(session, ROLLED_BACK, row.release_id, previous=left, now=now, by=by, why=why)
    session.flush()
    return find(session, row.release_id)


def hold_back(session: Session, release_id: str, *, gates: Mapping[str, str | None], now: datetime, by: str) -> None:
    """Write down that `courier run` did not promote this release, and which gates failed."""
    why = "; ".join(said for said in gates.values() if said is not None)
    _note(session, HELD_BACK, release_id, now=now, by=by, why=why, gates=gates)


def retire(session: Session, release_id: str, *, now: datetime, by: str, why: str = "") -> Release:
    """Say that this release will not answer any more, so that its artifacts may go; a no-op where that was said.

    Raises NoRelease for an unknown id, ReleaseRefused for the current release and the one before it.
    """
    find(session, release_id)
    needed = {"the current release": current_id(session), "what a rollback leads to": previous_id(session)}
    for what, needed_id in needed.items():
        if release_id == needed_id:
            raise ReleaseRefused(f"{release_id} is {what} and cannot be retired: promote another one first")
    row = session.get_one(ReleaseRow, release_id)
    if row.retired_at is None:
        row.retired_at = now
        _note(session, RETIRED, release_id, now=now, by=by, why=why)
        session.flush()
    return _release(row)


def replace_artifacts(session: Session, moved: Mapping[str, Mapping[str, Any]], *, now: datetime, by: str) -> int:
    """Let the releases that name an artifact name its successor, from which rows were deleted; how many releases did.

    moved: path of an artifact -> its successor's {"path", "digest"}. Ids of releases stay what they were.
    """
    changed = 0
    for row in session.scalars(sa.select(ReleaseRow)):
        artifacts = {stage: dict(moved.get(where["path"], where)) for stage, where in row.artifacts.items()}
        if artifacts != row.artifacts:
            row.artifacts = artifacts
            _note(session, ROWS_DELETED, row.release_id, now=now, by=by, why="courier forget")
            changed += 1
    session.flush()
    return changed


# --- questions -------------------------------------------------------------------------------------------------------


def current_id(session: Session) -> str | None:
    """The id of the release that answers; None where none was ever promoted."""
    return session.scalar(sa.select(CurrentRow.release_id))


def previous_id(session: Session) -> str | None:
    """The id of the release that a rollback leads to; None where there is none."""
    return session.scalar(sa.select(CurrentRow.previous_id))


def answering(session: Session) -> Release | None:
    """The current release; None where none was ever promoted."""
    found = current_id(session)
    return find(session, found) if found is not None else None


def find(session: Session, release_id: str) -> Release:
    """The release of this id. Raises NoRelease."""
    row = session.get(ReleaseRow, release_id)
    if row is None:
        raise NoRelease(f"there is no release {release_id!r}: `courier release list` names them")
    return _release(row)


def list_releases(session: Session) -> list[Release]:
    """Every release, newest first."""
    rows = session.scalars(sa.select(ReleaseRow).order_by(ReleaseRow.created_at.desc(), ReleaseRow.release_id))
    return [_release(row) for row in rows]


def acts(session: Session, release_id: str) -> list[Act]:
    """All that was done to this release, or put it out of its place: oldest first."""
    touched = sa.or_(ActRow.release_id == release_id, ActRow.previous_id == release_id)
    return [_act(row) for row in session.scalars(sa.select(ActRow).where(touched).order_by(ActRow.number))]


def current(url: str) -> Release | None:
    """The current release, only read: a database that does not exist is not made. None where nothing was promoted yet.

    Raises SchemaMismatch, CatalogueUnreadable.
    """
    if not is_made(url):
        return None
    with reading(url) as session:
        return answering(session)


def _note(
    session: Session,
    act: str,
    release_id: str,
    *,
    now: datetime,
    by: str,
    why: str,
    previous: str | None = None,
    gates: Mapping[str, str | None] | None = None,
) -> None:
    session.add(
        ActRow(
            act=act,
            release_id=release_id,
            previous_id=previous,
            done_at=now,
            done_by=by[:LONGEST_NAME],
            why=why,
            gates=dict(gates) if gates is not None else None,
        )
    )


def _columns(release: Release) -> dict[str, Any]:
    return {
        "release_id": release.release_id,
        "created_at": release.created_at,
        "space_id": release.space_id,
        "codebook_id": release.codebook_id,
        "ctr_model": release.ctr_model,
        "artifacts": {stage: dict(where) for stage, where in release.artifacts.items()},
        "metrics": dict(release.metrics),
    }


def _release(row: ReleaseRow) -> Release:
    return Release(
        release_id=row.release_id,
        created_at=row.created_at,
        space_id=row.space_id,
        codebook_id=row.codebook_id,
        ctr_model=row.ctr_model,
        artifacts=row.artifacts,
        metrics=row.metrics,
        retired_at=row.retired_at,
    )


def _act(row: ActRow) -> Act:
    return Act(
        act=row.act,
        release_id=row.release_id,
        previous_id=row.previous_id,
        done_at=row.done_at,
        done_by=row.done_by,
        why=row.why,
        gates=row.gates,
    )
