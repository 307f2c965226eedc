"""Our offline store answers as Feast's own DuckDB store does, and as a plain loop over all rows does."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.errors import FeastEntityDFMissingColumnsError, SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bytes, Float64, Int64, String
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.errors import CourierError

OURS = "feature_repo.offline_store.AsofOfflineStore"
TIME = pa.timestamp("us", tz="UTC")
START = datetime(2024, 3, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)
# Moments that lie on, just before and just behind each other's edges, at both ttls.
MOMENTS = [START + n * SECOND + e * MICROSECOND for n in (0, 1, 5, 6, 10, 11) for e in (-1, 0, 1)]
COUNTS_TTL, PLACES_TTL = 10 * SECOND, 5 * SECOND

COUNTS = pa.schema(
    [
        ("user_id", pa.string()),
        ("at", TIME),
        ("made", TIME),
        ("raw_n", pa.int64()),  # the feature n, by a field mapping
        ("tags", pa.list_(pa.string())),
        ("blob", pa.binary()),
    ]
)
PRICES = pa.schema([("user_id", pa.string()), ("item_id", pa.int64()), ("at", TIME), ("price", pa.float64())])
PLACES = pa.schema([("place_id", pa.string()), ("at", TIME), ("made", TIME), ("visits", pa.int64())])
FRAME = ("user_id", "item_id", "home_id", "work_id", "event_timestamp", "place")
FEATURES = {
    "counts": ("n", "tags", "blob"),
    "prices": ("price",),
    "home": ("visits",),
    "work": ("visits",),
}


@dataclass(frozen=True)
class Stores:
    """Two feature stores over one registry and one folder of sources: ours, and Feast's own."""

    folder: Path
    ours: FeatureStore
    feasts: FeatureStore

    def write(self, **rows: Sequence[dict[str, Any]]) -> None:
        """Make these the rows of the sources."""
        for name, schema in (("counts", COUNTS), ("prices", PRICES), ("places", PLACES)):
            half = len(rows.get(name, ())) // 2
            for part, of_part in enumerate((rows.get(name, ())[:half], rows.get(name, ())[half:])):
                table = pa.Table.from_pylist(list(of_part), schema=schema)
                pq.write_table(table, self.folder / name / f"part-{part}.parquet")


def _config(folder: Path, offline: dict[str, Any]) -> RepoConfig:
    return RepoConfig(
        project="p",
        provider="local",
        registry=str(folder / "registry.db"),
        offline_store=offline,
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
        repo_path=folder,
    )


def _source(folder: Path, name: str, **more: Any) -> FileSource:
    (folder / name).mkdir()
    return FileSource(name=f"{name}_source", path=str(folder / name), timestamp_field="at", **more)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    from feast.data_format import ParquetFormat

    folder = tmp_path_factory.mktemp("stores")
    ours = FeatureStore(config=_config(folder, {"type": OURS, "spill": str(folder / "spill"), "memory": "80MB"}))
    feasts = FeatureStore(config=_config(folder, {"type": "duckdb"}))
    kinds = {"user_id": ValueType.STRING, "item_id": ValueType.INT64, "place_id": ValueType.STRING}
    entities = {key: Entity(name=key, join_keys=[key], value_type=kind) for key, kind in kinds.items()}
    parquet = {"file_format": ParquetFormat()}
    made = {"created_timestamp_column": "made"}
    counts = FeatureView(
        name="counts",
        entities=[entities["user_id"]],
        ttl=COUNTS_TTL,
        source=_source(folder, "counts", field_mapping={"raw_n": "n"}, **parquet, **made),
        schema=[
            Field(name="user_id", dtype=String),
            Field(name="n", dtype=Int64),
            Field(name="tags", dtype=Array(String)),
            Field(name="blob", dtype=Bytes),
        ],
    )
    prices = FeatureView(
        name="prices",
        entities=[entities["user_id"], entities["item_id"]],
        ttl=timedelta(0),
        source=_source(folder, "prices", **parquet),
        schema=[Field(name="user_id", dtype=String), Field(name="item_id", dtype=Int64)]
        + [Field(name="price", dtype=Float64)],
    )
    places = FeatureView(
        name="places",
        entities=[entities["place_id"]],
        ttl=PLACES_TTL,
        source=_source(folder, "places", **parquet, **made),
        schema=[Field(name="place_id", dtype=String), Field(name="visits", dtype=Int64)],
    )

    @on_demand_feature_view(sources=[counts], schema=[Field(name="twice", dtype=Int64)], mode="pandas")
    def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"twice": (inputs["n"] * 2).astype("Int64")})

    service = FeatureService(
        name="all",
        features=[
            counts,
            prices,
            places.with_name("home").with_join_key_map({"place_id": "home_id"}),
            places.with_name("work").with_join_key_map({"place_id": "work_id"}),
        ],
    )
    made_stores = Stores(folder, ours, feasts)
    made_stores.write()
    ours.apply([*entities.values(), counts, prices, places, doubled, service])
    yield made_stores
    if ibis.options.default_backend is not None:  # of Feast's store: at the interpreter's end it makes DuckDB noisy
        ibis.options.default_backend.disconnect()
        ibis.options.default_backend = None


