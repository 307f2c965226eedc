"""The pixels of an images artifact: read back from its shards, all, some, or a part at a time."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kornia_rs.io
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model import artifact
from model.courier.data.images import Pixels
from model.errors import CourierError

DECODED = 256  # images in memory at a time beside where they go


def from_png(data: bytes, size: int) -> Pixels:
    """The pixels (size, size, 3) of a PNG of `images.to_png`. Raises ValueError for damage and for another size."""
    try:
        # A quarter of Pillow's time at 96 pixels. docs/LOG.md
        return np.asarray(kornia_rs.io.decode_image_png_u8(data, (size, size), "rgb"), np.uint8)
    except Exception as error:  # it raises nothing narrower
        raise ValueError(str(error)) from None


def load_images(images: Path, image_ids: Sequence[str] | None = None) -> tuple[list[str], Pixels]:
    """The pixels in an images artifact: ids and (N, S, S, 3).

    Without image_ids every image, sorted by id; else those asked for, in that order, repeats included.
    Raises ArtifactMissing or ArtifactMismatch for the artifact, CourierError for an id it does not hold.
    """
    shards = sorted((images / "shards").glob("images-*.parquet"))
    size = image_size(images)
    ids = _held(shards) if image_ids is None else list(image_ids)
    pixels = np.empty((len(ids), size, size, 3), np.uint8)
    decode_images(images, ids, pixels)
    return ids, pixels


def image_size(images: Path) -> int:
    """The side in pixels of an images artifact's images. Raises ArtifactMissing or ArtifactMismatch."""
    return int(artifact.read(images, kind="images").config["size"])


def decode_images(images: Path, image_ids: Sequence[str], pixels: Pixels) -> None:
    """Put the images asked for into `pixels` (N, S, S, 3), which may be a file that is mapped; a shard at a time."""
    rows_of: dict[str, list[int]] = {}
    for row, image_id in enumerate(image_ids):
        rows_of.setdefault(image_id, []).append(row)
    distinct = list(rows_of)
    for places, part in stream_images(images, distinct, DECODED):
        for place, image in zip(places, part, strict=True):
            pixels[rows_of[distinct[place]]] = image


def stream_images(images: Path, image_ids: Sequence[str], batch: int) -> Iterator[tuple[list[int], Pixels]]:
    """The pixels of these distinct images, a part at a time, in the order of the shards: (n,) rows and (n, S, S, 3).

    A row is a place in image_ids; n is at most `batch`, and no more than two parts are in memory: the next is decoded
    meanwhile. Raises as load_images does, for an absent id at the end.
    """
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    with ThreadPoolExecutor(1) as reading:
        parts = _parts(images, row_of, batch)
        coming = reading.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = reading.submit(next, parts, None)
            yield part


def _parts(images: Path, row_of: Mapping[str, int], batch: int) -> Iterator[tuple[list[int], Pixels]]:
    size = image_size(images)
    held = np.zeros(len(row_of), np.bool_)
    for shard in sorted((images / "shards").glob("images-*.parquet")):
        for table in pq.ParquetFile(shard).iter_batches(batch, columns=["image_id", "image"]):
            wanted = [n for n, image_id in enumerate(table["image_id"].to_pylist()) if image_id in row_of]
            if wanted:
                table = table.take(pa.array(wanted, pa.int64()))
                ids, pngs = table["image_id"].to_pylist(), table["image"].to_pylist()
                rows = [row_of[image_id] for image_id in ids]
                held[rows] = True
                pixels = [_stored(shard, image_id, png, size) for image_id, png in zip(ids, pngs, strict=True)]
                yield rows, np.stack(pixels)
    if not held.all():
        first = next(image_id for image_id, row in row_of.items() if not held[row])
        raise CourierError(f"{images} holds no image {first}: rebuild the stage that asks for it")


def _stored(shard: Path, image_id: str, png: bytes, size: int) -> Pixels:
    try:
        return from_png(png, size)
    except ValueError as error:
        raise CourierError(f"{shard}: image {image_id}: {error}; build the stage images again") from None


def _held(shards: Sequence[Path]) -> list[str]:
    ids: list[str] = []
    for shard in shards:
        ids += pq.read_table(shard, columns=["image_id"])["image_id"].to_pylist()
    return sorted(ids)
