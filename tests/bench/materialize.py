"""Loading the online store: our bulk load against `feast materialize` on Feast's own SQLite and Redis, in one run.

    python tests/bench/materialize.py --redis redis://HOST:PORT --postgresql postgresql://HOST/DB --write FILE

Loaded are vectors of 128 floats as bytes, and nine statistics an entity, from parquet. Ours is what `courier
materialize` does: DuckDB finds each entity's newest row, Arrow becomes packed rows, a transaction a batch, and a count
and a sample are compared afterwards. Feast loads fewer rows (--feast-vectors, --feast-statistics), which its rows/s
hardly depend on. At that smaller size both are read back through Feast, and must be equal.
The databases must be empty; one without an address is left out.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from feature_repo.contract import EVENT_TIME, ITEM_STATISTICS, VIEWS, Feature, View
from feature_repo.online_views import PackedViews
from feature_repo.packed.reader import PackedView
from feature_repo.store_settings import PACKED, OnlineSettings
from jobs.engines import duckdb_session
from jobs.features import load, offline

PROJECT: Final = "bench"
MOMENT: Final = datetime(2024, 3, 1, tzinfo=UTC)
VECTORS: Final = View("vectors", ("item_id",), (Feature("vector", "bytes", 128),))
READ_BACK: Final = 1_000
SIDES: Final = (VECTORS, ITEM_STATISTICS)


def write_rows(folder: Path, view: View, count: int) -> None:
    """One row an entity, in the form of a features artifact."""
    rng = np.random.default_rng(count)
    columns: dict[str, Any] = {"item_id": [f"i{number:08d}" for number in range(count)], EVENT_TIME: [MOMENT] * count}
    for feature in view.features:
        if feature.kind == "bytes":
            vectors = rng.normal(size=(count, feature.width)).astype("<f4")
            columns[feature.name] = [vector.tobytes() for vector in vectors]
        else:
            numbers = rng.integers(0, 10_000, count)
            columns[feature.name] = numbers if feature.kind == "int" else numbers / 10_000
    (folder / view.name).mkdir(parents=True)
    table = pa.table(columns, schema=offline.source_schema(view))
    pq.write_table(table, folder / view.name / "part-0.parquet")


# --- ours -----------------------------------------------------------------------------------------------------------


def load_ours(views: PackedViews, features: Path, view: View, scratch: Path) -> int:
    """One view, as load_features loads each."""
    views.database.create(views.views[view.name].table)
    with duckdb_session.connect(scratch) as db:
        count = load.find_newest(db, features, view, MOMENT)
        for rows in load.newest_rows(db, features, view):
            views.write(view, rows, as_of=MOMENT)
        load.check_count(views, view, count)
        for rows in load.newest_rows(db, features, view, load.SAMPLE):
            load.check_rows(views, view, rows, MOMENT)
    return count


def packed_views(address: str) -> PackedViews:
    """Our store at this address, with the bench's views."""
    views = PackedViews(OnlineSettings(PROJECT, {"type": PACKED, "connection_string": address}))
    views.views = {view.name: PackedView.of(view, PROJECT) for view in (*VIEWS, VECTORS)}
    return views


# --- Feast ----------------------------------------------------------------------------------------------------------


