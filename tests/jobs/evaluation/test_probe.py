"""What the probe asks: only clicks of its period, only what was known before; from artifacts to the printed table."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluation import probe
from jobs.evaluation.probe import Attribute
from model import artifact
from model.artifact import ArtifactMismatch
from model.errors import CourierError

CUT = datetime(2024, 3, 10, tzinfo=UTC)
MOMENT = pa.timestamp("us", tz="UTC")
ITEMS = 12  # i10 and i11 show one picture, so 11 images; i9 has none that is usable


def row_of(item):
    """Rows are those of the sorted image ids p00, p01, ..., without that of i9."""
    return {**{f"i{n}": n for n in range(9)}, "i10": 9, "i11": 9}[item]


def write(folder, kind, tables, facts=None, inputs=None, vectors=None):
    with artifact.write(folder, kind=kind, inputs=inputs or {}, config={}) as draft:
        for name, table in tables.items():
            path = draft.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
        if vectors is not None:
            np.save(draft.path / "vectors.npy", vectors)
        draft.facts |= facts or {}
    return folder


def page(number, period, at, items, labels, history, user="u1"):
    return {
        "request_id": f"r{number}",
        "user_id": user,
        "request_time": at,
        "item_ids": items,
        "labels": labels,
        "history_item_ids": history,
        "period": period,
    }


PAGES = [
    page(1, "train", CUT - timedelta(days=1), ["i0", "i1"], [1, 0], []),
    page(2, "valid", CUT, ["i2", "i3", "i4"], [1, 0, 1], ["i0", "i1", "i5", "i6", "i7", "i8"]),
    page(3, "valid", CUT + timedelta(hours=1), ["i0", "i3"], [1, 0], ["i0"]),  # clicked again
    page(4, "valid", CUT + timedelta(hours=2), ["i9", "i3"], [1, 0], ["i0"]),  # without a picture
    page(5, "valid", CUT + timedelta(hours=3), ["i3", "i4"], [1, 0], ["i9"]),  # nothing known of the user
    page(6, "valid", CUT + timedelta(hours=4), ["i11", "i3"], [1, 0], ["i9", "i2"], "u2"),
    page(7, "test", CUT + timedelta(days=1), ["i5", "i6"], [1, 0], ["i2"]),
]


@pytest.fixture
def road(tmp_path):
    """sequences, images and embed artifacts of seven page views and twelve items."""
    schema = pa.schema(
        {
            "request_id": pa.string(),
            "user_id": pa.string(),
            "request_time": MOMENT,
            "item_ids": pa.list_(pa.string()),
            "labels": pa.list_(pa.int8()),
            "history_item_ids": pa.list_(pa.string()),
            "period": pa.string(),
        }
    )
    clicks = [("i0", -1), ("i0", -2), ("i1", -3), ("i10", -1), ("i2", 0), ("i3", 1)]
    shown = [("i4", -1), ("i0", -1), ("i2", 0)]
    tables = {
        "page_views/part-0.parquet": pa.Table.from_pylist(PAGES, schema),
        "clicks/part-0.parquet": pa.table(
            {
                "item_id": [i for i, _ in clicks],
                "event_time": pa.array([CUT + timedelta(hours=h) for _, h in clicks], MOMENT),
            }
        ),
        "impressions/part-0.parquet": pa.table(
            {
                "item_id": [i for i, _ in shown],
                "request_time": pa.array([CUT + timedelta(hours=h) for _, h in shown], MOMENT),
            }
        ),
    }
    sequences = write(tmp_path / "sequences", "sequences", tables, {"splits": {"valid_start": CUT.isoformat()}})
    ids = [f"i{n}" for n in range(ITEMS)]
    catalogue = {
        "item_id": ids,
        "category": ["even" if n % 2 == 0 else "odd" for n in range(11)] + [None],
        "price": [*map(float, range(10)), 30.0, 10.0],
        "created_at": pa.array([CUT + timedelta(days=n) for n in range(ITEMS)], MOMENT),
    }
    images = write(tmp_path / "images", "images", {"items.parquet": pa.table(catalogue)})
    usable = [item for item in ids if item != "i9"]
    rows = [row_of(item) for item in usable]
    listed = {"item_id": usable, "image_id": [f"p{row:02}" for row in rows], "row": pa.array(rows, pa.int32())}
    embed = write(
        tmp_path / "embed",
        "embed",
        {"items.parquet": pa.table(listed)},
        {"encoder": "courier-small", "space_id": "s1"},
        {"images/pictures": artifact.digest(images)},
        np.eye(10, 256, dtype=np.float32),
    )
    return {"sequences": sequences, "images": images, "embed": embed}


def test_a_click_is_asked_about_once_with_the_five_newest_clicks_before_its_page(road):
    asked = probe.ask(**road, period="valid")
    assert asked.clicks.target.tolist() == [2, 4, 9]
    assert asked.clicks.history.tolist() == [[0, 1, 5, 6, 7], [0, 1, 5, 6, 7], [-1, 2, -1, -1, -1]]
    assert asked.clicks.page[:, :2].tolist() == [[-1, 3], [-1, 3], [-1, 3]]
    assert asked.clicks.user[0] == asked.clicks.user[1] != asked.clicks.user[2]
    assert asked.repeats == 1
    assert probe.ask(**road, period="test").clicks.target.tolist() == [5]


def test_popularity_and_warmth_know_the_training_period_alone(road):
    asked = probe.ask(**road, period="valid")
    pool = asked.pools["popular"]
    counted = dict(zip(pool.candidates.tolist(), pool.weights.tolist(), strict=True))
    assert counted == {0: 2, 1: 1, 9: 1}  # the clicks at the cut and after it are not counted
    assert asked.clicks.cold.tolist() == [True, False, False]  # i4 was shown; i11 shows the picture of i10


def test_negatives_of_the_category_are_of_the_images_first_item(road):
    asked = probe.ask(**road, period="valid")
    pool = asked.pools["category"]
    found = [pool.candidates[a:b].tolist() for a, b in zip(pool.low, pool.high, strict=True)]
    assert found == [[0, 9], [0, 9], [0, 9]]


def test_an_attribute_is_the_mean_of_an_images_items_and_may_stand_in_another_table(road, tmp_path):
    items = pq.read_table(road["images"] / "items.parquet")
    rows = probe._Rows(pq.read_table(road["embed"] / "items.parquet"))
    assert probe._values(items, Attribute("price"), rows).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 20]
    days = probe._values(items, Attribute("created_at"), rows)
    assert np.diff(days)[:8].tolist() == [1.0] * 8
    other = tmp_path / "years.parquet"
    pq.write_table(pa.table({"item_id": ["i3", "i4", "x"], "year": [1999, None, 7]}), other)
    years = probe._values(items, Attribute("year", other), rows)
    assert years[3] == 1999
    assert np.isnan(np.delete(years, 3)).all()


@pytest.mark.parametrize(
    ("match", "said"),
    [
        (Attribute("weight"), "have no column weight: choose among item_id"),
        (Attribute("category"), "only numbers and moments can be matched"),
    ],
)
def test_an_attribute_that_cannot_be_matched_is_told(road, match, said):
    with pytest.raises(CourierError, match=said):
        probe.ask(**road, period="valid", match=match)


def test_a_period_without_clicks_and_vectors_of_other_images_are_refused(road, tmp_path):
    told = "of 1 clicks of the train period 1 are on an item with a usable image, 0 of them after another such click"
    with pytest.raises(CourierError, match=told):
        probe.ask(**road, period="train")
    other = write(tmp_path / "other", "images", {"items.parquet": pa.table({"item_id": ["i0"]})})
    with pytest.raises(ArtifactMismatch, match="were not made from"):
        probe.ask(**road | {"images": other}, period="valid")


def test_the_answer_is_json_and_a_table(road, capsys):
    found = probe.run(**road, period="valid", match=Attribute("price"), seed=1)
    assert (found["encoder"], found["space_id"], found["clicks"], found["users"]) == ("courier-small", "s1", 3, 2)
    assert set(found["negatives"]) == {"popular", "category", "matched", "page"}
    assert found["negatives"]["popular"]["cold"]["clicks"] == 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    probe.print_table(found, "a shop")
    told = capsys.readouterr().err
    assert "50 alike in price" in told
    assert "recall@10" in told
    assert "left of the effect where price is alike, all:" in told


def test_a_table_of_attributes_without_an_attribute_is_refused(tmp_path):
    with pytest.raises(CourierError, match="needs --match"):
        probe.attribute(None, tmp_path)
    assert probe.attribute("year", tmp_path) == Attribute("year", tmp_path)
    assert probe.attribute(None, None) is None
