"""Reading one user and 500 candidates from the online store, and loading it: Feast, ours and the floor in one run.

    python tests/bench/online.py --redis redis://HOST:PORT --postgresql postgresql://HOST/DB --write FILE

Read are all features of a model with cluster IDs: two views of the user, three of the items. Floor: the same bytes by
their keys, which are ready, through the bare driver. The databases must be empty; one without an address is left out.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from feature_repo.contract import (
    CODEBOOK_KEY,
    EVENT_TIME,
    ITEM_CLUSTER,
    ITEM_KEY,
    ITEM_PROFILE,
    ITEM_STATISTICS,
    USER_HISTORY,
    USER_KEY,
    USER_STATISTICS,
    View,
)
from feature_repo.packed.arrow_rows import load
from feature_repo.packed.database import Asked, Database, open_database
from feature_repo.packed.keys import entity_keys
from feature_repo.packed.reader import Lookup, PackedView, read_rows
from feature_repo.packed.redis_rows import row_names

USERS: Final = 1_000
CODEBOOK: Final = "c0123456789ab"
MOMENT: Final = datetime(2024, 3, 1, tzinfo=UTC)
READ: Final = (USER_HISTORY, USER_STATISTICS, ITEM_PROFILE, ITEM_STATISTICS, ITEM_CLUSTER)
ARROW: Final = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "list[str]": pa.list_(pa.string()),
    "list[int]": pa.list_(pa.int64()),
}
PROJECT: Final = "bench"

Keys = dict[str, list[str]]


def draw(view: View, count: int) -> pa.RecordBatch:
    """Rows of a view, one an entity."""
    rng = np.random.default_rng(len(view.name))
    columns: dict[str, pa.Array] = {}
    for key in view.keys:
        values = [CODEBOOK] * count if key == CODEBOOK_KEY else [f"{key[0]}{number:07d}" for number in range(count)]
        columns[key] = pa.array(values)
    columns[EVENT_TIME] = pa.array([MOMENT] * count, pa.timestamp("us", tz="UTC"))
    for feature in view.features:
        numbers = rng.integers(0, 10_000, count)
        values: Any = numbers.tolist()
        if feature.kind == "float":
            values = rng.random(count)
        elif feature.kind == "str":
            values = [f"category {number % 300}" for number in numbers]
        elif feature.kind.startswith("list"):
            values = [[f"i{number:07d}" for number in rng.integers(0, 10_000, 50)] for _ in range(count)]
            values = values if feature.kind == "list[str]" else rng.integers(0, 2**50, (count, 50)).tolist()
        columns[feature.name] = pa.array(values, ARROW[feature.kind])
    return pa.RecordBatch.from_pydict(columns)


def keys_of(view: View, users: list[str], items: list[str]) -> Keys:
    """What one request asks of a view."""
    if USER_KEY in view.keys:
        return {USER_KEY: users}
    return {ITEM_KEY: items} | ({CODEBOOK_KEY: [CODEBOOK] * len(items)} if CODEBOOK_KEY in view.keys else {})


# --- who reads ------------------------------------------------------------------------------------------------------


def open_feast(workspace: Path, online_store: dict[str, str]) -> Any:
    """Feast with the contract's views over this store."""
    from feast import FeatureStore, RepoConfig

    from feature_repo.definitions import feast_objects

    registry = workspace / f"registry-{online_store['type'].rpartition('.')[2]}.db"
    config = RepoConfig(project=PROJECT, provider="local", registry=str(registry), offline_store={"type": "duckdb"},
                        online_store=online_store, entity_key_serialization_version=3)  # fmt: skip
    store = FeatureStore(config=config)
    store.apply(list(feast_objects(workspace).values()))
    return store


