"""The cluster IDs and image vectors of a release's items, memory-mapped, and found by item id without reading the rest.

A folder of arrays: the 64-bit hashes of the ids in ascending order, and in the same order the ids themselves (their
bytes on end, and where each ends), each item's cluster ID, and which row of the embed artifact's vectors is its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contract import EMBEDDING_DIM
from model.artifact import ArtifactMismatch

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

FOLDER: Final = "lookup"  # in the cluster artifact
NAMES: Final = ("hashes", "ends", "ids", "cluster_ids", "rows")
IDS: Final = "ids.npy"


def write_lookup(folder: Path, item_ids: pa.Array, cluster_ids: npt.NDArray[np.int32], rows: Ints) -> None:
    """Write the arrays into a new folder. item_ids: (N,) distinct; cluster_ids, rows: (N,), in their order."""
    hashes = hashes_of(item_ids)
    order = np.argsort(hashes, kind="stable")
    ids = item_ids.take(pa.array(order)).cast(pa.large_binary())
    encoded = b"".join(ids.to_pylist())
    arrays: dict[str, npt.NDArray[Any]] = {
        "hashes": hashes[order],
        "ends": np.concatenate([[0], np.cumsum(pc.binary_length(ids).to_numpy())]).astype(np.int64),
        "ids": np.frombuffer(encoded or b"\0", np.uint8),  # an empty file cannot be mapped
        "cluster_ids": np.asarray(cluster_ids, np.int32)[order],
        "rows": np.asarray(rows, np.int32)[order],
    }
    folder.mkdir()
    for name in NAMES:
        np.save(folder / f"{name}.npy", arrays[name])


def holds(folder: Path, item_id: str) -> bool:
    """Whether a folder of `write_lookup` has this item."""
    return bool(pc.any(pc.equal(_item_ids(folder), item_id)).as_py())


def write_without(folder: Path, out: Path, item_id: str) -> None:
    """Write the arrays of `folder` to `out` without an item, and without the vector that nobody else has.

    The rows that stay count on without a gap, in their order.
    """
    item_ids = _item_ids(folder)
    kept = pc.not_equal(item_ids, item_id)
    mask = kept.to_numpy(zero_copy_only=False)
    cluster_ids, rows = (np.load(folder / f"{name}.npy")[mask] for name in ("cluster_ids", "rows"))
    write_lookup(out, item_ids.filter(kept), cluster_ids, np.unique(rows, return_inverse=True)[1])


def _item_ids(folder: Path) -> pa.LargeStringArray:
    ends, ids = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ends", "ids"))
    return pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(ids))


def hashes_of(item_ids: pa.Array) -> Hashes:
    """A 64-bit hash of each id (SipHash with a fixed key): (N,), the same on every machine."""
    return np.asarray(pd.util.hash_array(item_ids.to_numpy(zero_copy_only=False), categorize=False), np.uint64)


class ReleasedItems:
    """The items of one space and codebook. Any thread may ask; processes of one machine share the memory."""

    def __init__(self, space_id: str, codebook_id: str, folder: Path, vectors: Path) -> None:
        """folder: of `write_lookup`, of this codebook's cluster IDs.  vectors: an .npy of (M, 256) float32.

        Raises ArtifactMismatch, OSError.
        """
        self.space_id, self.codebook_id = space_id, codebook_id
        hashes, ends, _, self._cluster_ids, self._rows = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in NAMES
        )
        self._vectors = np.load(vectors, mmap_mode="r")
        counts = {len(hashes), len(ends) - 1, len(self._cluster_ids), len(self._rows)}
        largest = int(self._rows.max(initial=-1))
        if len(counts) != 1 or self._vectors.shape[1:] != (EMBEDDING_DIM,) or largest >= len(self._vectors):
            raise ArtifactMismatch(f"{folder} does not fit {vectors}: build the cluster artifact again")
        self._hashes: Hashes = hashes
        self._ids = _item_ids(folder)

    def __len__(self) -> int:
        """How many items there are."""
        return len(self._hashes)

    def find(self, item_ids: Sequence[str]) -> Ints:
        """The place of each item: (n,), -1 where it is none of these."""
        asked = pa.array(item_ids, pa.large_string())
        wanted = hashes_of(asked)
        places = np.searchsorted(self._hashes, wanted).astype(np.int64)
        found = np.full(len(places), -1, np.int64)
        looked = np.arange(len(places))
        while len(looked):  # once, but for items of one hash
            at = places[looked]
            inside = at < len(self._hashes)
            looked, at = looked[inside], at[inside]
            alike = self._hashes[at] == wanted[looked]
            looked, at = looked[alike], at[alike]
            same = pc.equal(self._ids.take(pa.array(at)), asked.take(pa.array(looked))).to_numpy(zero_copy_only=False)
            found[looked[same]] = at[same]
            looked = looked[~same]
            places[looked] += 1
        return found

    def cluster_ids(self, places: Ints) -> npt.NDArray[np.int32]:
        """The cluster IDs of items that were found: (n,)."""
        return np.asarray(self._cluster_ids[places])

    def vectors(self, places: Ints) -> npt.NDArray[np.float32]:
        """The unit vectors of items that were found: (n, 256)."""
        return np.asarray(self._vectors[self._rows[places]], np.float32)
