"""Load the online store: point the workspace's sources at a features artifact, apply the repository, materialize."""

import io
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from feature_repo.contract import LOADED_MARK, VIEWS
from jobs.features.history_store import reconciled
from model import artifact
from model.artifact import ArtifactMismatch, Manifest

if TYPE_CHECKING:
    from feast import FeatureStore

log = structlog.get_logger()

SOURCES: Final = Path("feast") / "sources"  # in the workspace: a link to the features artifact that Feast reads


def build(*, features: Path, workspace: Path, out: Path) -> Manifest:
    """Load every view's newest rows into the workspace's online store; the artifact says what was loaded.

    Killed at any moment and run again it ends in the same state: each step only sets what the last run would have set.
    A user whose pushed history has gone past the offline one keeps it (jobs.rules.online_histories.reconcile).
    Facts: features (their digest), as_of, space_id, rows (offered, per view; the store keeps an entity's newest).
    Notes: registry and online (as feature_store.yaml resolves them), seconds.
    """
    started = time.monotonic()
    source = artifact.read(features, kind="features")
    inputs = {"features": artifact.digest(features)}
    with artifact.write(out, kind="materialize", inputs=inputs, config={}) as draft:
        (workspace / LOADED_MARK).unlink(missing_ok=True)
        point_sources(workspace, features)
        store = _apply(workspace)
        with reconciled(store, workspace):  # clicks that a stream has pushed meanwhile stay
            rows = _load(store, source)
        artifact.write_whole(workspace / LOADED_MARK, inputs["features"].encode())
        # No file is left here: what was loaded is the artifact's identity.
        draft.facts = {**inputs, **{name: source.facts[name] for name in ("as_of", "space_id")}, "rows": rows}
        draft.notes = {
            "registry": str(store.config.registry.path),
            "online": _online_location(store),
            "seconds": round(time.monotonic() - started, 1),
        }
    log.info("features_materialized", seconds=draft.notes["seconds"], **rows)
    return artifact.read(out, kind="materialize")


def point_sources(workspace: Path, features: Path) -> None:
    """Make WORKSPACE/feast/sources a relative link to the features artifact, in one step."""
    link = workspace / SOURCES
    link.parent.mkdir(parents=True, exist_ok=True)
    aside = link.with_name(f".{link.name}-{uuid.uuid4().hex[:8]}")
    aside.symlink_to(os.path.relpath(features.resolve(), link.parent.resolve()))
    aside.replace(link)


def is_loaded(workspace: Path, features: Path) -> bool:
    """Whether the online store holds this features artifact, whole: its load began last, and ended."""
    try:
        loaded = (workspace / LOADED_MARK).read_text("utf-8")
    except FileNotFoundError:
        return False
    return loaded == artifact.digest(features) == artifact.digest((workspace / SOURCES).resolve())


def stands(workspace: Path, _: Path, inputs: Mapping[str, Path]) -> bool:
    """Whether the online store still holds what this stage loaded: all versions of it share one store."""
    return is_loaded(workspace, inputs["features"])


def check_sources(workspace: Path, features: Path) -> None:
    """Raise ArtifactMismatch unless the workspace's Feast sources are this features artifact."""
    loaded = (workspace / SOURCES).resolve()
    if loaded != features.resolve():
        raise ArtifactMismatch(f"{workspace / SOURCES} leads to {loaded}, not {features}: run materialize again")


def _apply(workspace: Path) -> "FeatureStore":

    from feature_repo.definitions import feast_objects, open_store

    with quiet():
        store = open_store(workspace)
        objects = list(feast_objects(workspace).values())
        named = {(type(item), item.name) for item in objects}
        registered = (*store.list_feature_services(), *store.list_feature_views(), *store.list_entities())
        stale = [item for item in registered if (type(item), item.name) not in named]
        store.apply(objects, objects_to_delete=stale, partial=False)
    return store


def _load(store: "FeatureStore", source: Manifest) -> dict[str, int]:
    # Feast's interval is [start, end]; a row is valid from `start` at the earliest.
    start = datetime.fromisoformat(source.facts["start"]) - timedelta(days=1)
    end = datetime.fromisoformat(source.facts["as_of"])
    rows = {}
    with _progress() as progress:
        task = progress.add_task("materialize", total=len(VIEWS), view="")
        for view in VIEWS:
            progress.update(task, view=view.name)
            with quiet():
                store.materialize(start, end, feature_views=[view.name])
            rows[view.name] = source.facts["rows"][view.name]
            progress.advance(task)
    return rows


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[view]}"), console=Console(stderr=True))


def _online_location(store: "FeatureStore") -> str:
    online: Any = store.config.online_store
    return str(getattr(online, "path", None) or online.type)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what Feast prints (its progress bars, its greetings, its libraries' warnings) from the user's terminal.

    What fails still raises.
    """
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
