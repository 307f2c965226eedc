"""Which release answers, for who asks in passing: SQLAlchemy is imported only where there is one."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.workspace import DATABASE, releases_url
from model import artifact

if TYPE_CHECKING:
    from model.releases import Release


def released(workspace: Path) -> "Release | None":
    """The release that answers now; None where there is none. Raises SchemaMismatch, CatalogueUnreadable."""
    if _nothing_yet(workspace):
        return None
    from model import releases  # SQLAlchemy takes half a second that a run with nothing to do need not spend

    return releases.current(releases_url(workspace))


def current_release(workspace: Path) -> str | None:
    """The id of the release that answers now; None where there is none. Raises as `released`."""
    found = released(workspace)
    return found.release_id if found else None


def move_up(workspace: Path) -> None:
    """Bring the tables of a database that an older courier made to the newest migration; one that is not made stays so.

    Raises CatalogueUnreadable, and SchemaMismatch where a newer courier made them.
    """
    if _nothing_yet(workspace):
        return
    from model.release_database import OlderSchema, is_made, reading

    url = releases_url(workspace)
    if not is_made(url):
        return
    try:
        with reading(url):
            pass
    except OlderSchema:
        from infra.migrations.migrate import migrate

        migrate(url)


def stands(workspace: Path, release: Path, _: Mapping[str, Path]) -> bool:
    """Whether the database still knows the release that this stage recorded; not whether that one answers.

    Raises SchemaMismatch, CatalogueUnreadable.
    """
    if _nothing_yet(workspace):
        return False
    from model import releases
    from model.release_database import NoRelease, reading

    try:
        with reading(releases_url(workspace)) as session:
            releases.find(session, artifact.read(release, kind="release").facts["release_id"])
    except NoRelease:
        return False
    return True


def _nothing_yet(workspace: Path) -> bool:
    return not os.environ.get(DATABASE) and not (workspace / "catalogue.db").is_file()
