"""What all items that show one picture make of it and of each other: `jobs.rules` in columns."""

from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import ImagesConfig
from jobs.rules import items
from jobs.rules import placeholders as rule


def placeholders(examined: pa.Table, config: ImagesConfig) -> list[str]:
    """The image_ids of `jobs.rules.placeholders.find_placeholders`, in order, in a whole catalogue.

    examined: image_id, category, title and price of every item.
    """
    shown = examined.filter(pc.is_valid(examined["image_id"]))
    kinds = ("category", "count_distinct", pc.CountOptions(mode="only_valid"))
    found = shown.group_by("image_id", use_threads=False).aggregate([([], "count_all"), kinds])
    times = found["count_all"]
    most = rule.most_alike(len(found))
    # Twice the items of the picture that comes after as many as may be alike; any where there is none.
    ordinary = pc.sort_indices(times, sort_keys=[("", "descending")]).slice(most, 1)
    least = max([config.placeholder_items, *pc.add(pc.multiply(times.take(ordinary), 2), 1).to_pylist()])
    many = pc.greater_equal(found["category_count_distinct"], config.placeholder_categories)
    suspected = found.filter(pc.and_(pc.greater_equal(times, least), many))["image_id"]
    if not len(suspected):
        return []
    common = rule.common_to(shown["title"].to_pylist(), shown["price"].to_pylist())
    users = shown.filter(pc.is_in(shown["image_id"], value_set=suspected.combine_chunks()))
    listed = users.group_by("image_id", use_threads=False).aggregate([("title", "list"), ("price", "list")]).to_pylist()
    return sorted(row["image_id"] for row in listed if not rule.agree(row["title_list"], row["price_list"], common))


def uses(examined: pa.Table, placeholders: Collection[str]) -> pa.Table:
    """Who shows each picture: (image_id, items, first_item_id, categories, image_uri, uri, is_placeholder).

    items: how many; first_item_id: the smallest; categories: the known ones, in any order; image_uri and uri: the
    smallest of its references, as the table writes it and the absolute form. examined: with these columns of EXAMINED.
    """
    shown = examined.filter(pc.is_valid(examined["image_id"])).combine_chunks()
    shown = shown.sort_by([("image_uri", "ascending"), ("uri", "ascending")])
    found = shown.group_by("image_id", use_threads=False).aggregate(
        [
            ("item_id", "count"),
            ("item_id", "min"),
            ("category", "distinct", pc.CountOptions(mode="only_valid")),
            ("image_uri", "first"),
            ("uri", "first"),
        ]
    )
    found = found.rename_columns(["image_id", "items", "first_item_id", "categories", "image_uri", "uri"])
    is_one = pc.is_in(found["image_id"], value_set=pa.array(placeholders, pa.string()))
    return found.append_column("is_placeholder", is_one)


def settle(examined: pa.Table, config: ImagesConfig) -> pa.Table:
    """EXAMINED rows, sorted by item_id, with what all of them make of each, and duplicate_of.

    duplicate_of: the smallest item that shows the same picture, where that is another one. The picture of a placeholder
    is no picture: its image_id is null.
    """
    rows = examined.sort_by("item_id")
    of_picture = uses(rows, placeholders(rows, config))
    at = pc.index_in(rows["image_id"], value_set=of_picture["image_id"])
    is_placeholder = pc.fill_null(of_picture["is_placeholder"].take(at), False)
    first = of_picture["first_item_id"].take(at)
    is_first = pc.fill_null(pc.equal(first, rows["item_id"]), True)
    none = pa.scalar(None, pa.string())
    settled = {
        "status": pc.if_else(is_placeholder, items.PLACEHOLDER, rows["status"]),
        "reason": pc.if_else(is_placeholder, items.SHARED_BY_MANY, rows["reason"]),
        "image_id": pc.if_else(is_placeholder, none, rows["image_id"]),
        "duplicate_of": pc.if_else(pc.or_(is_placeholder, is_first), none, first),
    }
    return _with_columns(rows, settled)


def _with_columns(table: pa.Table, columns: dict[str, Any]) -> pa.Table:
    before = {name: table[name] for name in table.column_names}
    return pa.table(before | columns)
