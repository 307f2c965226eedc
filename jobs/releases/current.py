"""Which release of a workspace answers, for who asks in passing: SQLAlchemy is imported only where there is one."""

from collections.abc import Mapping
from pathlib import Path

from model import artifact


def current_release(workspace: Path) -> str | None:
    """The id of the release that answers now; None where there is none."""
    if not (workspace / "catalogue.db").is_file():
        return None
    from model import releases  # SQLAlchemy takes half a second that a run with nothing to do need not spend

    found = releases.current(workspace)
    return found.release_id if found else None


def stands(workspace: Path, release: Path, _: Mapping[str, Path]) -> bool:
    """Whether the release that this stage made still answers."""
    return bool(current_release(workspace) == artifact.read(release, kind="release").facts["release_id"])
