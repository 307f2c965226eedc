"""Which features artifact Feast's offline sources are: a link in the workspace, moved in one step."""

import os
import uuid
from pathlib import Path
from typing import Final

from model.artifact import ArtifactMismatch

SOURCES: Final = Path("feast") / "sources"  # in the workspace: a link to the features artifact that Feast reads


def point_sources(workspace: Path, features: Path) -> None:
    """Make WORKSPACE/feast/sources a relative link to the features artifact, in one step."""
    link = workspace / SOURCES
    link.parent.mkdir(parents=True, exist_ok=True)
    aside = link.with_name(f".{link.name}-{uuid.uuid4().hex[:8]}")
    aside.symlink_to(os.path.relpath(features.resolve(), link.parent.resolve()))
    aside.replace(link)


def check_sources(workspace: Path, features: Path) -> None:
    """Raise ArtifactMismatch unless the workspace's Feast sources are this features artifact."""
    loaded = (workspace / SOURCES).resolve()
    if loaded != features.resolve():
        raise ArtifactMismatch(f"{workspace / SOURCES} leads to {loaded}, not {features}: run materialize again")
