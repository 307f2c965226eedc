"""Page views as arrays, and the rows of a step."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import artifact
from model.courier.data.batches import check_history, index_page_views, read_page_views, rows_of_step, take_batch
from model.errors import CourierError

IMAGES = {"a": "x", "b": "y", "c": "z", "a2": "x"}  # a and a2 share a picture; item n has none
CATEGORIES = {"x": "lamp", "y": "hat", "z": "lamp"}


def test_items_become_numbers_of_their_images_and_items_without_one_are_dropped() -> None:
    views = index_page_views([["a", "n", "c", "a2"]], [[0, 1, 1, 0]], [["b", "n", "a"]], IMAGES, CATEGORIES)
    assert views.image_ids == ("x", "y", "z")
    assert views.categories.tolist() == [1, 0, 1]
    assert views.page.tolist() == [[0, 2, 0, -1, -1]]
    assert views.clicked.tolist() == [[False, True, False, False, False]]
    assert views.history.tolist() == [[1, 0, -1, -1, -1]]
    assert (views.page.dtype, views.history.dtype) == (np.int32, np.int32)


def test_a_row_whose_clicked_item_has_no_image_stays_and_one_without_any_image_goes() -> None:
    views = index_page_views([["a", "n"], ["n"]], [[0, 1], [1]], [[], ["a"]], IMAGES, CATEGORIES)
    assert views.page.tolist() == [[0, -1, -1, -1, -1]]
    assert not views.clicked.any()


def test_a_page_of_any_length_is_whole() -> None:
    items = ["a", "b", "c", "a", "b", "c", "b"]
    views = index_page_views([items, ["c"]], [[0] * 6 + [1], [1]], [[], []], IMAGES, CATEGORIES)
    assert views.page.tolist() == [[0, 1, 2, 0, 1, 2, 1], [2, -1, -1, -1, -1, -1, -1]]
    assert views.clicked.tolist() == [[False] * 6 + [True], [True] + [False] * 6]


def test_a_history_is_cut_to_its_newest_clicks_or_padded() -> None:
    for length, expected in ((2, [1, 0]), (4, [1, 0, 2, -1])):
        views = index_page_views([["a"]], [[0]], [["b", "a", "n", "c"]], IMAGES, CATEGORIES, history=length)
        assert views.history.tolist() == [expected]


def test_a_history_longer_than_the_page_views_hold_is_refused_with_the_cure(tmp_path: Path) -> None:
    with artifact.write(tmp_path / "s", kind="sequences", inputs={}, config={"pretrain_history": 8}):
        pass
    sequences = artifact.read(tmp_path / "s", kind="sequences")
    check_history(8, sequences)
    for length in (0, 9):
        with pytest.raises(CourierError, match=f"history is {length} .* last 8 clicks: give 1 to 8"):
            check_history(length, sequences)


def test_no_usable_row_is_refused_with_the_cure() -> None:
    with pytest.raises(CourierError, match="check the images stage"):
        index_page_views([["n"]], [[1]], [["a"]], IMAGES, CATEGORIES)


def test_only_the_training_period_is_read_in_time_order(tmp_path: Path) -> None:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    rows = [("r3", 3, "valid", "c"), ("r2", 2, "train", "b"), ("r4", 4, "test", "c"), ("r1", 1, "train", "a")]
    (tmp_path / "page_views").mkdir()
    pq.write_table(
        pa.table(
            {
                "request_id": [row[0] for row in rows],
                "user_id": ["u", "w", "v", "v"],
                "request_time": pa.array([start + timedelta(days=row[1]) for row in rows], pa.timestamp("us", "UTC")),
                "period": [row[2] for row in rows],
                "item_ids": [[row[3]] for row in rows],
                "labels": pa.array([[1]] * 4, pa.list_(pa.int8())),
                "history_item_ids": pa.array([[]] * 4, pa.list_(pa.string())),
            }
        ),
        tmp_path / "page_views" / "part-0.parquet",
    )
    ids, status = ["a", "b", "c"], ["ok", "ok", "ok"]
    items = {"image_id": ["x", "y", "z"], "category": ["hat", None, "hat"], "title": ["Old Hat", None, "Sun Hat"]}
    pq.write_table(
        pa.table({"item_id": ids, **items, "status": status}),
        tmp_path / "items.parquet",
    )
    views = read_page_views(tmp_path, tmp_path)
    assert views.image_ids == ("x", "y")
    assert views.titles == ("Old Hat", "")
    assert views.page[:, 0].tolist() == [0, 1]
    assert views.users.tolist() == [0, 1]  # r1 is v's, r2 is w's


def test_users_stay_with_their_rows_when_a_row_goes() -> None:
    users = ["w", "v", "u", "w"]
    views = index_page_views([["a"], ["n"], ["b"], ["c"]], [[0]] * 4, [[]] * 4, IMAGES, CATEGORIES, users=users)
    assert views.users.tolist() == [1, 0, 1]
    assert not index_page_views([["a"]], [[0]], [[]], IMAGES, CATEGORIES).users.size


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 5))
def test_every_epoch_sees_every_row_once(rows: int, batch_rows: int, seed: int) -> None:
    steps = -(-2 * rows // batch_rows)
    order = np.concatenate([rows_of_step(rows, batch_rows, step, seed) for step in range(steps)])
    for epoch in range(2):
        assert sorted(order[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_a_steps_rows_depend_on_step_and_seed_alone() -> None:
    assert (rows_of_step(100, 8, 30, 1) == rows_of_step(100, 8, 30, 1)).all()
    assert (rows_of_step(100, 8, 30, 1) != rows_of_step(100, 8, 31, 1)).any()
    assert (rows_of_step(100, 8, 30, 1) != rows_of_step(100, 8, 30, 2)).any()


places = st.lists(st.integers(0, 6), max_size=5)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(places.filter(bool), places), min_size=1, max_size=6))
def test_a_batch_names_each_image_once_and_finds_every_place_again(rows: list[tuple[list[int], list[int]]]) -> None:
    views = index_page_views(
        [[f"i{n}" for n in page] for page, _ in rows],
        [[n % 2 for n in page] for page, _ in rows],
        [[f"i{n}" for n in history] for _, history in rows],
        {f"i{n}": f"p{n}" for n in range(7)},
        {f"p{n}": f"c{n % 3}" for n in range(7)},
    )
    batch = take_batch(views, np.arange(len(rows))[::-1])
    assert len(set(batch.images)) == len(batch.images)
    for places, mask, whole in (
        (batch.page, batch.shown, views.page[::-1]),
        (batch.history, batch.remembered, views.history[::-1]),
    ):
        assert (mask == (whole != -1)).all()
        assert (batch.images[places][mask] == whole[mask]).all()
    assert (batch.clicked == views.clicked[::-1]).all()
    assert (batch.page_image == views.page[::-1]).all()
    assert (batch.page_category == views.categories[views.page[::-1]]).all()
    assert set(batch.images) == {n for n in np.concatenate([views.page, views.history]).ravel() if n >= 0}
