"""The rows of a step."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import artifact
from model.courier.data.batches import PageViews, check_history, rows_of_step, take_batch
from model.errors import CourierError


def test_a_history_longer_than_the_page_views_hold_is_refused_with_the_cure(tmp_path: Path) -> None:
    with artifact.write(tmp_path / "s", kind="sequences", inputs={}, config={"pretrain_history": 8}):
        pass
    sequences = artifact.read(tmp_path / "s", kind="sequences")
    check_history(8, sequences)
    for length in (0, 9):
        with pytest.raises(CourierError, match=f"history is {length} .* last 8 clicks: give 1 to 8"):
            check_history(length, sequences)


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
    page, history = (
        np.array([one + [-1] * (5 - len(one)) for one in column], np.int32) for column in zip(*rows, strict=True)
    )
    page_views = PageViews(tuple("abcdefg"), np.arange(7) % 3, page, page % 2 == 1, history)
    batch = take_batch(page_views, np.arange(len(rows))[::-1])
    assert len(set(batch.images)) == len(batch.images)
    for places, mask, whole in (
        (batch.page, batch.shown, page_views.page[::-1]),
        (batch.history, batch.history_mask, page_views.history[::-1]),
    ):
        assert (mask == (whole != -1)).all()
        assert (batch.images[places][mask] == whole[mask]).all()
    assert (batch.clicked == page_views.clicked[::-1]).all()
    assert (batch.page_image == page_views.page[::-1]).all()
    assert (batch.page_category == page_views.categories[page_views.page[::-1]]).all()
    assert set(batch.images) == {n for n in np.concatenate([page, history]).ravel() if n >= 0}