# --- the plain loop -------------------------------------------------------------------------------------------------


def newest(rows, keys, moment, ttl, by_creation):
    """The row that a view answers with, by looking at all rows; {} where there is none."""
    if None in keys.values():
        return {}
    known = [
        row
        for row in rows
        if all(row[key] == value for key, value in keys.items())
        and row["at"] is not None
        and row["at"] <= moment
        and (not ttl or moment <= row["at"] + ttl)
        and (not by_creation or "made" not in row or (row["made"] is not None and row["made"] <= moment))
    ]
    long_ago = START - timedelta(days=1)
    return max(known, key=lambda row: (row["at"], row.get("made") or long_ago), default={})


def expected(frame, counts, prices, places, by_creation):
    """The answer to a frame: its columns and every feature, row by row."""
    answers = []
    for row in frame:
        at, user = row["event_timestamp"], row["user_id"]
        found = newest(counts, {"user_id": user}, at, COUNTS_TTL, by_creation)
        price = newest(prices, {"user_id": user, "item_id": row["item_id"]}, at, None, by_creation)
        answer = {**row, "counts__n": found.get("raw_n")}
        answer |= {f"counts__{name}": found.get(name) for name in ("tags", "blob")}
        answer["prices__price"] = price.get("price")
        for alias in ("home", "work"):
            visited = newest(places, {"place_id": row[f"{alias}_id"]}, at, PLACES_TTL, by_creation)
            answer[f"{alias}__visits"] = visited.get("visits")
        answers.append(answer)
    return answers


# --- generated histories --------------------------------------------------------------------------------------------

USERS = st.sampled_from(["a", "b", None])
MOMENT = st.sampled_from(MOMENTS)
NUMBER = st.none() | st.integers(-3, 3)


def rows_of(**columns):
    """Rows, no two of one entity, event and creation: which of such is the newest, Feast leaves open."""
    names = [name for name in columns if name.endswith("_id") or name in ("at", "made")]
    row = st.fixed_dictionaries(columns)
    return st.lists(row, max_size=14, unique_by=lambda row: tuple(str(row[name]) for name in names))


HISTORIES = {
    "counts": rows_of(
        user_id=USERS,
        at=st.none() | MOMENT,
        made=st.none() | MOMENT,
        raw_n=NUMBER,
        tags=st.none() | st.lists(st.none() | st.sampled_from("xyz"), max_size=3),
        blob=st.none() | st.binary(max_size=3),
    ),
    "prices": rows_of(user_id=USERS, item_id=st.integers(1, 2), at=MOMENT, price=st.none() | st.floats(-1, 1)),
    "places": rows_of(place_id=st.sampled_from("pq"), at=MOMENT, made=st.none() | MOMENT, visits=NUMBER),
}
FRAMES = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": st.sampled_from(["a", "b", "nobody", None]),
            "item_id": st.integers(1, 3),
            "home_id": st.sampled_from(["p", "q", "nowhere"]),
            "work_id": st.sampled_from(["p", "q"]),
            "event_timestamp": MOMENT,
        }
    ),
    min_size=1,
    max_size=12,
)


