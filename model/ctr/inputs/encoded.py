"""THE row -> numbers that every CTR model sees, whatever image input it has; and what an image input starts from.

What is learned (vocabularies, medians) comes from training rows only, see model.ctr.inputs.fit. Nothing here reads the
label.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.contract import CTR_HISTORY, ITEM_KEY, WINDOWS_DAYS
from model.ctr.inputs.columns import (
    Bools,
    Ints,
    Places,
    dictionary,
    flat_list,
    lengths_of,
    lookup,
    microseconds,
    numbers,
    parallel,
    position_of,
    strings,
    whole,
)
from model.ctr.inputs.item_vectors import Floats, ItemVectors
from model.ctr.inputs.rows import HISTORY, HISTORY_CATEGORIES, HISTORY_CLUSTERS
from model.ctr.inputs.state import UNKNOWN, InputsState

RECENT: Final = (5, 10, CTR_HISTORY)
MICROSECONDS_A_DAY: Final = 86_400e6

STATISTICS: Final = tuple(f"{who}_{{}}_{days}d" for who in ("item", "user") for days in WINDOWS_DAYS)
BASE_FEATURES: Final = (
    *(name.format("ctr") for name in STATISTICS),
    *(f"log_{name.format(what)}" for name in STATISTICS for what in ("impressions", "clicks")),
    "log_price",
    "log_price_to_category_median",
    "log_item_age_days",
    "history_length",
    "log_days_since_click",
    *(f"category_matches_{last}" for last in RECENT),
    "category_share",
    "clicked_before",
)


@dataclass(frozen=True)
class Encoded:
    """Rows as arrays, before any image input is chosen; H = 50 places of history, newest first.

    item, category: (B,) int32 codes, 0 unknown.  cluster: (B,) int32 ID, -1 unknown.  position: (B,) int32, 0 the top.
    base: (B, len(BASE_FEATURES)) float32, NaN where unknown.  length: (B,) clicks in the history.
    history_item, history_category: (B, H) codes.  history_cluster: (B, H), -1 unknown.
    history_age: (B, H) float32, log(1 + days since the click).  Places at and after `length` hold 0 (clusters: -1).
    target_row, history_row: (B,), (B, H) rows of the vectors' matrix, -1 without a vector.
    """

    item: Ints
    category: Ints
    cluster: Ints
    position: Ints
    base: Floats
    length: Ints
    history_item: Ints
    history_category: Ints
    history_cluster: Ints
    history_age: Floats
    target_row: Ints
    history_row: Ints

    def __len__(self) -> int:
        return len(self.item)

    @cached_property
    def filled(self) -> Bools:
        """(B, H): which places hold a click."""
        places: Bools = np.arange(CTR_HISTORY) < self.length[:, None]
        return places


def encode(table: pa.Table, state: InputsState, vectors: ItemVectors | None) -> Encoded:
    """Rows as arrays.

    table: the form of model.ctr.inputs.rows; position may be absent (0), label and `cold` are not read.

    Raises CourierError, with the row, where a list that belongs to the history is not as long as it.
    """
    target = dictionary(strings(table, ITEM_KEY), flat_list(table.column(HISTORY)))
    lengths = lengths_of(table.column(HISTORY))
    place = Places(lengths)
    category = dictionary(strings(table, "category"), parallel(table, HISTORY_CATEGORIES, lengths))
    item_code, category_code = lookup(target.values, state.items), lookup(category.values, state.categories)
    vector_row = vectors.rows_of(target.values) if vectors is not None else np.full(len(item_code), -1, dtype=np.int32)
    requested = microseconds(table.column("request_time"))
    clicked_at = place.pad(parallel(table, "history_clicked_at", lengths).to_numpy(zero_copy_only=False), 0)
    days = np.maximum(requested[:, None] - clicked_at, 0) / MICROSECONDS_A_DAY
    known_category = lookup(category.values, ("",)) == UNKNOWN  # "" says that the category is unknown
    same_category = place.pad(category.second, -1) == category.first[:, None]
    same_category &= known_category[category.first][:, None]
    encoded = Encoded(
        item=item_code[target.first],
        category=category_code[category.first],
        cluster=numbers(table, "cluster_id").astype(np.int32),
        position=position_of(table),
        base=np.zeros((table.num_rows, len(BASE_FEATURES)), dtype=np.float32),
        length=place.length,
        history_item=place.pad(item_code[target.second], UNKNOWN),
        history_category=place.pad(category_code[category.second], UNKNOWN),
        history_cluster=place.pad(whole(parallel(table, HISTORY_CLUSTERS, lengths)), -1),
        history_age=np.log1p(days).astype(np.float32),
        target_row=vector_row[target.first],
        history_row=place.pad(vector_row[target.second], -1),
    )
    clicked_before = (place.pad(target.second, -1) == target.first[:, None]).any(axis=1)
    columns = (
        *_statistics(table),
        *_prices(table, encoded.category, state),
        _item_age(table, requested),
        encoded.length.astype(np.float32),
        np.where(encoded.length > 0, encoded.history_age[:, 0], np.nan),
        *matches(same_category, encoded.length),
        clicked_before,
    )
    encoded.history_age[~encoded.filled] = 0
    for i, column in enumerate(columns):
        encoded.base[:, i] = column
    return encoded


def matches(same: Bools, length: Ints) -> list[NDArray[Any]]:
    """How many of the newest 5, 10 and 50 clicks match, and the share of all that do (0 without a click)."""
    counts = [same[:, :last].sum(axis=1) for last in RECENT]
    return [*counts, counts[-1] / np.maximum(length, 1)]


def _statistics(table: pa.Table) -> list[NDArray[Any]]:
    """Smoothed CTRs, then log counts, in the order of BASE_FEATURES."""
    shown = [np.maximum(numbers(table, name.format("impressions")), 0) for name in STATISTICS]
    clicked = [np.maximum(numbers(table, name.format("clicks")), 0) for name in STATISTICS]
    smoothed = [numbers(table, name.format("ctr")) for name in STATISTICS]
    return smoothed + [np.log1p(count) for pair in zip(shown, clicked, strict=True) for count in pair]


def _prices(table: pa.Table, category: Ints, state: InputsState) -> list[NDArray[Any]]:
    price = numbers(table, "price")
    logged = np.log1p(np.where(price >= 0, price, np.nan))
    return [logged, logged - np.log1p(state.median_price[category])]


def _item_age(table: pa.Table, requested: NDArray[np.int64]) -> NDArray[np.float64]:
    """log(1 + days) from the item's creation to the request; NaN where the creation is unknown (-1)."""
    created = numbers(table, "created_at")
    days = np.maximum(requested - created, 0) / MICROSECONDS_A_DAY
    return np.where(created >= 0, np.log1p(days), np.nan)
