"""Feast over packed rows answers as over its own SQLite store, and our reader as Feast, on every database."""

import random
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contract import SERVICES, VIEWS
from feature_repo.errors import CourierError
from feature_repo.packed.arrow_rows import load
from feature_repo.packed.reader import Lookup, PackedView, delete_expired, read_rows

NOW = datetime.now(UTC).replace(microsecond=123_456)
US = pa.timestamp("us", tz="UTC")
SCALARS = {
    "s": ("String", lambda rng: rng.choice(["", "é", "a\0b", "x" * 300])),
    "y": ("Bytes", lambda rng: rng.randbytes(rng.randrange(4))),
    "i": ("Int64", lambda rng: rng.randrange(-(2**63), 2**63)),
    "j": ("Int32", lambda rng: rng.randrange(-(2**31), 2**31)),
    "d": ("Float64", lambda rng: rng.choice([0.0, -1.5, 1e300, rng.random()])),
    "f": ("Float32", lambda rng: float(np.float32(rng.random()))),
    "b": ("Bool", lambda rng: rng.random() < 0.5),
    "t": ("UnixTimestamp", lambda rng: datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=rng.randrange(10**6))),
}
KINDS = {
    "s": pa.string(),
    "y": pa.binary(),
    "i": pa.int64(),
    "j": pa.int32(),
    "d": pa.float64(),
    "f": pa.float32(),
    "b": pa.bool_(),
    "t": US,
}
# Each test has entities of its own, so that their order does not matter.
ITEMS = [f"i{number}" for number in range(30)]
READ, LOADED = ([f"{test}{number}" for number in range(30)] for test in ("read", "loaded"))


def objects(folder):
    """A view with columns of every type, one with two keys, and one that expires after a day."""
    from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType, types

    item, space = (Entity(name=n, join_keys=[n], value_type=ValueType.STRING) for n in ("item", "space"))

    def view(name, entities, fields, **options):
        path = folder / f"{name}.parquet"
        source = FileSource(name=f"{name}_source", path=str(path), timestamp_field="event_timestamp",
                            created_timestamp_column="made")  # fmt: skip
        source = PushSource(name=f"{name}_push", batch_source=source)
        schema = [*(Field(name=entity.name, dtype=types.String) for entity in entities), *fields]
        return FeatureView(name=name, entities=entities, schema=schema, source=source, **options)

    scalars = {name: getattr(types, kind) for name, (kind, _) in SCALARS.items()}
    every = [Field(name=name, dtype=kind) for name, kind in scalars.items()]
    every += [Field(name=f"{name}s", dtype=types.Array(kind)) for name, kind in scalars.items()]
    number = Field(name="n", dtype=types.Int64)
    return [
        item,
        space,
        view("every", [item], every),
        view("pair", [space, item], [number, Field(name="title", dtype=types.String)]),
        view("day", [item], [Field(name="m", dtype=types.Float64)], ttl=timedelta(days=1)),
    ]


def open_store(folder, online_store):
    """A Feast repository with these views applied."""
    from feast import FeatureStore, RepoConfig

    folder.mkdir()
    config = RepoConfig(project="p", provider="local", registry=str(folder / "registry.db"),
                        offline_store={"type": "duckdb"}, online_store=online_store,
                        entity_key_serialization_version=3, repo_path=folder)  # fmt: skip
    store = FeatureStore(config=config)
    store.apply(objects(folder))
    return store


@pytest.fixture(scope="module")
def feasts(connection, tmp_path_factory):  # noqa: ARG001 (one for each of the others, so that both are empty at first)
    """Feast over its own SQLite store."""
    folder = tmp_path_factory.mktemp("feast") / "repo"
    return open_store(folder, {"type": "sqlite", "path": str(folder / "online.db")})


@pytest.fixture(scope="module")
def ours(connection, tmp_path_factory):
    """Feast over packed rows."""
    kind = "feature_repo.online_store.PackedOnlineStore"
    return open_store(tmp_path_factory.mktemp("ours") / "repo", {"type": kind, "connection_string": connection})


def database(store):
    return store._get_provider().online_store.database(store.config)


