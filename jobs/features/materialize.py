"""Load the online store: point the workspace's sources at a features artifact, apply the repository, load, look."""

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from feature_repo.contract import ITEM_PROFILE
from feature_repo.store_settings import read_settings
from jobs.features.history_store import is_transient
from jobs.features.load import load_features
from jobs.features.offline_sources import SOURCES, point_sources
from model import artifact
from model.artifact import Manifest

if TYPE_CHECKING:
    from feast import FeatureStore

log = structlog.get_logger()

# In the workspace: which features artifact which online store was loaded with; absent while one is loaded.
LOADED_MARK: Final = Path("feast") / "loaded"


def build(*, features: Path, workspace: Path, out: Path) -> Manifest:
    """Load every view's newest rows into the workspace's online store; the artifact says what was loaded.

    Killed at any moment and run again it ends in the same state: each step only sets what the last run would have set.
    Feast's watermark (up to when `feast materialize-incremental` takes all for loaded) and ours move last, after what
    the store holds was compared with what was loaded.
    Facts: features (their digest), as_of, space_id, rows (loaded, per view: one an entity).
    Notes: registry and online (as feature_store.yaml resolves them), seconds.
    Raises StoreDiffers, and what the store raises.
    """
    started = time.monotonic()
    source = artifact.read(features, kind="features")
    inputs = {"features": artifact.digest(features)}
    start, as_of = (datetime.fromisoformat(source.facts[name]) for name in ("start", "as_of"))
    with artifact.write(out, kind="materialize", inputs=inputs, config={}) as draft:
        (workspace / LOADED_MARK).unlink(missing_ok=True)
        point_sources(workspace, features)
        store = _apply(workspace)
        rows = load_features(features, workspace, as_of=as_of, scratch=draft.path / "spill")
        for view in store.list_feature_views():
            if view.name in rows:
                store.registry.apply_materialization(view, store.project, start - timedelta(days=1), as_of)
        artifact.write_whole(workspace / LOADED_MARK, _mark(workspace, features).encode())
        # No file is left here: what was loaded is the artifact's identity.
        draft.facts = {**inputs, **{name: source.facts[name] for name in ("as_of", "space_id")}, "rows": rows}
        draft.notes = {
            "registry": str(store.config.registry.path),
            "online": str(store.config.online_store.type),
            "seconds": round(time.monotonic() - started, 1),
        }
    log.info("features_materialized", seconds=draft.notes["seconds"], **rows)
    return artifact.read(out, kind="materialize")


def is_loaded(workspace: Path, features: Path) -> bool:
    """Whether the online store holds this features artifact, whole: its load began last, and ended; and not nothing."""
    try:
        loaded = (workspace / LOADED_MARK).read_text("utf-8")
    except FileNotFoundError:
        return False
    linked = artifact.digest(features) == artifact.digest((workspace / SOURCES).resolve())
    return loaded == _mark(workspace, features) and linked and _holds_something(workspace)


def stands(workspace: Path, _: Path, inputs: Mapping[str, Path]) -> bool:
    """Whether the online store still holds what this stage loaded: all versions of it share one store."""
    return is_loaded(workspace, inputs["features"])


def _mark(workspace: Path, features: Path) -> str:
    return f"{artifact.digest(features)} {read_settings(workspace).identity}"


def _holds_something(workspace: Path) -> bool:
    # After `feast teardown`, or where a file was removed, what the mark says is no longer so.
    settings = read_settings(workspace)
    if not settings.is_packed:
        return True
    try:
        return settings.database().some_row(settings.packed_views()[ITEM_PROFILE.name].table) is not None
    except Exception as error:
        if is_transient(error):  # a server that is away: whoever loads it will say so
            return False
        raise


def _apply(workspace: Path) -> "FeatureStore":
    from feature_repo.definitions import feast_objects, open_store

    store = open_store(workspace)
    objects = list(feast_objects(workspace).values())
    named = {(type(item), item.name) for item in objects}
    registered = (*store.list_feature_services(), *store.list_feature_views(), *store.list_entities())
    stale = [item for item in registered if (type(item), item.name) not in named]
    store.apply(objects, objects_to_delete=stale, partial=False)
    return store
