"""How fresh each feature view is: the newest row of it that was loaded into the online store."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from feature_repo.contract import VIEWS
from model import artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewFreshness:
    """What the last finished load offered of one view.

    newest: the last moment at which a row of it becomes valid; None where it has no row.  A stream may have pushed
    newer ones since, which are not counted here.
    """

    view: str
    rows: int
    newest: datetime | None

    def facts(self, now: datetime) -> dict[str, Any]:
        """As JSON has it, with the age of the newest row in seconds."""
        age = None if self.newest is None else round((now - self.newest).total_seconds())
        newest = None if self.newest is None else self.newest.isoformat()
        return {"view": self.view, "rows": self.rows, "newest": newest, "age_seconds": age}


def freshness(workspace: Path) -> list[ViewFreshness]:
    """Of every view, as the artifacts tell it; empty where nothing was loaded, or its features artifact is gone."""
    loads = [artifact.read_manifest(folder) for folder in _finished(workspace / "materialize")]
    if not loads:
        return []
    loaded = max(loads, key=lambda one: one.created_at).facts["features"]
    for folder in _finished(workspace / "features"):
        features = artifact.read_manifest(folder)
        if artifact.identity(features) == loaded and "newest" in features.facts:
            rows, newest = features.facts["rows"], features.facts["newest"]
            return [
                ViewFreshness(view=view.name, rows=rows[view.name], newest=_moment(newest[view.name])) for view in VIEWS
            ]
    return []


def _finished(folder: Path) -> list[Path]:
    return [manifest.parent for manifest in folder.glob(f"*/{artifact.MANIFEST}")]


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
