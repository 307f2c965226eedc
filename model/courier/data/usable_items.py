"""The items of an images artifact that have a usable image, and why the others have none."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ITEMS = "items.parquet"
OK = "ok"
TOLD = 3  # reasons in a sentence


def usable_items(images: Path, columns: Sequence[str]) -> pa.Table:
    """These columns of the items with a usable image, sorted by item_id, which is among them."""
    read = pq.read_table(images / ITEMS, columns=[*columns, "status"], filters=[("status", "==", OK)])
    return read.select(list(columns)).sort_by("item_id")


def reasons(images: Path, item_ids: pa.Array | None = None) -> str:
    """Why items have no usable image, the most frequent reasons first, each with its count; of these items, or of all.

    As in "180 shared_by_many, 15 not_found". What a reason means is said in the report `coverage.html`.
    """
    filters = [("status", "!=", OK)] if item_ids is None else [("status", "!=", OK), ("item_id", "in", item_ids)]
    found = Counter(pq.read_table(images / ITEMS, columns=["reason"], filters=filters)["reason"].to_pylist())
    told = [f"{count} {reason}" for reason, count in sorted(found.items(), key=lambda one: (-one[1], one[0]))]
    return ", ".join(told[:TOLD]) + (f" and {len(told) - TOLD} reasons more" if len(told) > TOLD else "")
