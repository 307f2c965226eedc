"""Embed every usable image, each distinct one once: the embed stage."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
import torch
import typer

from model import artifact
from model.artifact import Manifest
from model.courier.encoder import LoadedEncoder, embed_images, load_encoder
from model.courier.images import load_images
from model.courier.progress import watched

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

KIND = "embed"
VECTORS = "vectors.npy"
ITEMS = "items.parquet"
CHUNK = 256  # images between two movements of the progress bar


@dataclass(frozen=True, slots=True)
class Embedded:
    """Unit vectors (N, 256), one for each of the image ids, and how fast they came."""

    image_ids: list[str]
    vectors: npt.NDArray[np.float32]
    images_per_second: float


def build(*, pretrain: Path, images: Path, out: Path) -> Manifest:
    """Write the vectors of all usable images and which item has which row.

    Raises ArtifactMissing or ArtifactMismatch for its inputs, ValueError if no image is usable.
    """
    encoder = load_encoder(pretrain, "cuda" if torch.cuda.is_available() else "cpu")
    artifact.read(images, kind="images")
    usable = _usable_items(images)
    embedded = _embed(encoder, images, sorted(set(usable["image_id"].to_pylist())))
    inputs = {"pretrain": artifact.digest(pretrain), "images": artifact.digest(images)}
    with artifact.write(out, kind=KIND, inputs=inputs, config={}) as draft:
        np.save(draft.path / VECTORS, embedded.vectors)
        pq.write_table(_with_rows(usable, embedded.image_ids), draft.path / ITEMS)
        draft.facts |= {
            "space_id": encoder.space_id,
            "encoder": encoder.name,
            "vectors": len(embedded.vectors),
            "items": usable.num_rows,
            "images_per_second": round(embedded.images_per_second, 1),
        }
    log.info("images_embedded", **draft.facts)
    return artifact.read(out, kind=KIND)


def _usable_items(images: Path) -> pa.Table:
    """item_id, image_id of the items with a usable image, sorted by item_id."""
    path = images / ITEMS
    table = pq.read_table(path, columns=["item_id", "image_id", "status"], filters=[("status", "==", "ok")])
    if table.num_rows == 0:
        raise ValueError(f"{path} lists no usable image: see its reasons and run the images stage again")
    return table.select(["item_id", "image_id"]).sort_by("item_id")


def _embed(encoder: LoadedEncoder, images: Path, image_ids: list[str]) -> Embedded:
    _, pixels = load_images(images, image_ids)
    start = time.perf_counter()
    chunks = (embed_images(encoder, pixels[first : first + CHUNK]) for first in range(0, len(pixels), CHUNK))
    vectors = np.concatenate(list(watched(chunks, "embed", len(pixels))))
    return Embedded(image_ids, vectors, len(vectors) / (time.perf_counter() - start))


def _with_rows(usable: pa.Table, image_ids: list[str]) -> pa.Table:
    row = {image: index for index, image in enumerate(image_ids)}
    rows = pa.array([row[image] for image in usable["image_id"].to_pylist()], pa.int32())
    return usable.append_column("row", rows)


@app.command()
def embed(
    pretrain: Annotated[Path, typer.Option(help="the pretrain artifact")],
    images: Annotated[Path, typer.Option(help="the images artifact")],
    out: Annotated[Path, typer.Option(help="where the embed artifact goes")],
) -> None:
    """Embed every usable image."""
    print(json.dumps(dict(build(pretrain=pretrain, images=images, out=out).facts), indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    app(args=argv)


if __name__ == "__main__":
    main()