def open_feast(workspace: Path, features: Path, online_store: Mapping[str, str]) -> Any:
    """Feast with the bench's views over this store."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import String

    from feature_repo.definitions import FEAST_TYPES

    item = Entity(name="item_id", join_keys=["item_id"], value_type=ValueType.STRING)
    objects: list[Any] = [item]
    for view in SIDES:
        fields = [Field(name=feature.name, dtype=FEAST_TYPES[feature.kind]) for feature in view.features]
        source = FileSource(name=f"{view.name}_s", path=str(features / view.name), timestamp_field=EVENT_TIME)
        schema = [Field(name="item_id", dtype=String), *fields]
        objects.append(FeatureView(name=view.name, entities=[item], schema=schema, source=source, ttl=timedelta(0)))
    registry = workspace / f"registry-{len(list(workspace.iterdir()))}.db"
    config = RepoConfig(project=PROJECT, provider="local", registry=str(registry),
                        offline_store={"type": "feature_repo.offline_store.AsofOfflineStore"},
                        online_store=dict(online_store), entity_key_serialization_version=3,
                        materialization={"online_write_batch_size": 10_000})  # fmt: skip
    store = FeatureStore(config=config)
    store.apply(objects)
    return store


def read_by_feast(store: Any, view: View, count: int) -> dict[str, list[Any]]:
    """What Feast answers for some of the entities."""
    picked = np.random.default_rng(1).choice(count, min(READ_BACK, count), replace=False)
    refs = [f"{view.name}:{feature.name}" for feature in view.features]
    found: dict[str, list[Any]] = store.get_online_features(
        refs, {"item_id": [f"i{number:08d}" for number in picked]}
    ).to_dict()
    assert all(value is not None for value in found[view.features[0].name])
    return found


# --- the run --------------------------------------------------------------------------------------------------------


@contextmanager
def timed(rows: int, name: str, told: list[str]) -> Iterator[None]:
    """Tell how many rows a second the block loads, by the clock and by this process's CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    yield
    wall, busy = time.perf_counter() - clock, time.process_time() - cpu
    told.append(f"| {name} | {rows:,} | {rows / wall:,.0f} | {rows / busy:,.0f} |")
    print(told[-1], flush=True)


def main(
    vectors: int = 100_000,
    statistics: int = 1_000_000,
    feast_vectors: int = 20_000,
    feast_statistics: int = 20_000,
    redis: Annotated[str | None, typer.Option(help="Of an empty Redis server, without a database's number.")] = None,
    postgresql: Annotated[str | None, typer.Option(help="Of an empty PostgreSQL database.")] = None,
    write: Annotated[Path | None, typer.Option(help="Where the table is written.")] = None,
) -> None:
    """Load every store, and read back what was loaded."""
    told: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        small, large = workspace / "small", workspace / "large"
        sizes = {(small, VECTORS): feast_vectors, (small, ITEM_STATISTICS): feast_statistics,
                 (large, VECTORS): vectors, (large, ITEM_STATISTICS): statistics}  # fmt: skip
        for (features, view), count in sizes.items():
            write_rows(features, view, count)
        expected: dict[str, Any] = {}
        feasts = {"Feast's SQLite": {"type": "sqlite", "path": str(workspace / "feast.db")}}
        feasts |= {"Feast's Redis": {"type": "redis", "connection_string": redis.rpartition("/")[2]}} if redis else {}
        for name, online_store in feasts.items():
            store = open_feast(workspace, small, online_store)
            for view in SIDES:
                with timed(sizes[small, view], f"feast materialize, {name}: {view.name}", told):
                    store.materialize(MOMENT - timedelta(days=1), MOMENT, feature_views=[view.name])
                found = read_by_feast(store, view, sizes[small, view])
                assert expected.setdefault(view.name, found) == found, name
        ours = {"SQLite": f"sqlite:///{workspace}/{{}}.db"}
        ours |= {"Redis": f"{redis}/{{}}"} if redis else {}
        ours |= {"PostgreSQL": postgresql} if postgresql else {}
        for name, address in ours.items():
            for place, features in enumerate((small, large), start=1):
                views = packed_views(address.format(place))
                for view in SIDES:
                    with timed(sizes[features, view], f"bulk load, {name}: {view.name}", told):
                        load_ours(views, features, view, workspace / "spill")
                    if features == small:
                        ready = {"type": PACKED, "connection_string": address.format(place)}
                        store = open_feast(workspace, small, ready)
                        assert read_by_feast(store, view, sizes[small, view]) == expected[view.name], name
    if write:
        write.write_text("\n".join(report(told)) + "\n", "utf-8")


def report(told: list[str]) -> list[str]:
    """The table of a run."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    command = " ".join(word for word in sys.argv if "://" not in word)
    return [
        "# Loading the online store",
        "",
        f"`python {command}`, commit {commit}, {datetime.now(UTC):%Y-%m-%d}. Read back through Feast, all are equal.",
        "",
        "| loaded by | rows | rows/s | rows/s of this process's CPU |",
        "| --- | --- | --- | --- |",
        *told,
    ]


if __name__ == "__main__":
    typer.run(main)
