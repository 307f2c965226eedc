"""The image vectors of items, as the CTR models look them up."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.contract import EMBEDDING_DIM, ITEM_KEY
from model.ctr.inputs.columns import Ints

Floats = NDArray[np.float32]


class ItemVectors:
    """The image vectors of items: which row of one shared matrix belongs to which item."""

    def __init__(self, item_ids: Sequence[str] | pa.Array, matrix: Floats, rows: Ints | None = None) -> None:
        """item_ids: (I,), distinct; matrix: (M, 256) float32 unit rows; rows: (I,) row of each item, else 0, 1, 2 ...

        Raises ValueError where the shapes do not fit.
        """
        rows = np.arange(len(item_ids), dtype=np.int32) if rows is None else np.asarray(rows, dtype=np.int32)
        if matrix.ndim != 2 or matrix.shape[1] != EMBEDDING_DIM or len(rows) != len(item_ids):
            raise ValueError(
                f"{len(item_ids)} items, {len(rows)} rows, vectors {matrix.shape}: an item needs one of {EMBEDDING_DIM}"
            )
        self.item_ids = pa.array(item_ids, type=pa.string())
        self.matrix = np.ascontiguousarray(matrix, dtype=np.float32)
        self._rows = np.append(rows, -1).astype(np.int32)  # the last answers "not found", whose index is -1

    @classmethod
    def load(cls, embed: Path) -> "ItemVectors":
        """From a finished embed artifact: vectors.npy and items.parquet (item_id, row)."""
        items = pq.read_table(embed / "items.parquet", columns=[ITEM_KEY, "row"])
        item_ids = items.column(ITEM_KEY).combine_chunks()
        return cls(item_ids, np.load(embed / "vectors.npy"), items.column("row").to_numpy())

    def rows_of(self, item_ids: pa.Array) -> Ints:
        """The matrix row of each item: (n,) int32, -1 where the item has no vector."""
        found = pc.index_in(item_ids, value_set=self.item_ids).fill_null(-1)
        rows: Ints = self._rows[found.to_numpy(zero_copy_only=False)]
        return rows
