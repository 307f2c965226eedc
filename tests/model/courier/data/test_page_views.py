"""Page views as arrays: against plain loops over Python lists, and read from the files of the sequences stage."""

import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.courier.data.batches import Counts, PageViews
from model.courier.data.page_views import NothingToTrainOn, index_page_views, read_page_views
from model.courier.data.usable_items import reasons
from model.errors import CourierError

START = datetime(2025, 1, 1, tzinfo=UTC)
IMAGES = {"a": "x", "b": "y", "c": "z", "a2": "x"}  # a and a2 share a picture; item n has none
CATEGORIES = {"x": "lamp", "y": "hat", "z": "lamp"}
ITEMS = pa.table(
    {
        "item_id": sorted(IMAGES),
        "image_id": [IMAGES[item] for item in sorted(IMAGES)],
        "category": [CATEGORIES[IMAGES[item]] for item in sorted(IMAGES)],
        "title": pa.array([f"Title of {item}" for item in sorted(IMAGES)]),
    }
)
Row = dict[str, Any]


def rows_of(pages: list[list[str]], labels: list[list[int]], histories: list[list[str]], users: Any = "") -> list[Row]:
    """Page views a second apart."""
    whose = users or "u" * len(pages)
    return [
        {
            "request_id": f"r{n}",
            "request_time": START + timedelta(seconds=n),
            "user_id": user,
            "item_ids": page,
            "labels": marks,
            "history_item_ids": clicks,
        }
        for n, (page, marks, clicks, user) in enumerate(zip(pages, labels, histories, whose, strict=True))
    ]


def batch_of(rows: list[Row]) -> pa.RecordBatch:
    strings, bits = pa.list_(pa.string()), pa.list_(pa.int8())
    kinds = [pa.string(), pa.timestamp("us", "UTC"), pa.string(), strings, bits, strings]
    names = ("request_id", "request_time", "user_id", "item_ids", "labels", "history_item_ids")
    return pa.RecordBatch.from_pylist(rows, schema=pa.schema(list(zip(names, kinds, strict=True))))


def index(*given: Any, history: int = 5, users: str = "") -> PageViews:
    return index_page_views([batch_of(rows_of(*given, users=users))], ITEMS, history=history)


def test_items_become_numbers_of_their_images_and_items_without_one_are_dropped() -> None:
    found = index([["a", "n", "c", "a2"]], [[0, 1, 1, 0]], [["b", "n", "a"]])
    assert found.image_ids == ("x", "y", "z")
    assert found.titles == ("Title of a", "Title of b", "Title of c")
    assert found.categories.tolist() == [1, 0, 1]
    assert found.page.tolist() == [[0, 2, 0, -1, -1]]
    assert found.clicked.tolist() == [[False, True, False, False, False]]
    assert found.history.tolist() == [[1, 0, -1, -1, -1]]
    assert (found.page.dtype, found.history.dtype) == (np.int32, np.int32)


def test_a_row_whose_clicked_item_has_no_image_stays_and_one_without_any_image_goes() -> None:
    found = index([["a", "n"], ["n"]], [[0, 1], [1]], [[], ["a"]])
    assert found.page.tolist() == [[0, -1, -1, -1, -1]]
    assert not found.clicked.any()


def test_a_page_of_any_length_is_whole() -> None:
    items = ["a", "b", "c", "a", "b", "c", "b"]
    found = index([items, ["c"]], [[0] * 6 + [1], [1]], [[], []])
    assert found.page.tolist() == [[0, 1, 2, 0, 1, 2, 1], [2, -1, -1, -1, -1, -1, -1]]
    assert found.clicked.tolist() == [[False] * 6 + [True], [True] + [False] * 6]


def test_a_history_is_cut_to_its_newest_clicks_or_padded() -> None:
    for length, expected in ((2, [1, 0]), (4, [1, 0, 2, -1])):
        assert index([["a"]], [[0]], [["b", "a", "n", "c"]], history=length).history.tolist() == [expected]


def test_no_usable_row_is_refused_with_their_number() -> None:
    with pytest.raises(NothingToTrainOn, match="none of 2 page views shows an item with a usable image"):
        index([["n"], []], [[1], []], [["a"], ["b"]])


def test_what_is_left_out_is_counted() -> None:
    found = index([["a", "n", "n"], ["n", "m"], ["c"]], [[0] * 3, [0] * 2, [1]], [[], ["a"], ["n"]])
    assert found.counts == Counts(
        page_views_read=3, page_views_without_image=1, page_view_items_read=6, page_view_items_without_image=4
    )
    assert (len(found), int((found.page >= 0).sum())) == (2, 2)


