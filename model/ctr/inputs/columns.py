"""Columns of the CTR rows' Arrow table as numpy arrays: numbers, codes of strings, and lists in their places."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contract import CTR_HISTORY
from model.ctr.inputs.rows import HISTORY, HISTORY_CATEGORIES
from model.errors import CourierError

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)


class Places:
    """Where the entries of a flat list column lie in a (B, H) array; what is older than H entries is left out."""

    def __init__(self, lengths: NDArray[np.int64]) -> None:
        """lengths: (B,) entries of each row's list; H is CTR_HISTORY."""
        self.length = np.minimum(lengths, CTR_HISTORY).astype(np.int32)
        self._filled = np.arange(CTR_HISTORY) < self.length[:, None]
        self._kept = self._within(lengths)

    def _within(self, lengths: NDArray[np.int64]) -> Bools | None:
        if not len(lengths) or lengths.max() <= CTR_HISTORY:
            return None
        starts = np.cumsum(lengths) - lengths
        within: Bools = np.arange(lengths.sum()) - np.repeat(starts, lengths) < CTR_HISTORY
        return within

    def pad(self, flat: NDArray[T], fill: int) -> NDArray[T]:
        """(B, H) of flat's entries in their places; the rest is `fill`."""
        out = np.full(self._filled.shape, fill, dtype=flat.dtype)
        out[self._filled] = flat if self._kept is None else flat[self._kept]
        return out


@dataclass(frozen=True, slots=True)
class Dictionary:
    """Two columns of strings as indices into their distinct values; a null is the value ""."""

    values: pa.Array
    first: Ints
    second: Ints


def dictionary(first: pa.Array, second: pa.Array) -> Dictionary:
    """The distinct strings of two columns, and where each row's stands among them."""
    encoded = pa.concat_arrays([first, second]).fill_null("").dictionary_encode()
    indices = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    return Dictionary(encoded.dictionary, indices[: len(first)], indices[len(first) :])


def lookup(values: pa.Array, vocabulary: Sequence[str]) -> Ints:
    """Codes of strings: place in the vocabulary + 1, or 0."""
    found = pc.index_in(values, value_set=pa.array(vocabulary, type=pa.string())).fill_null(-1)
    codes: Ints = found.to_numpy(zero_copy_only=False).astype(np.int32) + 1
    return codes


def strings(table: pa.Table, name: str) -> pa.Array:
    """A column as strings, in one chunk."""
    return _array(table.column(name)).cast(pa.string())


def numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A numeric column as float64; a null counts as NaN in a float column, -1 for an ID or a moment, else 0."""
    column = table.column(name)
    if not pa.types.is_floating(column.type):
        column = column.fill_null(-1 if name in ("cluster_id", "created_at") else 0)
    values: NDArray[np.float64] = column.to_numpy().astype(np.float64)
    return values


def position_of(table: pa.Table) -> Ints:
    """The place on the page of each row: (B,) int32, 0 the top; 0 where it is null, negative or no column."""
    if "position" not in table.column_names:
        return np.zeros(table.num_rows, dtype=np.int32)
    found = table.column("position").fill_null(0).to_numpy()
    position: Ints = np.maximum(found, 0).astype(np.int32)
    return position


def microseconds(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Moments as microseconds since 1970: (B,) int64."""
    found: NDArray[np.int64] = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    return found


def _array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def flat_list(column: pa.ChunkedArray) -> pa.Array:
    """All entries of a list column, one list after the other; a null list is empty."""
    return _array(pc.list_flatten(column))


def lengths_of(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """How many entries each list has: (B,) int64; a null list has none."""
    found: NDArray[np.int64] = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    return found


def parallel(table: pa.Table, name: str, lengths: NDArray[np.int64]) -> pa.Array:
    """The flat entries of a list column that must run parallel to the history.

    Raises CourierError, with the row, where a list is not as long as the history.
    """
    wrong = np.flatnonzero(lengths_of(table.column(name)) != lengths)
    if len(wrong):
        raise CourierError(f"row {wrong[0]}: {name} is not as long as {HISTORY}: join the rows again")
    flat = flat_list(table.column(name))
    return flat.cast(pa.string()).fill_null("") if name == HISTORY_CATEGORIES else flat


def whole(values: pa.Array) -> Ints:
    """Integers as int32; a null is -1."""
    found: Ints = values.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return found


def sorted_codes(column: pa.ChunkedArray) -> Ints:
    """0, 1, 2 ... in the order of the sorted distinct values: the numbering does not depend on the rows' order."""
    values = column.combine_chunks().dictionary_encode()
    names = np.asarray(values.dictionary.to_pylist(), dtype=object)
    rank = np.empty(len(names), dtype=np.int32)
    rank[np.argsort(names, kind="stable")] = np.arange(len(names), dtype=np.int32)
    codes: Ints = rank[values.indices.to_numpy(zero_copy_only=False)]
    return codes