def packed_view(store, name):
    from feature_repo import online_store

    return online_store.packed_view("p", store.get_feature_view(name))


def frame(rows):
    """Rows as the frame that Feast takes."""
    table = pd.DataFrame(rows)
    for name in ("event_timestamp", "made"):
        table[name] = pd.to_datetime(table[name], utc=True).dt.as_unit("us")
    return table


def every_row(rng, item, moment):
    row = {"item": item, "event_timestamp": moment, "made": moment + timedelta(seconds=rng.randrange(9))}
    for name, (_, draw) in SCALARS.items():
        row[name] = draw(rng)
        row[f"{name}s"] = [draw(rng) for _ in range(rng.randrange(1, 4))]
    return row


def nulled(rng, row):
    """The row with some values of types for which pandas has a null missing."""
    return row | {name: None for name in ("s", "y", "ss", "is", "ds", "ts") if rng.random() < 0.3}


def answers(store, features, entities):
    return store.get_online_features(features, entities).to_dict()


def references(store, view):
    return [f"{view}:{feature.name}" for feature in store.get_feature_view(view).features]


def test_the_same_writes_are_answered_as_by_feasts_own_store(feasts, ours):
    rng = random.Random(0)
    asked = [*rng.sample(ITEMS, 20), "nobody", ITEMS[0], ITEMS[0]]
    for hour in range(3):  # each batch is newer than the one before, as Feast's store needs it
        moment = NOW - timedelta(hours=9 - hour)
        rows = [nulled(rng, every_row(rng, item, moment)) for item in rng.sample(ITEMS, 15)]
        pairs = [
            {"item": item, "space": rng.choice("ab"), "event_timestamp": moment, "made": moment, "n": rng.randrange(9),
             "title": rng.choice(["", "x"])}
            for item in rng.sample(ITEMS, 15)
        ]  # fmt: skip
        for store in (feasts, ours):
            store.write_to_online_store("every", frame(rows))
            store.push("pair_push", frame(pairs))
        for features in (references(ours, "every"), ["every:is", "every:s"], ["every:b", *references(ours, "pair")]):
            entities = {"item": asked, "space": [rng.choice("ab") for _ in asked]}
            assert repr(answers(ours, features, entities)) == repr(answers(feasts, features, entities))


def test_an_older_row_changes_nothing_and_one_of_the_same_moment_replaces(ours):
    def write(hours, made, n, title="x"):
        moment = NOW - timedelta(hours=hours)
        row = {"item": "a", "space": "s", "event_timestamp": moment, "n": n, "title": title}
        ours.write_to_online_store("pair", frame([row | {"made": NOW + timedelta(seconds=made)}]))
        return answers(ours, ["pair:n"], {"item": ["a"], "space": ["s"]})["n"]

    assert write(5, made=0, n=1) == [1]
    assert write(6, made=9, n=2) == [1]
    assert write(5, made=-1, n=3) == [1]
    assert write(5, made=0, n=4) == [4]
    assert write(4, made=-9, n=5) == [5]


def test_a_row_older_than_the_ttl_is_not_there_for_feast_and_for_our_reader_and_is_deleted(ours):
    edges = {"fresh": NOW - timedelta(hours=23), "old": NOW - timedelta(hours=25)}
    rows = [{"item": item, "event_timestamp": moment, "made": NOW, "m": 1.5} for item, moment in edges.items()]
    ours.write_to_online_store("day", frame(rows))
    assert answers(ours, ["day:m"], {"item": [*edges, "none"]})["m"] == [1.5, None, None]
    view = packed_view(ours, "day")
    [read] = read_rows(database(ours), [Lookup(view, {"item": [*edges, "none"]})], as_of=datetime.now(UTC))
    assert read.found.tolist() == [True, False, False]
    assert delete_expired(database(ours), [view], as_of=datetime.now(UTC)) == {"p_day": 1}


