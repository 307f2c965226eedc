"""The point-in-time join by Spark: what the offline store's join by DuckDB says, and what a plain loop says."""

import random
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contract import PERIODS
from jobs.features import training_rows
from model import artifact

TIME = pa.timestamp("us", tz="UTC")
START = datetime(2024, 3, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
TTL = timedelta(seconds=5)
# Moments that lie on, just before and just behind each other's edges.
MOMENTS = [START + timedelta(seconds=n) + e * MICROSECOND for n in (0, 1, 5, 6, 10) for e in (-1, 0, 1)]
USERS = 60
KEYS = {"tags": ("user",), "counts": ("user",), "prices": ("user", "item")}
FEATURES = {"tags": ("words", "visits"), "counts": ("n",), "prices": ("price",)}
SCHEMAS = {
    "tags": [("user", pa.string()), ("at", TIME), ("made", TIME), ("words", pa.list_(pa.string()))]
    + [("visits", pa.int64())],
    "counts": [("user", pa.string()), ("at", TIME), ("n", pa.int64())],
    "prices": [("user", pa.string()), ("item", pa.string()), ("at", TIME), ("price", pa.float64())],
}


def paths(shop):
    folders = {name: getattr(shop, name) for name in ("sequences", "features", "workspace")}
    return {**folders, "materialize": shop.workspace / "materialize" / "k"}


def test_spark_writes_the_files_that_duckdb_writes(spark, loaded_shop, tmp_path, monkeypatch):
    monkeypatch.setattr(training_rows, "ROWS_A_CALL", 400)  # several spans
    training_rows.build(**paths(loaded_shop), out=tmp_path / "duckdb" / "k")
    training_rows.build(**paths(loaded_shop), out=tmp_path / "spark" / "k", engine="spark")
    assert spark.getActiveSession() is spark
    here, there = (artifact.read(tmp_path / name / "k", kind="rows") for name in ("duckdb", "spark"))
    for period in PERIODS:
        tables = [pq.read_table(tmp_path / name / "k" / f"{period}.parquet") for name in ("duckdb", "spark")]
        assert str(tables[0].to_pylist()) == str(tables[1].to_pylist())  # as text: NaN is not equal to itself
    assert there.files == here.files
    assert there.facts == here.facts


def drawn(rng):
    """Rows of each view, some of them without a key, a moment or a value; of one moment with several creations."""
    users = [f"u{n}" for n in range(USERS)]
    tags, counts, prices = [], [], []
    for user in [*users, None]:
        for at in [*rng.sample(MOMENTS, rng.randrange(8)), None]:
            for made in rng.sample([None, *MOMENTS], rng.randrange(1, 4)):
                words = rng.choice([None, [], ["a"], ["b", "c"]])
                tags.append({"user": user, "at": at, "made": made, "words": words, "visits": rng.randrange(1000)})
        for at in rng.sample(MOMENTS, rng.randrange(8)):
            counts.append({"user": user, "at": at, "n": rng.choice([None, rng.randrange(1000)])})
        for item in ("i0", "i1", None):
            of_pair = rng.sample(MOMENTS, rng.randrange(6))
            prices += [{"user": user, "item": item, "at": at, "price": rng.random()} for at in of_pair]
    return {"tags": tags, "counts": counts, "prices": prices}


def plain(rows, view, asked):
    """The features of the newest row that is valid at the moment, by looking at all of them."""
    moment, ttl = asked["event_timestamp"], TTL if view == "tags" else None
    of_entity = [
        row
        for row in rows
        if row["at"] is not None
        and row["at"] <= moment
        and all(row[key] is not None and row[key] == asked[key] for key in KEYS[view])
    ]
    newest = max(of_entity, key=lambda row: (row["at"], row.get("made") or START - timedelta(days=1)), default=None)
    known = newest is not None and (ttl is None or moment <= newest["at"] + ttl)
    return {name: newest[name] if known else None for name in FEATURES[view]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A feature store over our offline store: a view with ttl and creations, one with neither, one of two keys."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Array, Float64, Int64, String

    folder = tmp_path_factory.mktemp("store")
    opened = FeatureStore(
        config=RepoConfig(
            project="p",
            provider="local",
            registry=str(folder / "registry.db"),
            offline_store={"type": "feature_repo.offline_store.AsofOfflineStore", "spill": str(folder / "spill")},
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    )
    entities = {key: Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key in ("user", "item")}
    kinds = {"words": Array(String), "visits": Int64, "n": Int64, "price": Float64}
    views = []
    for name, keys in KEYS.items():
        (folder / name).mkdir()
        made = {"created_timestamp_column": "made"} if name == "tags" else {}
        path = str(folder / name)
        source = FileSource(name=f"{name}_s", path=path, timestamp_field="at", file_format=ParquetFormat(), **made)
        fields = [Field(name=key, dtype=String) for key in keys]
        fields += [Field(name=feature, dtype=kinds[feature]) for feature in FEATURES[name]]
        ttl = TTL if name == "tags" else timedelta(0)
        of_keys = [entities[key] for key in keys]
        views.append(FeatureView(name=name, entities=of_keys, ttl=ttl, source=source, schema=fields))
    rows = drawn(random.Random(11))
    for name, schema in SCHEMAS.items():
        pq.write_table(pa.Table.from_pylist(rows[name], schema=pa.schema(schema)), folder / name / "part-0.parquet")
    opened.apply([*entities.values(), *views])
    return opened, rows


def test_each_row_knows_what_the_offline_store_and_a_plain_loop_find_at_both_edges_of_every_interval(
    spark, store, tmp_path
):
    from jobs.features.spark_asof_join import as_of, history

    store, rows = store
    edges = sorted({at + shift for at in MOMENTS for shift in (timedelta(0), TTL, TTL + MICROSECOND, -MICROSECOND)})
    rng = random.Random(12)
    asked = [
        {"place": place, "user": user, "item": rng.choice(["i0", "i1", "i2", None]), "event_timestamp": at}
        for place, (user, at) in enumerate((f"u{n}", at) for n in range(USERS + 1) for at in edges)
    ]
    asked.append({"place": len(asked), "user": None, "item": None, "event_timestamp": MOMENTS[-1]})
    schema = pa.schema([("place", pa.int64()), ("user", pa.string()), ("item", pa.string()), ("event_timestamp", TIME)])
    pq.write_table(pa.Table.from_pylist(asked, schema=schema), tmp_path / "asked.parquet")
    expected = [{**row, **{n: v for view in KEYS for n, v in plain(rows[view], view, row).items()}} for row in asked]
    names = [f"{view}:{feature}" for view in KEYS for feature in FEATURES[view]]
    frame = f"SELECT * FROM '{tmp_path}/asked.parquet' ORDER BY place"
    here = store.get_historical_features(frame, names).to_arrow().to_pylist()
    histories = [history(spark, store.get_feature_view(view)) for view in KEYS]
    joined = as_of(spark.read.parquet(str(tmp_path / "asked.parquet")), histories, moment="event_timestamp")
    there = sorted(joined.toArrow().to_pylist(), key=lambda row: row["place"])
    assert joined.columns == list(expected[0])
    assert here == expected
    assert there == expected
    assert {row["visits"] is None for row in expected} == {True, False}


def test_no_python_runs_on_an_executor_and_no_pairs_are_made(spark, store):
    from jobs.features.spark_asof_join import as_of, history

    store, _ = store
    asked = spark.createDataFrame([], "user string, item string, event_timestamp timestamp")
    histories = [history(spark, store.get_feature_view(view)) for view in KEYS]
    plan = as_of(asked, histories, moment="event_timestamp")._jdf.queryExecution().executedPlan().toString()
    assert "Window" in plan
    assert "Join" not in plan
    assert "Python" not in plan
    # The histories of users share one sort.
    assert plan.count("Window [") == 2
