"""Delete the rows of the online store that have outlived their view's ttl: `courier clean`."""

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from feature_repo.packed.reader import delete_expired
from feature_repo.store_settings import read_settings
from jobs.options import Folder, call
from model import strict_json
from model.errors import CourierError


class CannotClean(CourierError):
    """The online store is none whose rows are ours to delete."""


def expired_deleted(workspace: Path, *, as_of: datetime) -> dict[str, int | None]:
    """Delete the rows that have expired by this moment: by view, how many; None of a view whose rows hold for ever.

    A reader sees them no more since they expired. Raises CannotClean for one of Feast's own stores.
    """
    settings = read_settings(workspace)
    if not settings.is_packed:
        raise CannotClean(
            f"the online store of {workspace} is Feast's own {settings.section.get('type')}: set a ttl in that database"
        )
    views = settings.packed_views()
    expiring = [view for view in views.values() if view.ttl]
    with closing(settings.database()) as database:
        deleted = delete_expired(database, expiring, as_of=as_of)
    return {name: deleted.get(view.table) for name, view in views.items()}


def clean(workspace: Folder = Path("workspace")) -> None:
    """Delete the rows of the online store that have outlived their view's ttl, and print how many of each view."""
    deleted = expired_deleted(workspace, as_of=datetime.now(UTC))
    print(strict_json.dumps({"deleted": deleted}, indent=1))


def main(argv: Sequence[str]) -> None:
    """`courier clean`."""
    call(clean, "courier clean", argv)
