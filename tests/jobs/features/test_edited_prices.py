"""A price that is edited between two runs: rows of before keep the old one, later rows and the online store the new."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.features import materialize, offline, training_rows
from jobs.raw.profile_history import COLUMNS, FOLDER

START = datetime(2024, 3, 1, tzinfo=UTC)
EDITED = START + timedelta(days=6)
TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [(name, {"VARCHAR": pa.string(), "DOUBLE": pa.float64()}.get(kind, TIME)) for name, kind in COLUMNS.items()]
)


@pytest.fixture(scope="module")
def run(shop_maker, tmp_path_factory):
    """A shop all of whose items are seen on the third day, and again, dearer and of another category, on the sixth."""
    shop = shop_maker(tmp_path_factory.mktemp("edited"), users=4, items=8, requests=80)
    days = ((3, 0.0, "old"), (6, 100.0, "new"))
    seen = [
        {
            "item_id": item["item_id"],
            "category": category,
            "price": (item["price"] or 0.0) + more,
            "first_seen": START + timedelta(days=day),
        }
        for item in shop.items
        for day, more, category in days
    ]
    (shop.workspace / FOLDER).mkdir()
    pq.write_table(pa.Table.from_pylist(seen, SCHEMA), shop.workspace / FOLDER / "000000.parquet")
    features, loaded, rows = (shop.workspace / name / "edited" for name in ("features", "materialize", "rows"))
    inputs = {name: getattr(shop, name) for name in ("sequences", "images", "embed", "cluster")}
    facts = offline.build(**inputs, workspace=shop.workspace, out=features).facts
    materialize.build(features=features, workspace=shop.workspace, out=loaded)
    training_rows.build(
        sequences=shop.sequences, features=features, materialize=loaded, workspace=shop.workspace, out=rows
    )
    tables = [pq.read_table(rows / f"{period}.parquet") for period in ("train", "valid", "test")]
    return shop, facts, pa.concat_tables(tables).to_pylist()


def test_rows_of_before_the_edit_keep_the_old_price_and_later_ones_have_the_new(run):
    shop, _, rows = run
    old = {item["item_id"]: item["price"] or 0.0 for item in shop.items}
    later = [row["request_time"] >= EDITED for row in rows]
    assert set(later) == {False, True}
    for row, is_later in zip(rows, later, strict=True):
        assert row["price"] == old[row["item_id"]] + 100 * is_later
        assert row["category"] == ("new" if is_later else "old")


def test_the_items_of_a_history_have_the_category_of_the_rows_moment(run):
    *_, rows = run
    assert any(row["history_categories"] for row in rows)
    for row in rows:
        expected = "new" if row["request_time"] >= EDITED else "old"
        assert row["history_categories"] == [expected] * len(row["history_item_ids"])


def test_the_online_store_has_the_newest(run):
    from feature_repo.definitions import open_store

    shop, *_ = run
    ids = [item["item_id"] for item in shop.items]
    online = open_store(shop.workspace).get_online_features(["item_profile:price"], {"item_id": ids}).to_dict()
    assert online["price"] == [(item["price"] or 0.0) + 100 for item in shop.items]


def test_what_was_shown_before_the_first_ingest_is_counted(run):
    shop, facts, rows = run
    start = datetime.fromisoformat(facts["start"])
    first = START + timedelta(days=3)
    met = {}
    for row in [*shop.impressions, *shop.clicks]:
        at = row.get("request_time") or row["event_time"]
        met[row["item_id"]] = min(at, met.get(row["item_id"], at))
    since = {item["item_id"]: min(item["created_at"] or start, met.get(item["item_id"], first)) for item in shop.items}
    assert facts["profiles_of_unknown_past"] == {
        "items": sum(max(at, start) < first for at in since.values()),
        "impressions": sum(row["request_time"] < first for row in rows),
    }
    assert facts["profiles_of_unknown_past"]["impressions"] > 0
