"""The Feast repository: the contract's keys, views and services as Feast's objects; the only file that Feast reads.

Feast takes what it finds among this module's attributes, so the objects are put there one by one, from the contract.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Array, Bytes, FeastType, Float64, Int64, String

from feature_repo.contract import (
    EVENT_TIME,
    KEYS,
    PUSH_SOURCES,
    SERVICE_DESCRIPTIONS,
    SERVICES,
    VIEWS,
    WORKSPACE,
    View,
)

OWNER: Final = "feature_repo"  # of what belongs to no one view
FEAST_TYPES: Final[dict[str, FeastType]] = {
    "str": String,
    "int": Int64,
    "float": Float64,
    "bytes": Bytes,
    "list[str]": Array(String),
    "list[int]": Array(Int64),
}

FeastObject: TypeAlias = Entity | FileSource | PushSource | FeatureView | FeatureService


def source_path(workspace: Path, view: View) -> Path:
    """The folder of parquet files that holds a view's rows: its keys, `event_timestamp` and its features."""
    return workspace / "feast" / "sources" / view.name


def feast_objects(workspace: Path) -> dict[str, FeastObject]:
    """Every entity, source, view and service of the contract, by a name that is unique among all of them."""
    entities = {key: _entity(key) for key in KEYS}
    sources = {view.name: _source(view, workspace) for view in VIEWS}
    pushes = {view.name: _push_source(view, sources[view.name]) for view in VIEWS if view.name in PUSH_SOURCES}
    views = {view.name: _feature_view(view, entities, (sources | pushes)[view.name]) for view in VIEWS}
    services = {
        name: FeatureService(
            name=name,
            features=[views[view.name] for view in members],
            description=SERVICE_DESCRIPTIONS[name],
            owner=OWNER,
        )
        for name, members in SERVICES.items()
    }
    kinds = {"entity": entities, "source": sources, "push": pushes, "view": views, "service": services}
    return {f"{kind}_{name}": item for kind, members in kinds.items() for name, item in members.items()}


def open_store(workspace: Path) -> FeatureStore:
    """The workspace's feature store, as feature_store.yaml describes it: the one that the `feast` command opens."""
    (workspace / "feast").mkdir(parents=True, exist_ok=True)
    with _workspace_in_environment(workspace):
        return FeatureStore(repo_path=str(Path(__file__).parent))


@contextmanager
def _workspace_in_environment(workspace: Path) -> Iterator[None]:
    # Feast fills ${...} of feature_store.yaml from the environment alone, once, when it loads the file.
    before = os.environ.get(WORKSPACE)
    os.environ[WORKSPACE] = str(workspace.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ[WORKSPACE]
        else:
            os.environ[WORKSPACE] = before


def _entity(key: str) -> Entity:
    return Entity(name=key, join_keys=[key], value_type=ValueType.STRING, description=KEYS[key], owner=OWNER)


def _source(view: View, workspace: Path) -> FileSource:
    # Absolute: DuckDB would look for a relative path under whatever directory it is called from.
    path = source_path(workspace.absolute(), view)
    return FileSource(
        name=f"{view.name}_source",
        path=str(path),
        timestamp_field=EVENT_TIME,
        file_format=ParquetFormat(),
        description=view.description,
        tags=view.tags,
        owner=view.owner,
    )


def _push_source(view: View, batch: FileSource) -> PushSource:
    said = f"{view.description} As a stream tells it between two batch loads."
    return PushSource(
        name=PUSH_SOURCES[view.name], batch_source=batch, description=said, tags=view.tags, owner=view.owner
    )


def _feature_view(view: View, entities: dict[str, Entity], source: FileSource | PushSource) -> FeatureView:
    keys = [Field(name=key, dtype=String) for key in view.keys]
    features = [
        Field(name=feature.name, dtype=FEAST_TYPES[feature.kind], description=feature.description)
        for feature in view.features
    ]
    return FeatureView(
        name=view.name,
        entities=[entities[key] for key in view.keys],
        schema=[*keys, *features],
        source=source,
        ttl=view.ttl,
        online=True,
        description=view.description,
        tags=view.tags,
        owner=view.owner,
    )


globals().update(feast_objects(Path(os.environ.get(WORKSPACE, "workspace"))))
