"""Rows of parquet files that hold a user or an item: found, and the file without them."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contract import ITEM_KEY, USER_HISTORY
from jobs.raw.typed import ROW

ITEM_LISTS: Final = (ITEM_KEY, "item_ids")  # what a page, or a logged request, showed
POINTERS: Final = ("duplicate_of", "near_duplicate_of", "first_item_id")
HISTORY, MOMENTS = (feature.name for feature in USER_HISTORY.features)
ROWS: Final = 65_536  # in memory at a time


@dataclass(frozen=True, slots=True)
class Entity:
    """A user or an item.

    key: the join key that names it.  ids: its id, and what stands for it where ids are hashed.
    pictures: of an item, the image_ids that no other item has.
    """

    key: str
    ids: tuple[str, ...]
    pictures: Collection[str] = ()


def mentions(text: str, ids: Sequence[str]) -> bool:
    """Whether a JSON document has one of the ids as a value or a key; whether any other text has it as a word."""
    try:
        found = json.loads(text)
    except ValueError:
        return any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text) for one in ids)
    return _has(found, ids)


def _has(value: Any, ids: Sequence[str]) -> bool:
    if isinstance(value, dict):
        return any(_has(one, ids) for pair in value.items() for one in pair)
    if isinstance(value, list):
        return any(_has(one, ids) for one in value)
    if isinstance(value, str):
        return value in ids or (len(value) > max(map(len, ids)) and mentions(value, ids))
    return isinstance(value, int) and str(value) in ids


def count_held(path: Path, entity: Entity) -> int:
    """How many rows of a parquet file hold the entity."""
    return sum(found for _, found in _batches(path, entity))


def write_without(path: Path, to: Path, entity: Entity) -> int:
    """Write the file without the entity to `to`; how many rows held it. Rows keep their order.

    A row that is the entity's goes; one that has an item among others, in a history or as its duplicate, loses it.
    """
    found = 0
    with pq.ParquetFile(path) as source:
        schema = source.schema_arrow
    with pq.ParquetWriter(to, schema, compression="zstd") as writer:
        for table, held in _batches(path, entity):
            writer.write_table(table)
            found += held
    return found


def _batches(path: Path, entity: Entity) -> Iterator[tuple[pa.Table, int]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS):
            yield without(pa.Table.from_batches([batch]), entity)


def without(table: pa.Table, entity: Entity) -> tuple[pa.Table, int]:
    """The table without the entity, and how many of its rows held it."""
    gone = pa.array([False] * len(table), pa.bool_())
    for name in table.column_names:
        test = _test(name, table.schema.field(name).type, entity)
        if test is not None and len(table):
            gone = pc.or_(gone, test(table[name].combine_chunks()))
    kept, changed = table.filter(pc.invert(gone)), 0
    if entity.key == ITEM_KEY:
        kept, pointing = _without_pointers(kept, entity)
        kept, clicked = _without_clicks(kept, entity)
        changed = pointing + clicked
    return kept, pc.sum(gone).as_py() + changed if len(table) else 0


def _test(name: str, kind: pa.DataType, entity: Entity) -> Callable[[pa.Array], pa.Array] | None:
    """Whether a row of a column is the entity's; None for a column that cannot tell."""
    ids = pa.array(entity.ids, pa.string())
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        if entity.key == ITEM_KEY and name in ITEM_LISTS:
            return lambda column: _lists_with(column, ids)
        return None
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value)):
        return None
    if name == entity.key:
        return lambda column: pc.is_in(column.cast(pa.string()), value_set=ids)
    if name == "image_id" and entity.pictures:
        pictures = pa.array(sorted(entity.pictures), pa.string())
        return lambda column: pc.is_in(column, value_set=pictures)
    if name == ROW:
        return lambda column: pa.array([text is not None and mentions(text, entity.ids) for text in column.to_pylist()])
    return None


def _lists_with(column: pa.Array, ids: pa.Array) -> pa.Array:
    parents = pc.list_parent_indices(column).filter(pc.is_in(pc.list_flatten(column), value_set=ids))
    return pc.is_in(pa.array(range(len(column)), parents.type), value_set=parents)


def _without_pointers(table: pa.Table, entity: Entity) -> tuple[pa.Table, int]:
    changed = 0
    for name in set(POINTERS) & set(table.column_names):
        column = table[name].combine_chunks()
        points = pc.is_in(column, value_set=pa.array(entity.ids, pa.string()))
        changed += pc.sum(points).as_py() or 0
        emptied = pc.if_else(points, pa.scalar(None, column.type), column)
        table = table.set_column(table.column_names.index(name), table.schema.field(name), emptied)
    return table, changed


def _without_clicks(table: pa.Table, entity: Entity) -> tuple[pa.Table, int]:
    """Histories without the item: the lists beside it of the same length lose the same places."""
    if HISTORY not in table.column_names or not len(table):
        return table, 0
    held = _lists_with(table[HISTORY].combine_chunks(), pa.array(entity.ids, pa.string()))
    places = [place for place, is_held in enumerate(held.to_pylist()) if is_held]
    if not places:
        return table, 0
    lists = [name for name in table.column_names if name.startswith("history_") and _is_list(table, name)]
    columns = {name: table[name].to_pylist() for name in lists}
    for place in places:
        kept = [at for at, item in enumerate(columns[HISTORY][place]) if item not in entity.ids]
        length = len(columns[HISTORY][place])
        for name in lists:
            if len(columns[name][place] or ()) == length:
                columns[name][place] = [columns[name][place][at] for at in kept]
    for name in lists:
        field = table.schema.field(name)
        table = table.set_column(table.column_names.index(name), field, pa.array(columns[name], field.type))
    if MOMENTS in lists and "request_id" not in table.column_names:  # a state after a click: none is empty
        emptied = {place for place in places if not columns[HISTORY][place]}
        table = table.filter(pa.array([place not in emptied for place in range(len(table))]))
    return table, len(places)


def _is_list(table: pa.Table, name: str) -> bool:
    return bool(pa.types.is_list(table.schema.field(name).type))


def only_of(items: Path, column: str, item_id: str) -> set[str]:
    """What this item has in a column of an images artifact's items.parquet, and no other item."""
    table = pq.read_table(items, columns=[ITEM_KEY, column])
    is_theirs = pc.equal(table[ITEM_KEY], item_id)
    theirs, others = (set(table.filter(mask)[column].to_pylist()) for mask in (is_theirs, pc.invert(is_theirs)))
    return theirs - others - {None}
