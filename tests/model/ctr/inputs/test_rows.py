"""The form of a CTR row: types, defaults, and lists parallel to the history."""

import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.ctr.inputs.rows import (
    FEATURE_COLUMNS,
    ROW_COLUMNS,
    ROW_DEFAULTS,
    TIME,
    along_history,
    fill,
    with_history_facts,
)
from model.errors import CourierError

ITEMS = st.sampled_from("abcdef")


def empty_features(rows: int) -> dict[str, pa.Array]:
    return {name: pa.nulls(rows, kind) for name, kind in FEATURE_COLUMNS.items()}


def test_a_row_of_nothing_but_nulls_gets_every_default():
    filled = fill(pa.table({"item_id": pa.array(["i1"]), **empty_features(1)}))
    [row] = filled.to_pylist()
    assert math.isnan(row.pop("price"))
    assert row.pop("item_id") == "i1"
    assert row == {name: value for name, value in ROW_DEFAULTS.items() if name != "price"}


def test_a_filled_table_has_the_columns_types_and_order_of_a_row():
    shuffled = dict(reversed(empty_features(2).items()))
    filled = fill(pa.table({"stray": pa.array([1, 2]), **shuffled, "user_id": pa.array(["u", "v"])}))
    names = ["user_id", *FEATURE_COLUMNS]
    assert filled.schema == pa.schema([(name, ROW_COLUMNS[name]) for name in names])


def test_a_value_that_is_there_is_kept():
    table = pa.table({**empty_features(1), "cluster_id": pa.array([3]), "history_item_ids": pa.array([["a", "b"]])})
    [row] = fill(table).to_pylist()
    assert row["cluster_id"] == 3
    assert row["history_item_ids"] == ["a", "b"]


def test_a_missing_feature_is_named():
    table = pa.table(empty_features(1)).drop_columns(["price"])
    with pytest.raises(CourierError, match="needs the columns price"):
        fill(table)


@given(
    histories=st.lists(st.lists(ITEMS, max_size=4), max_size=6),
    known=st.dictionaries(ITEMS, st.none() | st.integers(0, 9)),
    start=st.integers(0, 3),
)
def test_a_list_along_the_history_is_what_a_dictionary_would_give(histories, known, start):
    array = pa.array(histories, pa.list_(pa.string())).slice(start)
    item_ids, values = (
        pa.chunked_array([pa.array(list(known), pa.string())]),
        pa.array(list(known.values()), pa.int64()),
    )
    along = along_history(array, item_ids, pa.chunked_array([values]), default=-1)
    looked_up = {item: -1 if value is None else value for item, value in known.items()}
    assert along.to_pylist() == [[looked_up.get(item, -1) for item in row] for row in histories[start:]]


CHANGES = st.dictionaries(st.tuples(ITEMS, st.integers(0, 5)), st.sampled_from("xyz"))


@given(histories=st.lists(st.tuples(st.lists(ITEMS, max_size=4), st.integers(0, 6)), max_size=6), changes=CHANGES)
def test_an_item_of_a_history_has_the_category_that_it_had_at_the_request(histories, changes):
    ordered = sorted(changes)
    table = pa.table(
        {
            "history_item_ids": pa.chunked_array([pa.array([items for items, _ in histories], pa.list_(pa.string()))]),
            "request_time": pa.array([at for _, at in histories], TIME),
        }
    )
    categories = pa.table(
        {
            "item_id": pa.array([item for item, _ in ordered], pa.string()),
            "event_timestamp": pa.array([at for _, at in ordered], TIME),
            "category": pa.array([changes[key] for key in ordered], pa.string()),
        }
    )
    clusters = pa.table({"item_id": pa.array([], pa.string()), "cluster_id": pa.array([], pa.int32())})
    found = with_history_facts(table, clusters, categories)

    def category(item, at):
        of_item = [(moment, changes[item, moment]) for one, moment in ordered if one == item]
        before = [value for moment, value in of_item if moment <= at]
        return before[-1] if before else of_item[0][1] if of_item else ""

    assert found.column("history_categories").to_pylist() == [
        [category(item, at) for item in items] for items, at in histories
    ]