def asked(store, frame, **more):
    return store.get_historical_features(
        frame, store.get_feature_service("all"), full_feature_names=True, **more
    ).to_arrow()


def plain(table):
    """The rows of an answer, moments in UTC."""
    rows = table.to_pylist()
    return [{**row, "event_timestamp": row["event_timestamp"].astimezone(UTC)} for row in rows]


@given(frame=FRAMES, by_creation=st.booleans(), **HISTORIES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_generated_histories_are_joined_as_by_feasts_own_store_and_by_a_plain_loop(stores, frame, by_creation, **rows):
    stores.write(**rows)
    frame = [{**row, "place": place} for place, row in enumerate(frame)]
    table = pd.DataFrame(frame, columns=FRAME)
    wanted = expected(frame, **rows, by_creation=by_creation)
    ours = asked(stores.ours, table.copy(), filter_by_created_timestamp=by_creation)
    feasts = asked(stores.feasts, table.copy(), filter_by_created_timestamp=by_creation).sort_by("place")
    assert plain(ours) == wanted  # in the frame's order
    assert plain(feasts) == wanted
    assert ours.column_names == feasts.column_names


# --- what a user of Feast asks --------------------------------------------------------------------------------------


def at(seconds):
    return START + seconds * SECOND


A_FEW = {
    "counts": [
        {"user_id": "a", "at": at(0), "made": at(3), "raw_n": 1, "tags": ["x"], "blob": b"\x00"},
        {"user_id": "a", "at": at(2), "made": at(9), "raw_n": 2, "tags": [], "blob": None},
        {"user_id": "b", "at": at(1), "made": at(1), "raw_n": 3, "tags": None, "blob": b"b"},
    ],
    "prices": [{"user_id": "a", "item_id": 1, "at": at(0), "price": 0.5}],
    "places": [{"place_id": "p", "at": at(0), "made": at(0), "visits": 7}],
}
REFS = ["counts:n", "counts:tags", "prices:price"]


@pytest.fixture
def few(stores):
    """The stores with a few rows, and a frame of three."""
    stores.write(**A_FEW)
    frame = pd.DataFrame(
        {
            "user_id": ["b", "a", "a"],
            "event_timestamp": [at(1), at(2), at(1)],
            "item_id": [1, 1, 1],
            "note": ["one", "two", "three"],
        }
    )
    return stores, frame


def test_the_answer_keeps_the_rows_and_columns_of_the_frame_and_names_features_short_or_full(few):
    stores, frame = few
    short = stores.ours.get_historical_features(frame, REFS).to_df()
    assert list(short.columns) == ["user_id", "event_timestamp", "item_id", "note", "n", "tags", "price"]
    assert list(short["note"]) == ["one", "two", "three"]
    assert list(short["n"]) == [3, 2, 1]
    full = stores.ours.get_historical_features(frame, REFS, full_feature_names=True).to_arrow()
    assert full.column_names[4:] == ["counts__n", "counts__tags", "prices__price"]
    assert full.column("counts__n").to_pylist() == [3, 2, 1]


def test_a_frame_may_be_a_sql_text(few, tmp_path):
    stores, frame = few
    frame.to_parquet(tmp_path / "frame.parquet")  # in nanoseconds, as pandas writes moments
    sql = f"SELECT * FROM read_parquet('{tmp_path / 'frame.parquet'}') ORDER BY note;"
    found = stores.ours.get_historical_features(sql, REFS).to_arrow()
    assert found.column("note").to_pylist() == ["one", "three", "two"]
    assert found.column("n").to_pylist() == [3, 1, 2]
    assert found.schema.field("event_timestamp").type == TIME


def test_moments_finer_than_a_microsecond_never_let_a_row_see_the_future(few):
    stores, _ = few
    late = pd.Timestamp(at(2)) + pd.Timedelta(nanoseconds=700)
    frame = pd.DataFrame({"user_id": ["a", "a"], "event_timestamp": [late - pd.Timedelta(nanoseconds=701), late]})
    assert list(stores.ours.get_historical_features(frame, ["counts:n"]).to_df()["n"]) == [1, 2]
    source = pd.DataFrame({"user_id": ["a"], "at": [late], "made": [late], "raw_n": [5], "tags": [[]], "blob": [b""]})
    for part in (0, 1):
        pq.write_table(pa.Table.from_pandas(source.iloc[part:]), stores.folder / "counts" / f"part-{part}.parquet")
    frame = pd.DataFrame({"user_id": ["a", "a"], "event_timestamp": [at(2), at(2) + MICROSECOND]})
    found = stores.ours.get_historical_features(frame, ["counts:n"]).to_arrow().column("n").to_pylist()
    assert found == [None, 5]


def test_texts_and_moments_without_a_zone_are_utc(few):
    stores, frame = few
    for moments in (frame["event_timestamp"].dt.tz_localize(None), frame["event_timestamp"].astype(str)):
        told = stores.ours.get_historical_features(frame.assign(event_timestamp=moments), ["counts:n"]).to_df()
        assert list(told["n"]) == [3, 2, 1]


def test_features_on_demand_are_computed_from_the_joined_ones(few):
    stores, frame = few
    found = stores.ours.get_historical_features(frame, ["counts:n", "doubled:twice"])
    assert found.to_df()["twice"].tolist() == [6, 4, 2]
    assert pa.Table.from_batches(found.to_arrow_batches()).column("twice").to_pylist() == [6, 4, 2]


def test_batches_are_the_answer_and_what_was_spilled_is_gone(few):
    stores, frame = few
    many = pd.concat([frame] * 3000, ignore_index=True)
    job = stores.ours.get_historical_features(many, REFS)
    batches = list(job.to_arrow_batches(rows=2048))
    assert len(batches) > 2
    assert pa.Table.from_batches(batches).equals(job.to_arrow())
    begun = job.to_arrow_batches(rows=2048)
    next(begun)
    assert any((stores.folder / "spill").iterdir())
    begun.close()
    assert not any((stores.folder / "spill").iterdir())


def test_what_was_asked_is_told(few):
    stores, frame = few
    told = stores.ours.get_historical_features(frame, REFS).metadata
    assert told.features == REFS
    assert set(told.keys) == {"user_id", "item_id", "note"}
    assert (told.min_event_timestamp, told.max_event_timestamp) == (at(1), at(2))


def test_the_sql_of_an_answer_gives_the_answer(few):
    stores, frame = few
    sql = f"SELECT 'a' AS user_id, TIMESTAMPTZ '{at(2)}' AS event_timestamp"
    job = stores.ours.get_historical_features(sql, ["counts:n"])
    assert duckdb.sql(job.to_sql()).fetchall()[0][2] == job.to_arrow().column("n").to_pylist()[0] == 2
    assert "entity_frame" in stores.ours.get_historical_features(frame, ["counts:n"]).to_sql()


@pytest.mark.parametrize("name", ["saved.parquet", "saved"])
def test_an_answer_is_kept_as_a_file_or_a_folder_and_overwritten_only_where_that_is_allowed(few, tmp_path, name):
    stores, frame = few
    storage = SavedDatasetFileStorage(path=str(tmp_path / name))
    job = stores.ours.get_historical_features(frame, REFS)
    job.persist(storage)
    assert pq.read_table(tmp_path / name).equals(job.to_arrow())
    fewer = stores.ours.get_historical_features(frame.head(1), REFS)
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        fewer.persist(storage)
    fewer.persist(storage, allow_overwrite=True)
    assert pq.read_table(tmp_path / name).num_rows == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def pulled(store, deed, **dates):
    offline: OfflineStore = store._get_provider().offline_store
    source = store.get_feature_view("counts").batch_source
    job = getattr(offline, deed)(store.config, source, ["user_id"], ["raw_n", "tags"], "at", "made", **dates)
    rows = job.to_arrow().to_pylist()
    return sorted(str({name: str(value) for name, value in row.items()}) for row in rows), job.to_arrow().column_names


@given(counts=HISTORIES["counts"], start=MOMENT, end=MOMENT)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_newest_and_all_rows_of_an_interval_are_those_of_feasts_own_store(stores, counts, start, end):
    stores.write(counts=counts)
    for deed in ("pull_latest_from_table_or_query", "pull_all_from_table_or_query"):
        dates = {"start_date": start, "end_date": end}
        assert pulled(stores.ours, deed, **dates) == pulled(stores.feasts, deed, **dates)


def test_all_rows_without_an_interval_are_all_rows(few):
    stores, _ = few
    rows, _ = pulled(stores.ours, "pull_all_from_table_or_query")
    assert len(rows) == 3


def test_a_frame_without_a_key_and_a_name_that_is_there_twice_are_refused(few):
    stores, frame = few
    with pytest.raises(FeastEntityDFMissingColumnsError, match="item_id"):
        stores.ours.get_historical_features(frame.drop(columns=["item_id"]), REFS)
    with pytest.raises(CourierError, match="n: there twice; ask with full_feature_names"):
        stores.ours.get_historical_features(frame.assign(n=1), REFS)


def test_what_is_no_parquet_and_a_column_that_is_not_there_are_refused_in_a_sentence(few):
    from feast.data_format import DeltaFormat

    stores, frame = few
    view = stores.ours.get_feature_view("counts")
    view.batch_source.file_options.file_format = DeltaFormat()
    offline = stores.ours._get_provider().offline_store
    arguments = (["counts:n"], frame, stores.ours.registry, "p")
    with pytest.raises(CourierError, match="no parquet file: this store reads no other; Feast's own"):
        offline.get_historical_features(stores.ours.config, [view], *arguments)
    view = stores.ours.get_feature_view("counts")
    view.batch_source.field_mapping = {}
    with pytest.raises(CourierError, match="the source of counts, has no column n"):
        offline.get_historical_features(stores.ours.config, [view], *arguments)


def test_keys_that_an_alias_does_not_name_keep_their_names(few):
    stores, frame = few
    view = stores.ours.get_feature_view("prices").with_join_key_map({"user_id": "owner"})
    offline = stores.ours._get_provider().offline_store
    frame = frame.rename(columns={"user_id": "owner"}).assign(item_id=[1, 1, 2])
    found = offline.get_historical_features(
        stores.ours.config, [view], ["prices:price"], frame, stores.ours.registry, "p"
    )
    assert found._to_arrow_internal().column("price").to_pylist() == [None, 0.5, None]


def test_memory_is_bounded_by_the_setting_and_nothing_is_left_of_a_query_that_needed_more(few):
    stores, _ = few
    rows = 100_000
    tags = "[repeat(md5(n::VARCHAR), 4) || k FOR k IN range(5)]"
    key, moment = "'a' || n % 5000 AS user_id", "TIMESTAMPTZ '2024-03-01 00:00+00' + to_microseconds(n)"
    query = f'SELECT {key}, {moment} AS "at", "at" AS made'
    for part in (0, 1):
        path = stores.folder / "counts" / f"part-{part}.parquet"
        numbers = f"range({part * rows // 2}, {(part + 1) * rows // 2}) AS numbers(n)"
        duckdb.sql(f"COPY ({query}, n AS raw_n, {tags} AS tags, ''::BLOB AS blob FROM {numbers}) TO '{path}'")
    frame = f"SELECT {key}, {moment} AS event_timestamp, n AS m FROM range({rows}) AS numbers(n)"
    job = stores.ours.get_historical_features(frame, ["counts:n", "counts:tags"])
    with pytest.raises(duckdb.OutOfMemoryException):
        job.to_arrow()
    assert not any((stores.folder / "spill").iterdir())