def test_our_reader_reads_what_feast_reads(ours):
    rng = random.Random(1)
    moment = NOW - timedelta(hours=2)
    ours.write_to_online_store("every", frame([nulled(rng, every_row(rng, item, moment)) for item in READ[:20]]))
    pairs = [{"item": item, "space": "r", "event_timestamp": moment, "made": NOW, "n": 3, "title": item}
             for item in READ[10:25]]  # fmt: skip
    ours.write_to_online_store("pair", frame(pairs))
    asked = [*rng.sample(READ, 25), "nobody", READ[3]]
    entities = {"item": asked, "space": ["r"] * len(asked)}
    lookups = [
        Lookup(packed_view(ours, "every"), {"item": asked}),
        Lookup(packed_view(ours, "pair"), {name: entities[name] for name in ("item", "space")}),
    ]
    read = read_rows(database(ours), lookups, as_of=datetime.now(UTC))
    for view, rows in zip(("every", "pair"), read, strict=True):
        expected = answers(ours, references(ours, view), entities)
        for name, column in rows.values.items():
            values = zip(column.tolist(), rows.valid[name].tolist(), strict=True)
            got = [plain(value, name) if valid else None for value, valid in values]
            assert repr(got) == repr(expected[name])


def plain(value, name):
    """A value of our reader as Feast gives it."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if name in ("t", "ts"):
        moments = [datetime.fromtimestamp(second, UTC) for second in (value if name == "ts" else [value])]
        return moments if name == "ts" else moments[0]
    return value


def arrow(rows, kinds):
    names = rows[0].keys()
    return pa.RecordBatch.from_pydict({name: pa.array([row[name] for row in rows], kinds[name]) for name in names})


def test_a_bulk_load_writes_what_feast_writes(ours, connection):
    rng = random.Random(2)
    kinds = {"item": pa.string(), "event_timestamp": US, "made": US}
    kinds |= KINDS | {f"{name}s": pa.list_(kind) for name, kind in KINDS.items()}
    rows = [nulled(rng, every_row(rng, item, NOW - timedelta(minutes=5))) for item in LOADED]
    older = [every_row(rng, item, NOW - timedelta(minutes=6)) for item in LOADED]
    ours.write_to_online_store("every", frame(rows))
    keys = {"item": LOADED}
    view = packed_view(ours, "every")
    other = PackedView(f"loaded_{len(connection)}", view.layout, view.ttl)
    database(ours).create(other.table)
    offered = load(database(ours), other, ["item"], [in_seconds(arrow(rows, kinds))], created_time="made")
    assert offered == len(rows)
    load(database(ours), other, ["item"], [in_seconds(arrow(older, kinds))], created_time="made")
    by_feast, by_us = read_rows(database(ours), [Lookup(view, keys), Lookup(other, keys)], as_of=NOW)
    assert by_us.found.all()
    assert repr(by_us) == repr(by_feast)
    database(ours).drop(other.table)


def in_seconds(batch):
    """Feast's UnixTimestamp is whole seconds."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns["t"] = columns["t"].cast(pa.timestamp("s", tz="UTC"), safe=False).cast(pa.int64())
    whole = pa.timestamp("s", tz="UTC")
    columns["ts"] = columns["ts"].cast(pa.list_(whole), safe=False).cast(pa.list_(pa.int64()))
    return pa.RecordBatch.from_pydict(columns)


def test_materialize_and_its_increment_load_the_newest_rows(ours):
    path = ours.config.repo_path / "pair.parquet"
    moments = [NOW - timedelta(days=3), NOW - timedelta(days=2), NOW - timedelta(hours=1)]

    def write(count):
        rows = [
            {"item": item, "space": "m", "event_timestamp": moment, "made": moment, "n": place, "title": item}
            for item in ITEMS[:5]
            for place, moment in enumerate(moments[:count])
        ]
        kinds = {"item": pa.string(), "space": pa.string(), "event_timestamp": US, "made": US, "n": pa.int64()}
        pq.write_table(pa.Table.from_batches([arrow(rows, kinds | {"title": pa.string()})]), path)

    asked = {"item": ITEMS[:6], "space": ["m"] * 6}
    write(2)
    ours.materialize(NOW - timedelta(days=5), NOW - timedelta(days=1), feature_views=["pair"])
    assert answers(ours, ["pair:n"], asked)["n"] == [1] * 5 + [None]
    write(3)
    ours.materialize_incremental(NOW, feature_views=["pair"])
    assert answers(ours, ["pair:n"], asked)["n"] == [2] * 5 + [None]
    ours.materialize(NOW - timedelta(days=5), NOW - timedelta(days=1), feature_views=["pair"])  # the past, again
    assert answers(ours, ["pair:n"], asked)["n"] == [2] * 5 + [None]


