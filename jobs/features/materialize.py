"""Load the online store: point the workspace's sources at a features artifact, apply the repository, load, look."""

import time
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from feature_repo.contract import ITEM_PROFILE
from feature_repo.store_settings import read_settings
from infra.migrations.migrate import migrate
from jobs.features.history_store import is_transient
from jobs.features.load import load_features
from jobs.features.offline_sources import SOURCES, point_sources
from jobs.workspace import releases_url
from model import artifact
from model.artifact import Manifest
from model.release_database import NoRelease, SchemaMismatch, reading, url_in, writing
from model.stored_features import held_features, mark_loaded, mark_loading

if TYPE_CHECKING:
    from feast import FeatureStore

log = structlog.get_logger()


def build(*, features: Path, workspace: Path, out: Path) -> Manifest:
    """Load every view's newest rows into the workspace's online store; the artifact says what was loaded.

    Killed at any moment and run again it ends in the same state: each step only sets what the last run would have set.
    Feast's watermark (up to when `feast materialize-incremental` takes all for loaded) and ours move last, after what
    the store holds was compared with what was loaded.
    Facts: features (their digest), as_of, space_id, codebook_id, rows (loaded, per view: one an entity).
    Notes: registry and online (as feature_store.yaml resolves them), seconds.
    Which features the store holds stands in the database of releases, so that hosts that share it agree.
    Raises StoreDiffers, LoadOvertaken where another load began meanwhile, CatalogueUnreadable, what the store raises.
    """
    started = time.monotonic()
    source = artifact.read(features, kind="features")
    inputs = {"features": artifact.digest(features)}
    start, as_of = (datetime.fromisoformat(source.facts[name]) for name in ("start", "as_of"))
    with artifact.write(out, kind="materialize", inputs=inputs, config={}) as draft:
        online = _online_store(workspace)
        _mark_loading(workspace, online, inputs["features"], as_of)
        point_sources(workspace, features)
        store = _apply(workspace)
        rows = load_features(features, workspace, as_of=as_of, scratch=draft.path / "spill")
        for view in store.list_feature_views():
            if view.name in rows:
                store.registry.apply_materialization(view, store.project, start - timedelta(days=1), as_of)
        with writing(releases_url(workspace)) as session:
            mark_loaded(session, online, features=inputs["features"], now=datetime.now(UTC))
        # No file is left here: what was loaded is the artifact's identity.
        draft.facts = {
            **inputs,
            **{name: source.facts[name] for name in ("as_of", "space_id", "codebook_id")},
            "rows": rows,
        }
        draft.notes = {
            "registry": str(store.config.registry.path),
            "online": str(store.config.online_store.type),
            "seconds": round(time.monotonic() - started, 1),
        }
    log.info("features_materialized", seconds=draft.notes["seconds"], **rows)
    return artifact.read(out, kind="materialize")


def is_loaded(workspace: Path, features: Path) -> bool:
    """Whether the online store holds this features artifact, whole: its load began last, and ended; and not nothing."""
    digest = artifact.digest(features)
    try:
        with reading(releases_url(workspace)) as session:
            held = held_features(session, _online_store(workspace))
    except (NoRelease, SchemaMismatch):  # the next load brings the database up
        return False
    linked = digest == artifact.digest((workspace / SOURCES).resolve())
    return held is not None and held.whole and held.features == digest and linked and _holds_something(workspace)


def stands(workspace: Path, _: Path, inputs: Mapping[str, Path]) -> bool:
    """Whether the online store still holds what this stage loaded: all versions of it share one store."""
    return is_loaded(workspace, inputs["features"])


def _online_store(workspace: Path) -> str:
    # A database that other workspaces share must tell their stores apart; in the workspace's own, both move together.
    return read_settings(workspace).identity(None if releases_url(workspace) != url_in(workspace) else workspace)


def _mark_loading(workspace: Path, online: str, features: str, as_of: datetime) -> None:
    url = releases_url(workspace)
    migrate(url)
    with writing(url) as session:
        mark_loading(session, online, features=features, as_of=as_of, now=datetime.now(UTC))


def _holds_something(workspace: Path) -> bool:
    # After `feast teardown`, or where a file was removed, what the mark says is no longer so.
    settings = read_settings(workspace)
    if not settings.is_packed:
        return True
    try:
        with closing(settings.database()) as database:
            return database.some_row(settings.packed_views()[ITEM_PROFILE.name].table) is not None
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
