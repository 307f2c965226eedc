"""Embed every usable image, each distinct one once: the embed stage."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
import torch

from model import artifact
from model.artifact import Manifest
from model.courier.data.images import Pixels
from model.courier.data.stored_images import stream_images
from model.courier.data.usable_items import reasons, usable_items
from model.courier.inference.onnx_export import ExportedEncoder
from model.courier.network.encoder import LoadedEncoder, embed_images, load_encoder
from model.courier.progress import watched
from model.errors import CourierError

log = structlog.get_logger()
Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

KIND = "embed"
VECTORS = "vectors.npy"
ITEMS = "items.parquet"
BATCH = 64  # images; more are no faster on a CPU
KEPT = 65_536  # vectors of an earlier artifact that are read at a time


# Images; fewer are through torch before the encoder is exported to ONNX, which takes some ten seconds. docs/LOG.md
FEW = 1000


def build(*, pretrain: Path, images: Path, out: Path) -> Manifest:
    """Write the vectors of all usable images and which item has which row.

    Images that an earlier artifact beside `out` holds in the same space keep their vectors; only the others are
    embedded: on a GPU by torch, on a CPU by ONNX Runtime where they are many.
    Raises ArtifactMissing or ArtifactMismatch for its inputs, CourierError if no image is usable.
    """
    encoder = load_encoder(pretrain, "cuda" if torch.cuda.is_available() else "cpu")
    artifact.read(images, kind="images")
    usable = _usable_items(images)
    image_ids = pc.unique(usable["image_id"].combine_chunks())
    image_ids = image_ids.take(pc.array_sort_indices(image_ids))
    inputs = artifact.digests({"pretrain": pretrain, "images/pictures": images})
    with artifact.write(out, kind=KIND, inputs=inputs, config={}) as draft:
        with _vector_file(draft.path / VECTORS, len(image_ids), encoder.module.width) as vectors:
            new = _keep(vectors, image_ids, out.parent, encoder.space_id)
            seconds = _embed(vectors, encoder, images, image_ids.take(pa.array(new)).to_pylist(), new)
        pq.write_table(_with_rows(usable, image_ids), draft.path / ITEMS)
        draft.facts |= {
            "space_id": encoder.space_id,
            "encoder": encoder.name,
            "vectors": len(image_ids),
            "items": usable.num_rows,
        }
        draft.notes |= {"embedded": len(new), "images_per_second": round(len(new) / seconds, 1)}
    log.info("images_embedded", **draft.facts, **draft.notes)
    return artifact.read(out, kind=KIND)


def _usable_items(images: Path) -> pa.Table:
    """item_id, image_id of the items with a usable image, sorted by item_id. Raises CourierError if there is none."""
    usable = usable_items(images, ["item_id", "image_id"])
    if not usable.num_rows:
        items = pq.read_metadata(images / ITEMS).num_rows
        raise CourierError(
            f"none of the {items} items in {images} has a usable image ({reasons(images)}): see reports/coverage.html"
        )
    return usable


@dataclass(frozen=True, slots=True)
class VectorFile:
    """A .npy file of float32 vectors, (N, width), that is written a part at a time and never mapped.

    The vectors of ten million images are 10 GB: those of a mapped file would count as this process's memory.
    """

    file: BinaryIO
    start: int  # of the vectors, behind the header
    width: int

    def put(self, rows: Rows, vectors: Vectors) -> None:
        """Write vectors (n, width) into these rows, (n,) in any order."""
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        for first, last in pairwise([0, *cuts.tolist(), len(rows)]):
            if first < last:
                self.file.seek(self.start + int(rows[first]) * 4 * self.width)
                self.file.write(np.ascontiguousarray(vectors[first:last], np.float32).data)


@contextmanager
def _vector_file(path: Path, rows: int, width: int) -> Iterator[VectorFile]:
    """A new file of so many vectors, all zeros."""
    with path.open("wb", buffering=0) as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, header | {"shape": (rows, width)})
        start = file.tell()
        file.truncate(start + 4 * rows * width)
        yield VectorFile(file, start, width)


def _keep(vectors: VectorFile, image_ids: pa.Array, folder: Path, space_id: str) -> Rows:
    """Fill in what the newest artifact of this space in `folder` holds; the rows that are left, ascending."""
    earlier = [(found.created_at, path) for path, found in _finished(folder) if found.facts["space_id"] == space_id]
    if not earlier:
        return np.arange(len(image_ids))
    _, path = max(earlier)
    items = pq.read_table(path / ITEMS, columns=["image_id", "row"])
    found = pc.index_in(image_ids, value_set=items["image_id"].combine_chunks())
    kept = found.is_valid().to_numpy(zero_copy_only=False)
    held_row = items["row"].combine_chunks().take(found.drop_null()).to_numpy()
    rows = np.flatnonzero(kept)
    for start in range(0, len(rows), KEPT):
        part = slice(start, start + KEPT)
        held = np.load(path / VECTORS, mmap_mode="r")  # anew each time, so that what was read is no longer mapped
        vectors.put(rows[part], held[held_row[part]])
        del held
    return np.flatnonzero(~kept)


def _finished(folder: Path) -> Iterator[tuple[Path, Manifest]]:
    """The embed artifacts in a folder; what is something else, or unfinished, is passed over."""
    for path in folder.iterdir():
        with suppress(artifact.ArtifactMissing, artifact.ArtifactMismatch):
            yield path, artifact.read(path, kind=KIND)


def _embed(vectors: VectorFile, encoder: LoadedEncoder, images: Path, image_ids: Sequence[str], rows: Rows) -> float:
    """Embed these images into these rows; the seconds it took, without those of the export."""
    if not image_ids:
        return 1.0
    embed_part = _runtime(encoder, len(image_ids))
    start = time.perf_counter()

    def parts() -> Iterator[Vectors]:
        for places, pixels in stream_images(images, image_ids, BATCH):
            part = embed_part(pixels)
            vectors.put(rows[places], part)
            yield part

    for _ in watched(parts(), "embed", len(image_ids)):
        pass
    return time.perf_counter() - start


def _runtime(encoder: LoadedEncoder, images: int) -> Callable[[Pixels], Vectors]:
    if images < FEW or torch.cuda.is_available():
        return partial(embed_images, encoder)
    return ExportedEncoder(encoder).embed


def _with_rows(usable: pa.Table, image_ids: pa.Array) -> pa.Table:
    return usable.append_column("row", pc.index_in(usable["image_id"], value_set=image_ids).cast(pa.int32()))