def test_a_page_without_a_label_for_each_item_is_refused_with_its_request() -> None:
    with pytest.raises(CourierError, match="page view r1 has not one label for each item"):
        index([["a"], ["a", "b"]], [[1], [1]], [[], []])


def test_users_stay_with_their_rows_when_a_row_goes() -> None:
    assert index([["a"], ["n"], ["b"], ["c"]], [[0]] * 4, [[]] * 4, users="wvuw").users.tolist() == [1, 0, 1]


def slowly(rows: list[Row], items: pa.Table, history: int) -> dict[str, Any]:
    """What index_page_views makes, by plain loops over lists."""
    rows = sorted(rows, key=lambda row: (row["request_time"], row["request_id"]))
    listed = items.to_pylist()
    image = {one["item_id"]: one["image_id"] for one in listed}
    first = {one["image_id"]: one for one in reversed(listed)}
    met = {item for row in rows for name in ("item_ids", "history_item_ids") for item in row[name] if item in image}
    image_ids = sorted({image[item] for item in met})
    width = max(5, *(len(row["item_ids"]) for row in rows))
    kept = [row for row in rows if any(item in image for item in row["item_ids"])]
    page, clicked, before = [], [], []
    for row in kept:
        seen = [n for n, item in enumerate(row["item_ids"]) if item in image]
        numbers = [image_ids.index(image[row["item_ids"][n]]) for n in seen]
        clicks = [image_ids.index(image[item]) for item in row["history_item_ids"] if item in image][:history]
        page.append(numbers + [-1] * (width - len(seen)))
        clicked.append([bool(row["labels"][n]) for n in seen] + [False] * (width - len(seen)))
        before.append(clicks + [-1] * (history - len(clicks)))
    categories = [first[one]["category"] or "" for one in image_ids]
    users = sorted({row["user_id"] for row in kept})
    return {
        "image_ids": tuple(image_ids),
        "titles": tuple(first[one]["title"] or "" for one in image_ids),
        "categories": [sorted(set(categories)).index(one) for one in categories],
        "page": page,
        "clicked": clicked,
        "history": before,
        "users": [users.index(row["user_id"]) for row in kept],
    }


ITEM = st.sampled_from(["a", "a2", "b", "c", "d", "é", "n", "m"])
VIEW = st.tuples(
    st.lists(st.tuples(ITEM, st.integers(0, 1)), max_size=8), st.lists(ITEM, max_size=7), ITEM, st.integers(0, 3)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(VIEW, min_size=1, max_size=12), st.integers(1, 6), st.integers(1, 5))
def test_batches_in_any_order_give_what_plain_loops_over_all_rows_give(
    drawn: list[Any], history: int, batch_rows: int
) -> None:
    items = pa.table(
        {
            "item_id": ["a", "a2", "b", "c", "d", "é"],
            "image_id": ["x", "x", "z", "y", "q", "p"],
            "category": ["lamp", "hat", None, "lamp", "", "hat"],
            "title": ["A", None, "B", None, "D", "E"],
        }
    )
    rows = rows_of(
        [[item for item, _ in page] for page, *_ in drawn],
        [[mark for _, mark in page] for page, *_ in drawn],
        [clicks for _, clicks, *_ in drawn],
        [user for _, _, user, _ in drawn],
    )
    rows = [row | {"request_time": START + timedelta(days=at)} for row, (*_, at) in zip(rows, drawn, strict=True)]
    batches = [batch_of(rows[n : n + batch_rows]) for n in range(0, len(rows), batch_rows)]
    if not any(item not in "nm" for row in rows for item in row["item_ids"]):
        with pytest.raises(NothingToTrainOn, match=f"none of {len(rows)} page views"):
            index_page_views(batches, items, history=history)
        return
    found = index_page_views(batches, items, history=history)
    counts = found.counts
    assert counts.page_views_read == len(rows) == len(found) + counts.page_views_without_image
    shown = [item for row in rows for item in row["item_ids"]]
    assert counts.page_view_items_without_image == sum(item in "nm" for item in shown)
    assert len(shown) == counts.page_view_items_read == (found.page >= 0).sum() + counts.page_view_items_without_image
    for name, expected in slowly(rows, items, history).items():
        value = getattr(found, name)
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected, name


