"""Parquet files without a user or an item, against plain loops over their rows."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.contract import ITEM_KEY, USER_KEY
from jobs.forget.rows import Entity, count_held, mentions, without, write_without

IDS = ["a", "ab", "7", ""]
HISTORIES = st.lists(st.sampled_from(IDS), max_size=4)
ROWS = st.lists(st.tuples(st.sampled_from([*IDS, None]), st.sampled_from(IDS), HISTORIES), max_size=12)
USER, ITEM = Entity(USER_KEY, ("a",)), Entity(ITEM_KEY, ("a",))


def table_of(rows):
    clicked = [list(range(len(history))) for *_, history in rows]
    return pa.table(
        {
            "user_id": pa.array([user for user, *_ in rows], pa.string()),
            "item_id": pa.array([item for _, item, _ in rows], pa.string()),
            "request_id": pa.array(["a"] * len(rows), pa.string()),
            "history_item_ids": pa.array([history for *_, history in rows], pa.list_(pa.string())),
            "history_clicked_at": pa.array(clicked, pa.list_(pa.int64())),
        }
    )


@given(ROWS)
def test_a_users_rows_go_and_all_others_stay_as_they_were(rows):
    kept, found = without(table_of(rows), USER)
    assert kept.equals(table_of([row for row in rows if row[0] != "a"]))
    assert found == sum(user == "a" for user, *_ in rows)


@given(ROWS)
def test_an_items_rows_go_and_histories_lose_its_clicks_with_their_moments(rows):
    kept, found = without(table_of(rows), ITEM)
    others = [row for row in rows if row[1] != "a"]
    pairs = [[(one, at) for at, one in enumerate(history) if one != "a"] for *_, history in others]
    assert kept["history_item_ids"].to_pylist() == [[one for one, _ in pair] for pair in pairs]
    assert kept["history_clicked_at"].to_pylist() == [[at for _, at in pair] for pair in pairs]
    assert kept["user_id"].to_pylist() == [user for user, *_ in others]
    assert found == len(rows) - len(others) + sum("a" in history for *_, history in others)
    assert without(kept, ITEM)[1] == 0


def test_a_state_of_which_no_click_is_left_is_no_state(tmp_path):
    rows = pa.table(
        {"user_id": ["u", "v"], "history_item_ids": [["a"], ["a", "b"]], "history_clicked_at": [[1], [2, 1]]}
    )
    pq.write_table(rows, tmp_path / "in.parquet")
    assert count_held(tmp_path / "in.parquet", ITEM) == 2
    assert write_without(tmp_path / "in.parquet", tmp_path / "out.parquet", ITEM) == 2
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [
        {"user_id": "v", "history_item_ids": ["b"], "history_clicked_at": [1]}
    ]
    assert count_held(tmp_path / "out.parquet", ITEM) == 0


def test_a_page_or_logged_request_that_showed_the_item_goes():
    pages = pa.table({"request_id": ["r", "s"], "item_ids": [["b", "a"], ["b"]], "item_id": [["b"], ["c", "a"]]})
    assert without(pages.drop_columns("item_id"), ITEM)[0]["request_id"].to_pylist() == ["s"]
    assert without(pages.drop_columns("item_ids"), ITEM)[0]["request_id"].to_pylist() == ["r"]


def test_an_item_that_was_the_first_with_a_picture_is_no_longer_pointed_to():
    items = pa.table({"item_id": ["a", "b"], "duplicate_of": [None, "a"]})
    kept, found = without(items, ITEM)
    assert kept.to_pylist() == [{"item_id": "b", "duplicate_of": None}]
    assert found == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"user_id": "7"}', True),
        ('{"user_id": 7}', True),
        ('{"user_id": "77", "n": 17}', False),
        ('{"_corrupt_record": "7,shoe"}', True),
        ('{"_corrupt_record": "77,shoe"}', False),
        ('{"examples": ["{\\"user_id\\": \\"7\\"}"]}', True),
        ("7,shoe", True),
        ("<td>77</td>", False),
    ],
)
def test_a_text_mentions_an_id_by_whole_values_or_words(text, found):
    assert mentions(text, ("7",)) is found
