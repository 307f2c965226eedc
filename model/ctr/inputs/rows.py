"""The form of a CTR row, in training and in serving: its columns, their types, what stands for a missing value.

A row is one item shown in one request. Training rows carry every column; a serving row has no position, no label and
no `cold`, and its features are these, in this order, with these defaults.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.arrow_types import KIND_TYPES, TIME
from feature_repo.contract import EVENT_TIME, ITEM_KEY, SERVICES, UNSEEN_CTR, USER_KEY, WINDOWS_DAYS, Feature
from model.errors import CourierError

KIND_DEFAULTS: Final[Mapping[str, object]] = {
    "str": "",
    "int": 0,
    "float": math.nan,
    "list[str]": [],
    "list[int]": [],
}
DEFAULTS: Final[Mapping[str, object]] = {
    "created_at": -1,
    "cluster_id": -1,
    **{f"{who}_ctr_{days}d": UNSEEN_CTR for who in ("item", "user") for days in WINDOWS_DAYS},
}  # 0 is a moment, and a cluster

HISTORY: Final = "history_item_ids"
HISTORY_CLUSTERS: Final = "history_cluster_ids"
HISTORY_CATEGORIES: Final = "history_categories"


def features_of(service: str) -> tuple[Feature, ...]:
    """The features of one of the contract's services, in the contract's order."""
    return tuple(feature for view in SERVICES[service] for feature in view.features)


USER_FEATURES: Final = features_of("ranking_user")
ITEM_FEATURES: Final = features_of("ranking_item")
CLUSTER_FEATURES: Final = features_of("item_cluster_ids")
FEATURES: Final = (*USER_FEATURES, *ITEM_FEATURES, *CLUSTER_FEATURES)

FEATURE_COLUMNS: Final[Mapping[str, pa.DataType]] = {
    **{feature.name: KIND_TYPES[feature.kind] for feature in FEATURES},
    HISTORY_CLUSTERS: pa.list_(pa.int32()),  # parallel to history_item_ids; -1 where the item has no usable image
    HISTORY_CATEGORIES: pa.list_(pa.string()),  # parallel to history_item_ids; "" where unknown
}
REQUEST_COLUMNS: Final[Mapping[str, pa.DataType]] = {
    "request_id": pa.string(),
    USER_KEY: pa.string(),
    ITEM_KEY: pa.string(),
    "request_time": TIME,
    "position": pa.int32(),
    "clicked": pa.int8(),
}
ROW_COLUMNS: Final[Mapping[str, pa.DataType]] = {
    **REQUEST_COLUMNS,
    **FEATURE_COLUMNS,
    "cold": pa.bool_(),
}

ROW_DEFAULTS: Final[Mapping[str, object]] = {
    **{feature.name: DEFAULTS.get(feature.name, KIND_DEFAULTS[feature.kind]) for feature in FEATURES},
    HISTORY_CLUSTERS: [],
    HISTORY_CATEGORIES: [],
}


def fill(table: pa.Table) -> pa.Table:
    """The columns of `table` that a row has, in the order and types of ROW_COLUMNS, no feature null.

    Columns a row does not have are dropped; a price that is unknown is NaN, never null.
    Raises CourierError, with the names, if a feature's column is missing.
    """
    given = set(table.column_names)  # which makes them anew each time that it is asked
    missing = [name for name in FEATURE_COLUMNS if name not in given]
    if missing:
        raise CourierError(f"a CTR row needs the columns {', '.join(missing)}: look up every service of the contract")
    names = [name for name in ROW_COLUMNS if name in given]
    columns = [filled(table.column(name), name) for name in names]
    return pa.table(columns, schema=pa.schema([(name, ROW_COLUMNS[name]) for name in names]))


def filled(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """One column of a row in its type, its nulls replaced by the column's default (keys and labels have none)."""
    column = column if column.type == ROW_COLUMNS[name] else column.cast(ROW_COLUMNS[name])
    if column.null_count == 0 or name not in ROW_DEFAULTS:
        return column
    default = pa.scalar(ROW_DEFAULTS[name], ROW_COLUMNS[name])
    if not pa.types.is_list(column.type):
        return column.fill_null(default)
    return pc.coalesce(column, default)  # pyarrow's fill_null knows no lists