def test_a_slice_of_a_batch_is_read_as_the_rows_it_holds() -> None:
    whole = batch_of(rows_of([["a", "b"], ["c"], ["b", "n", "a"]], [[0, 1], [1], [0, 0, 1]], [["c"], [], ["a", "b"]]))
    found = index_page_views([whole.slice(1)], ITEMS)
    assert found.page.tolist() == [[2, -1, -1, -1, -1], [1, 0, -1, -1, -1]]
    assert found.clicked[:, :2].tolist() == [[True, False], [False, True]]
    assert found.history[:, :2].tolist() == [[-1, -1], [0, 1]]


def test_many_page_views_need_no_more_than_twice_their_arrays() -> None:
    rows, batches = 2_000, 50
    one = batch_of(rows_of([["a", "b", "c", "a", "n"]] * rows, [[0, 1, 0, 0, 0]] * rows, [["b", "c"] * 3] * rows))
    tracemalloc.start()  # of numpy's arrays and Python's objects; Arrow's are one batch
    found = index_page_views((one for _ in range(batches)), ITEMS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    arrays = sum(one.nbytes for one in (found.page, found.clicked, found.history, found.users))
    assert len(found) == rows * batches
    assert peak < 2 * arrays + 2_000_000  # lists of strings would be ten times the arrays


def write(folder: Path, period: list[str], *, ids: list[str], reasons: list[str]) -> Path:
    """Four page views, of the items c, b, c and a in that order, in these periods; and three items."""
    rows = [("r3", 3, "c"), ("r2", 2, "b"), ("r4", 4, "c"), ("r1", 1, "a")]
    (folder / "page_views").mkdir()
    pq.write_table(
        pa.table(
            {
                "request_id": [row[0] for row in rows],
                "user_id": ["u", "w", "v", "v"],
                "request_time": pa.array([START + timedelta(days=row[1]) for row in rows], pa.timestamp("us", "UTC")),
                "period": period,
                "item_ids": [[row[2]] for row in rows],
                "labels": pa.array([[1]] * 4, pa.list_(pa.int8())),
                "history_item_ids": pa.array([[]] * 4, pa.list_(pa.string())),
            }
        ),
        folder / "page_views" / "part-0.parquet",
        row_group_size=3,  # the fourth row, of the training period too, lies in a row group of its own
    )
    status = ["broken" if reason else "ok" for reason in reasons]
    items = {"image_id": ["x", "y", "z"], "category": ["hat", None, "hat"], "title": ["Old Hat", None, "Sun Hat"]}
    of_items = {"item_id": ids, **items, "status": status, "reason": reasons}
    pq.write_table(pa.table(of_items), folder / "items.parquet")
    return folder


PERIODS = ["valid", "train", "test", "train"]
SHOP: dict[str, Any] = {"period": PERIODS, "ids": ["a", "b", "c"], "reasons": ["", "", ""]}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"period": ["valid", "test", "test", "test"]}, "none of the 4 page views lies in the training period: bring"),
        (
            {"reasons": ["not_found", "truncated", "not_found"]},
            r"none of the 3 items has a usable image \(2 not_found, 1 truncated\): see reports/coverage.html",
        ),
        (
            {"ids": ["a.0", "b.0", "c.0"]},
            r"none of the 2 items on the 2 page views .* the 3 of the items table \(events say 'a', items 'a.0'\): m",
        ),
        (
            {"reasons": ["not_found", "truncated", ""]},
            r"1 of 3 items have a usable image, but none of the 2 on the 2 page views.*\(1 not_found, 1 truncated\)",
        ),
    ],
)
def test_each_cause_of_nothing_to_train_on_is_told_with_its_count(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    folder = write(tmp_path, **{**SHOP, **changed})
    with pytest.raises(NothingToTrainOn, match=told):
        read_page_views(folder, folder)


def test_the_most_frequent_reasons_come_first_and_the_others_by_their_number(tmp_path: Path) -> None:
    held = ["b"] * 2 + ["a"] * 2 + ["d"] * 3 + ["e", "f"]
    table = {"item_id": [f"i{n}" for n in range(10)], "status": ["broken"] * 9 + ["ok"], "reason": [*held, ""]}
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    assert reasons(tmp_path) == "3 d, 2 a, 2 b and 2 reasons more"
    assert reasons(tmp_path, pa.array(["i0", "i9", "unknown"])) == "1 b"


def test_only_the_training_period_is_read_in_time_order(tmp_path: Path) -> None:
    folder = write(tmp_path, **SHOP)
    found = read_page_views(folder, folder)
    assert found.image_ids == ("x", "y")
    assert found.titles == ("Old Hat", "")
    assert found.page[:, 0].tolist() == [0, 1]
    assert found.users.tolist() == [0, 1]  # r1 is v's, r2 is w's