def by_feast(store: Any) -> Callable[[list[str], list[str]], dict[str, list[Any]]]:
    """User and items are asked for apart, as a joint call would repeat the history an item."""
    refs = {view: [f"{view.name}:{feature.name}" for feature in view.features] for view in READ}
    sides = [[view for view in READ if (USER_KEY in view.keys) == of_user] for of_user in (True, False)]

    def read(users: list[str], items: list[str]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for views in sides:
            keys: Keys = {}
            for view in views:
                keys |= keys_of(view, users, items)
            found |= store.get_online_features([ref for view in views for ref in refs[view]], keys).to_dict()
        return {feature.name: found[feature.name] for view in READ for feature in view.features}

    return read


def by_precomputed(store: Any) -> Callable[[list[str], list[str]], dict[str, list[Any]]]:
    """Feast's precompute_online: a vector an entity and service, which only its Redis store can make."""
    from feast import FeatureService

    groups: dict[tuple[str, ...], list[View]] = {}
    for view in READ:
        groups.setdefault(view.keys, []).append(view)
    services = {f"precomputed_{'_'.join(keys)}": views for keys, views in groups.items()}
    for name, views in services.items():
        members = [store.get_feature_view(view.name) for view in views]
        store.apply([FeatureService(name=name, features=members, precompute_online=True)])
        assert store.precompute_feature_service(name)

    def read(users: list[str], items: list[str]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for name, views in services.items():
            asked = store.get_feature_service(name, allow_cache=True)
            # It writes full names, and does not find others again.
            answer = store.get_online_features(asked, keys_of(views[0], users, items), full_feature_names=True)
            found |= answer.to_dict()
        return {feature.name: found[f"{view.name}__{feature.name}"] for view in READ for feature in view.features}

    return read


def by_reader(database: Database) -> Callable[[list[str], list[str]], Any]:
    """Our reader."""
    views = {view: PackedView.of(view, PROJECT) for view in READ}
    return lambda users, items: read_rows(
        database, [Lookup(views[view], keys_of(view, users, items)) for view in READ], as_of=MOMENT
    )


def as_feast_gives_it(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Our reader's arrays as Feast's lists, to be compared."""
    found = {}
    for view in rows:
        for name, column in view.values.items():
            cells = (cell.tolist() if hasattr(cell, "tolist") else cell for cell in column)
            found[name] = [cell if valid else None for cell, valid in zip(cells, view.valid[name], strict=True)]
    return found


def by_driver(kind: str, address: str) -> Callable[[list[Asked]], Any]:
    """The floor: keys in, bytes out."""
    if kind == "sqlite":
        import sqlite3

        file = sqlite3.connect(address.removeprefix("sqlite:///"))
        query = "SELECT packed FROM {} WHERE entity_key IN ({})"
        return lambda asked: [
            file.execute(query.format(table, ",".join("?" * len(keys))), keys).fetchall() for table, keys in asked
        ]
    if kind == "redis":
        import redis

        client = redis.Redis.from_url(address)
        return client.mget
    import psycopg

    server = psycopg.connect(address, autocommit=True)

    def read(asked: list[Asked]) -> list[Any]:
        with server.pipeline():
            cursors = [
                server.cursor(binary=True).execute(
                    f"SELECT packed FROM {table} WHERE entity_key = ANY(%s)", (keys,), prepare=True
                )
                for table, keys in asked
            ]
        return [cursor.fetchall() for cursor in cursors]

    return read


def milliseconds(calls: Iterator[Callable[[], Any]]) -> tuple[float, float]:
    """p50 and p99 of the calls but for the first, which opens what is to be opened."""
    took = []
    for call in calls:
        started = time.perf_counter()
        call()
        took.append(1_000 * (time.perf_counter() - started))
    return float(np.percentile(took[1:], 50)), float(np.percentile(took[1:], 99))


# --- the run --------------------------------------------------------------------------------------------------------


def main(
    items: int = 100_000,
    candidates: int = 500,
    calls: int = 200,
    redis: Annotated[str | None, typer.Option(help="Of an empty Redis server, without a database's number.")] = None,
    postgresql: Annotated[str | None, typer.Option(help="Of an empty PostgreSQL database.")] = None,
    write: Annotated[Path | None, typer.Option(help="Where the tables are written.")] = None,
) -> None:
    """Load and read every store."""
    rng = np.random.default_rng(0)
    requests = [
        ([f"u{rng.integers(USERS):07d}"], [f"i{number:07d}" for number in rng.choice(items, candidates, replace=False)])
        for _ in range(calls + 1)
    ]
    loads, reads = [], []

    def told(table: list[str], row: str) -> None:
        table.append(f"| {row} |")
        print(table[-1], flush=True)

    def measure(name: str, read: Callable[..., Any], asked: Sequence[tuple[Any, ...]]) -> None:
        p50, p99 = milliseconds(lambda one=one: read(*one) for one in asked)
        told(reads, f"{name} | {p50:.2f} | {p99:.2f}")

    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        drawn = {view: draw(view, USERS if USER_KEY in view.keys else items) for view in READ}
        for view, rows in drawn.items():
            (workspace / "feast" / "sources" / view.name).mkdir(parents=True)
            pq.write_table(pa.Table.from_batches([rows]), workspace / "feast" / "sources" / view.name / "rows.parquet")
        total = sum(rows.num_rows for rows in drawn.values())

        ours = "feature_repo.online_store.PackedOnlineStore"
        stores = {"Feast, Feast's SQLite": {"type": "sqlite", "path": str(workspace / "feast.db")}}
        if redis:
            stores["Feast, Feast's Redis"] = {"type": "redis", "connection_string": redis.rpartition("/")[2]}
        stores["Feast, ours on SQLite"] = {"type": ours, "connection_string": f"sqlite:///{workspace}/packed.db"}
        expected = None
        for name, online_store in stores.items():
            store = open_feast(workspace, online_store)
            started = time.perf_counter()
            store.materialize(MOMENT - timedelta(days=1), MOMENT, feature_views=[view.name for view in READ])
            told(loads, f"{name}: feast materialize | {total / (time.perf_counter() - started):,.0f}")
            read = by_feast(store)
            expected = expected or read(*requests[0])
            assert read(*requests[0]) == expected, name
            measure(name, read, requests)
            if online_store["type"] == "redis":
                read = by_precomputed(store)
                assert read(*requests[0]) == expected, name
                measure(f"{name}, precompute_online", read, requests)

        addresses = {"sqlite": f"sqlite:///{workspace}/loaded.db"}
        addresses |= {"redis": f"{redis}/1"} if redis else {}
        addresses |= {"postgresql": postgresql} if postgresql else {}
        for kind, address in addresses.items():
            database = open_database(address)
            views = {view: PackedView.of(view, PROJECT) for view in READ}
            started = time.perf_counter()
            for view, rows in drawn.items():
                database.create(views[view].table)
                load(database, views[view], view.keys, [rows])
            told(loads, f"bulk load, {kind} | {total / (time.perf_counter() - started):,.0f}")
            read = by_reader(database)
            assert as_feast_gives_it(read(*requests[0])) == expected, kind
            asked = [
                [Asked(views[view].table, entity_keys(keys_of(view, *request))) for view in READ]
                for request in requests
            ]
            names = [[name for one in each for name in row_names(*one)] for each in asked]
            measure(
                f"floor, {kind}", by_driver(kind, address), [(one,) for one in (names if kind == "redis" else asked)]
            )
            measure(f"our reader, {kind}", read, requests)

    if write:
        write.write_text("\n".join(report(items, candidates, calls, loads, reads)) + "\n", "utf-8")


def report(items: int, candidates: int, calls: int, loads: Sequence[str], reads: Sequence[str]) -> list[str]:
    """The tables of a run."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    command = " ".join(word for word in sys.argv if "://" not in word)
    return [
        "# The online store: reading one user and his candidates, and loading it",
        "",
        f"`python {command}`, commit {commit}, {datetime.now(UTC):%Y-%m-%d}, seed 0.",
        f"{candidates} candidates of {items:,} items, {calls} calls. The values of all are equal.",
        "",
        "| read by | p50 ms | p99 ms |",
        "| --- | --- | --- |",
        *reads,
        "",
        "| loaded by | rows/s |",
        "| --- | --- |",
        *loads,
    ]


if __name__ == "__main__":
    typer.run(main)