def test_feasts_server_pushes_and_answers(ours):
    from fastapi.testclient import TestClient
    from feast.feature_server import get_app

    moment = NOW.isoformat()
    row = {"item": ["q"], "space": ["s"], "event_timestamp": [moment], "made": [moment], "n": [8], "title": ["é"]}
    with TestClient(get_app(ours)) as client:
        pushed = client.post("/push", json={"push_source_name": "pair_push", "df": row, "to": "online"})
        assert pushed.status_code == 200, pushed.text
        asked = {"features": ["pair:n", "pair:title"], "entities": {"item": ["q", "?"], "space": ["s", "s"]}}
        answer = client.post("/get-online-features", json=asked).json()
    names = answer["metadata"]["feature_names"]
    columns = {name: column["values"] for name, column in zip(names, answer["results"], strict=True)}
    assert (columns["n"], columns["title"]) == ([8, None], ["é", None])


def test_a_value_of_another_type_is_refused_in_one_sentence(ours):
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    key = EntityKey(join_keys=["item"], entity_values=[Value(string_val="a")])
    rows = [(key, {"m": Value(string_val="1")}, NOW, None)]
    store, view = ours._get_provider().online_store, ours.get_feature_view("day")
    with pytest.raises(
        CourierError, match="a row of day brings string_val for m, whose type in the view takes double_"
    ):
        store.online_write_batch(ours.config, view, rows, None)
    older = SimpleNamespace(entity_key_serialization_version=2)
    with pytest.raises(CourierError, match="entity_key_serialization_version is not 3"):
        store.database(older)


def test_tables_go_with_their_views_and_with_the_store(ours):
    view = ours.get_feature_view("day")
    row = {"item": "gone", "event_timestamp": NOW, "made": NOW, "m": 1.0}
    ours.write_to_online_store("day", frame([row]))
    ours.apply([], objects_to_delete=[view], partial=False)
    ours.apply([item for item in objects(ours.config.repo_path) if item.name == "day"])
    assert answers(ours, ["day:m"], {"item": ["gone"]})["m"] == [None]
    ours.write_to_online_store("day", frame([row]))
    ours.teardown()
    ours.apply(objects(ours.config.repo_path))
    assert answers(ours, ["day:m"], {"item": ["gone"]})["m"] == [None]


def test_a_view_of_the_contract_is_the_same_to_feast_and_to_our_reader(tmp_path):
    from feature_repo import online_store
    from feature_repo.definitions import feast_objects

    registered = feast_objects(tmp_path)
    for view in VIEWS:
        by_feast, by_us = online_store.packed_view("c", registered[f"view_{view.name}"]), PackedView.of(view, "c")
        assert (by_feast.table, by_feast.ttl) == (by_us.table, by_us.ttl)
        assert by_feast.layout.fingerprint == by_us.layout.fingerprint
    assert {view for members in SERVICES.values() for view in members} == set(VIEWS)


def test_our_keys_are_feasts():
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    from feature_repo.packed.keys import entity_keys

    ids, spaces = ["", "é", "a\0b", "x" * 300], ["s", "", "é", "t"]

    def by_feast(names, *values):
        return serialize_entity_key(EntityKey(join_keys=names, entity_values=[Value(string_val=v) for v in values]), 3)

    assert entity_keys({"item_id": ids}) == [by_feast(["item_id"], one) for one in ids]
    both = [by_feast(["space_id", "item_id"], b, a) for a, b in zip(ids, spaces, strict=True)]
    assert entity_keys({"space_id": spaces, "item_id": ids}) == both
    assert entity_keys({"item_id": []}) == []
