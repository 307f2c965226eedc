"""The items that were added since the release that answers: find their artifacts, fetch what is lacking, read them."""

from collections.abc import Sequence
from pathlib import Path

import structlog
from upath import UPath

from model import additions, artifact
from model.additions import AddedItems, Addition
from model.artifact import ArtifactMissing
from model.release_database import reading, url_in
from serving.release import OpenRelease

log = structlog.get_logger()


def additions_of(opened: OpenRelease, database: str | None = None) -> list[Addition]:
    """What was added to the space of a release, in order.

    database: as serving.release.open_release has it.  Raises NoRelease, SchemaMismatch, CatalogueUnreadable.
    """
    with reading(database or url_in(opened.workspace)) as session:
        return additions.list_additions(session, opened.space_id)


def read_additions(
    found: Sequence[Addition], space_id: str, workspace: Path, artifacts: str | None = None
) -> AddedItems:
    """The items of these additions, which the workspace has or gets from where servers fetch artifacts.

    artifacts: as serving.release.open_release has it.  Raises ArtifactMissing, ArtifactMismatch.
    """
    for one in found:
        if artifacts is not None and not _is_here(one, workspace / one.path):
            _fetch(one, artifacts, workspace / one.path)
    return additions.read_added(workspace, found, space_id)


def _is_here(addition: Addition, folder: Path) -> bool:
    # An item that was forgotten since leaves another artifact at the same place.
    return (folder / artifact.MANIFEST).is_file() and artifact.digest(folder) == addition.digest


def _fetch(addition: Addition, artifacts: str, folder: Path) -> None:
    try:
        source = (Path(artifacts) if "://" not in artifacts else UPath(artifacts)) / addition.path
        artifact.copy(source, folder, kind=additions.KIND)
    except (ImportError, OSError) as error:
        raise ArtifactMissing(
            f"added items cannot be fetched from {artifacts} ({error}): look whether it can be read"
        ) from None
    log.info("artifact_fetched", addition=addition.addition_id, source=str(source))
