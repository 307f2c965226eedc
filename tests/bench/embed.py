"""How fast a catalogue is embedded beside a bare ONNX Runtime loop: `python tests/bench/embed.py [--images N]`.

The bare loop runs the same graph over tensors that were decoded before it began, in batches of the same size; embedding
reads the shards, decodes, keeps what is known and writes the artifact. Torch over the same tensors stands beside them.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from model import artifact
from model.courier.config import CourierConfig
from model.courier.data.images import squash, to_png
from model.courier.data.stored_images import load_images
from model.courier.inference import embed, onnx_export
from model.courier.inference.onnx_export import ExportedEncoder
from model.courier.network.backbones import warm_start
from model.courier.network.encoder import build_encoder, embed_images, load_encoder, save_encoder
from model.space import Preprocessing

CONFIG = CourierConfig()
SHARDS = 8


def furnish(folder: Path, count: int) -> tuple[Path, Path]:
    """A pretrain and an images artifact: ImageNet's Lite0 with a random head, and so many generated pictures."""
    torch.manual_seed(0)
    encoder = build_encoder(CONFIG)
    warm_start(encoder.backbone, "imagenet")
    with artifact.write(folder / "pretrain", kind="pretrain", inputs={}, config=asdict(CONFIG)) as draft:
        draft.facts |= save_encoder(encoder, draft.path, Preprocessing(size=CONFIG.image_size)) | {"encoder": "bench"}
    rng = np.random.default_rng(0)
    ids = [f"{number:08d}" for number in range(count)]
    with artifact.write(folder / "images", kind="images", inputs={}, config={"size": CONFIG.image_size}) as draft:
        (draft.path / "shards").mkdir()
        for shard in range(SHARDS):
            held = ids[shard::SHARDS]
            pngs = [picture(rng) for _ in held]
            table = pa.table({"image_id": held, "image": pngs})
            pq.write_table(table, draft.path / "shards" / f"images-{shard:05d}-of-{SHARDS:05d}.parquet")
        items = {"item_id": ids, "image_id": ids, "category": ["c"] * count, "status": ["ok"] * count}
        pq.write_table(pa.table(items), draft.path / "items.parquet")
    return folder / "pretrain", folder / "images"


def picture(rng: np.random.Generator) -> bytes:
    """The PNG of patches of colour with grain."""
    patches = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
    pixels = np.asarray(squash(patches, CONFIG.image_size)).astype(np.int16)
    grain = rng.integers(-12, 13, (CONFIG.image_size, CONFIG.image_size, 1))
    return to_png(Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)))


def bare(run: Callable[[Any], Any], pixels: Any) -> None:
    """Every tensor once."""
    for start in range(0, len(pixels), embed.BATCH):
        run(pixels[start : start + embed.BATCH])


def main(
    images: Annotated[int, typer.Option(help="how many pictures")] = 4000,
    rounds: Annotated[int, typer.Option(help="each way is measured so often, in turns; the median is told")] = 3,
) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pretrain, artifact_of_images = furnish(folder, images)
        _, pixels = load_images(artifact_of_images)
        encoder = load_encoder(pretrain)
        started = time.perf_counter()
        graph = ExportedEncoder(encoder)
        export_seconds = time.perf_counter() - started
        few = pixels[: images // 4]
        measured: dict[str, list[float]] = {}

        def timed(name: str, count: int, deed: Callable[[], Any]) -> None:
            begun = time.perf_counter()
            deed()
            measured.setdefault(name, []).append(count / (time.perf_counter() - begun))

        for number in range(rounds):
            out = folder / f"embed-{number}" / "1"
            timed("bare ONNX Runtime", images, lambda: bare(graph.embed, pixels))
            timed("bare torch", len(few), lambda: bare(lambda part: embed_images(encoder, part), few))
            facts = embed.build(pretrain=pretrain, images=artifact_of_images, out=out).facts
            measured.setdefault("embed, its loop", []).append(facts["images_per_second"])
            again = out.with_name("2")
            timed(
                "embed, nothing new",
                images,
                lambda to=again: embed.build(  # type: ignore[misc]
                    pretrain=pretrain, images=artifact_of_images, out=to
                ),
            )
    report(measured)
    print(
        f"{images} pictures, {CONFIG.backbone} at {CONFIG.image_size} px, export {export_seconds:.1f} s, "
        f"cosine at least {onnx_export.LEAST_COSINE}, {os.cpu_count()} cores, {platform.machine()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def report(measured: dict[str, list[float]]) -> None:
    """The table, on stdout: medians of the rounds."""
    floor = statistics.median(measured["bare ONNX Runtime"])
    table = Table("way", "images/s", "of the bare loop", "images/s of the rounds")
    for name, rates in measured.items():
        rate = statistics.median(rates)
        table.add_row(name, f"{rate:.0f}", f"{rate / floor:.2f}", " ".join(f"{one:.0f}" for one in rates))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
