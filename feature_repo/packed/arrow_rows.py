"""Arrow tables as packed rows and back, column by column: what Feast does by a protobuf message a value."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contract import EVENT_TIME
from feature_repo.packed.database import Batch, Database
from feature_repo.packed.keys import entity_keys
from feature_repo.packed.reader import PackedView
from feature_repo.packed.rows import NO_TIME, NUMBERS, Cells, Layout, Rows, members_joined

ROWS_A_BATCH: Final = 20_000  # a transaction; bounds the memory of a load

_ARROW_NUMBERS: Final = {
    "int": pa.int64(),
    "float": pa.float64(),
    "int32": pa.int32(),
    "float32": pa.float32(),
    "bool": pa.bool_(),
}
_MICROSECONDS: Final = pa.timestamp("us", tz="UTC")


def load(
    database: Database,
    view: PackedView,
    keys: Sequence[str],
    batches: Iterable[pa.RecordBatch],
    *,
    created_time: str | None = None,
) -> int:
    """Write rows of a view; how many were offered. A row of an earlier time than the store's changes nothing.

    keys: the join keys, columns of text.  batches: with the keys, `event_timestamp`, the view's columns and, where one
    is named, the column of created times.  Raises ValueError on a null in a key, in an event time or inside a list.
    """
    offered = 0
    for given in batches:
        for start in range(0, given.num_rows, ROWS_A_BATCH):
            batch = given.slice(start, ROWS_A_BATCH)
            database.write(view.table, packed(view.layout, keys, batch, created_time))
            offered += batch.num_rows
    return offered


def packed(layout: Layout, keys: Sequence[str], rows: pa.RecordBatch, created_time: str | None) -> Batch:
    """Rows of Arrow as rows of the store."""
    event = _times(_whole(rows, EVENT_TIME))
    created = _times(rows.column(created_time)) if created_time else np.full(len(event), NO_TIME)
    cells = {name: _cells(kind, rows.column(name), name) for name, kind in layout.kinds.items()}
    of_entities = {key: _whole(rows, key).cast(pa.large_string()).to_pylist() for key in keys}
    return Batch(entity_keys(of_entities), event, created, layout.pack(event, created, cells))


def columns_of(layout: Layout, rows: Rows) -> dict[str, pa.Array]:
    """Rows of the store as Arrow's columns, one entry for each row asked for; null where there is none."""
    return {name: _column(kind, rows.values[name], rows.valid[name]) for name, kind in layout.kinds.items()}


def _column(kind: str, values: np.ndarray, valid: np.ndarray) -> pa.Array:
    if kind in NUMBERS:
        return pa.array(values, _ARROW_NUMBERS[kind], mask=None if valid.all() else ~valid)
    member = kind.removeprefix("list[").removesuffix("]")
    of = _ARROW_NUMBERS.get(member) or {"str": pa.string(), "bytes": pa.binary()}[member]
    return pa.array(values, pa.list_(of) if kind.startswith("list") else of)


def _whole(rows: pa.RecordBatch, name: str) -> Any:
    column = rows.column(name)
    if column.null_count:
        raise ValueError(f"column {name} has {column.null_count} nulls of {rows.num_rows}: every row needs one")
    return column


def _times(column: Any) -> np.ndarray:
    numbers = column.cast(_MICROSECONDS).cast(pa.int64()).fill_null(NO_TIME)
    return np.asarray(numbers.to_numpy(zero_copy_only=False))


def _cells(kind: str, column: Any, name: str) -> Cells:
    valid = np.asarray(column.is_valid().to_numpy(zero_copy_only=False))
    if kind in NUMBERS:
        return Cells(valid, _numbers(kind, column.cast(_ARROW_NUMBERS[kind]).fill_null(0 if kind != "bool" else False)))
    if not kind.startswith("list"):
        data, ends = _pieces(column)
        return Cells(valid, data, ends)
    member = kind.removeprefix("list[").removesuffix("]")
    ends = np.cumsum(pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64))
    members = column.flatten()  # those of null lists are left out
    if members.null_count:
        raise ValueError(f"lists of column {name} hold {members.null_count} nulls: a list in the store has none")
    if member in NUMBERS:
        numbers = _numbers(member, members.cast(_ARROW_NUMBERS[member]))
        return Cells(valid, numbers.view(np.uint8), ends * numbers.itemsize)
    data, member_ends = _pieces(members)
    return members_joined(valid, ends, member_ends, data)


def _numbers(kind: str, column: Any) -> np.ndarray:
    return np.ascontiguousarray(column.to_numpy(zero_copy_only=False), NUMBERS[kind])


def _pieces(column: Any) -> tuple[np.ndarray, np.ndarray]:
    # Text or bytes on end, and where each ends; nothing of a null.
    whole = column.cast(pa.large_binary()).fill_null(b"")
    _, offsets, data = whole.buffers()
    bounds = np.frombuffer(offsets, "<i8", len(whole) + 1, 8 * whole.offset) if len(whole) else np.zeros(1, np.int64)
    content = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    return content[bounds[0] : bounds[-1]], bounds[1:] - bounds[0]
