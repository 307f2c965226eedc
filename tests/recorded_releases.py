"""Releases that tests record and let answer, without the stages that would make them."""

from pathlib import Path

from infra.migrations.migrate import migrate
from model import releases
from model.release_database import url_in, writing
from model.releases import Release


def let_answer(workspace: Path, release: Release, *, url: str | None = None) -> Release:
    """Record a release in the workspace's database, or in that at `url`, and promote it."""
    where = url or url_in(workspace)
    migrate(where)
    with writing(where) as session:
        recorded = releases.record(session, release, by="ann")
        releases.promote(session, recorded.release_id, now=release.created_at, by="ann")
    return recorded