def with_history_facts(table: pa.Table, clusters: pa.Table, categories: pa.Table) -> pa.Table:
    """`table` and, parallel to its history_item_ids, what kind of picture and what kind of item each click was.

    clusters: item_id, cluster_id, each item once; categories: item_id, category. Unknown items get -1 and "".
    Where categories have an `event_timestamp` too, an item may have several, sorted by item and time: each row of
    `table` takes those of its request_time, the first where all come later.
    """
    history = filled(table.column(HISTORY), HISTORY).combine_chunks()
    item_ids, values = clusters.column(ITEM_KEY), clusters.column("cluster_id")
    along = along_history(history, item_ids, values, default=ROW_DEFAULTS["cluster_id"])
    table = table.append_column(HISTORY_CLUSTERS, along.cast(ROW_COLUMNS[HISTORY_CLUSTERS]))
    item_ids, values = categories.column(ITEM_KEY), categories.column("category")
    if EVENT_TIME in categories.column_names:
        moments = table.column("request_time"), categories.column(EVENT_TIME)
        along = _along_history_as_of(history, *moments, item_ids, values, default=ROW_DEFAULTS["category"])
    else:
        along = along_history(history, item_ids, values, default=ROW_DEFAULTS["category"])
    return table.append_column(HISTORY_CATEGORIES, along.cast(ROW_COLUMNS[HISTORY_CATEGORIES]))


def along_history(
    history: pa.ListArray, item_ids: pa.ChunkedArray, values: pa.ChunkedArray, *, default: object
) -> pa.ListArray:
    """For each history the values of its items, in its order: a list parallel to it, of the values' type.

    history: list<string>, no nulls; item_ids: distinct, with values[i] belonging to item_ids[i].
    An item that is not among them, or whose value is null, gets `default`.
    """
    found = pc.index_in(history.flatten(), value_set=item_ids.combine_chunks())
    return _lists_like(history, values, found, default)


def _along_history_as_of(
    history: pa.ListArray,
    asked_at: pa.ChunkedArray,
    valid_from: pa.ChunkedArray,
    item_ids: pa.ChunkedArray,
    values: pa.ChunkedArray,
    *,
    default: object,
) -> pa.ListArray:
    """As along_history, of items with several values, each valid from its moment on; sorted by item and moment.

    asked_at: the moment of each history.
    """
    distinct = pc.unique(item_ids.combine_chunks())
    item_of_value = pc.index_in(item_ids.combine_chunks(), value_set=distinct).to_numpy()
    first = np.searchsorted(item_of_value, np.arange(len(distinct)))
    found = pc.index_in(history.flatten(), value_set=distinct)
    if len(distinct) == len(item_ids):
        return _lists_like(history, values, found, default)
    # An item and the rank of a moment among all moments make one number, which is searched for among those of values.
    moments, ranks = np.unique(_micros(valid_from), return_inverse=True)
    keys = item_of_value * np.int64(len(moments) + 1) + ranks + 1
    rank_of_list = np.searchsorted(moments, _micros(asked_at), side="right")
    item = found.fill_null(0).to_numpy()
    asked = item * np.int64(len(moments) + 1) + np.repeat(rank_of_list, pc.list_value_length(history).to_numpy())
    place = np.maximum(np.searchsorted(keys, asked, side="right") - 1, first[item])
    return _lists_like(history, values, pa.array(place, mask=pc.is_null(found).to_numpy(zero_copy_only=False)), default)


def _micros(moments: pa.ChunkedArray) -> np.ndarray:
    """(N,) int64, microseconds since 1970."""
    return np.asarray(moments.cast(TIME).cast(pa.int64()), dtype=np.int64)


def _lists_like(history: pa.ListArray, values: pa.ChunkedArray, found: pa.Array, default: object) -> pa.ListArray:
    """values[found], `default` where that is null, in lists as long as those of `history`."""
    taken = values.combine_chunks().take(found).fill_null(pa.scalar(default, values.type))
    offsets = pc.subtract(history.offsets, history.offsets[0])  # a slice keeps its parent's offsets
    return pa.ListArray.from_arrays(offsets, taken)
