"""How fast the images job is beside a bare loop over the same files: `python tests/bench/images.py [--files N]`.

The bare loop reads, decodes, resizes and encodes as the job does, in a pool of one thread a core, and does nothing
else: no hashes, no verification, no tables. The other decoders are measured where they are installed.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from jobs.config import ImagesConfig
from jobs.images import pipeline
from model.courier.data import images

CORES = os.cpu_count() or 1
CONFIG = ImagesConfig()
console = Console(stderr=True)


def draw(seed: int, side: int = 500) -> bytes:
    """A JPEG of about side x side: smooth patches of colour, an edge and grain, as a product photo has them."""
    rng = np.random.default_rng(seed)
    width, height = side + seed % 7, side - seed % 5
    patches = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    photo = np.asarray(patches).astype(np.int16) + rng.integers(-12, 13, (height, width, 1))
    photo[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    stream = BytesIO()
    Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=88)
    return stream.getvalue()


def furnish(raw: Path, files: int) -> list[Path]:
    """A raw folder of `files` items, each with its own JPEG; returns their paths."""
    (raw / "images").mkdir(parents=True, exist_ok=True)
    paths = [raw / "images" / f"{number:06d}.jpg" for number in range(files)]

    def write(number: int) -> None:
        if not paths[number].exists():
            paths[number].write_bytes(draw(number))

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(write, range(files)))
    columns = {
        "item_id": [f"i{number:06d}" for number in range(files)],
        "image_uri": [f"images/{path.name}" for path in paths],
        "category": [f"c{number % 20}" for number in range(files)],
    }
    pq.write_table(pa.table(columns), raw / "items.parquet")
    return paths


# --- one image, each way --------------------------------------------------------------------------------------------


def by_pillow(path: Path) -> bytes:
    """The bare loop's deed."""
    with Image.open(path) as image:
        return images.to_png(images.squash(image.convert("RGB"), CONFIG.size))


def by_simplejpeg(path: Path, simplejpeg: Any) -> bytes:
    """The same with simplejpeg's decoder."""
    return images.to_png(images.squash(Image.fromarray(simplejpeg.decode_jpeg(path.read_bytes())), CONFIG.size))


def by_opencv(path: Path, cv2: Any) -> bytes:
    """The same with OpenCV's decoder."""
    pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return images.to_png(images.squash(Image.fromarray(pixels), CONFIG.size))


OTHERS: dict[str, tuple[str, Callable[..., bytes]]] = {
    "simplejpeg": ("simplejpeg", by_simplejpeg),
    "opencv-python-headless": ("cv2", by_opencv),
}


# --- the race -------------------------------------------------------------------------------------------------------


def bare(paths: Iterable[Path], deed: Callable[[Path], bytes]) -> None:
    """Do it to every file, one thread a core."""
    with ThreadPoolExecutor(CORES) as pool:
        for _ in pool.map(deed, paths):
            pass


def job(raw: Path, folder: Path) -> dict[str, Any]:
    """One cold run of the whole job: from the raw table to the finished artifact; its facts."""
    new = Path(tempfile.mkdtemp(dir=folder))
    out = new / "images"
    manifest = pipeline.build(ingest=raw, raw=raw, raw_digest="bench", store=new / "store", out=out, config=CONFIG)
    return dict(manifest.facts)


def again(raw: Path, folder: Path, store: Path) -> None:
    """A run over a store that knows every file."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "images"
    pipeline.build(ingest=raw, raw=raw, raw_digest="bench", store=store, out=out, config=CONFIG)


def timed(files: int, deed: Callable[[], Any]) -> tuple[float, float]:
    """Images a second, and milliseconds an image of this process and its children on any core: tells when busy."""
    started, used = time.perf_counter(), cpu_seconds()
    deed()
    return files / (time.perf_counter() - started), (cpu_seconds() - used) / files * 1e3


def cpu_seconds() -> float:
    """What this process and its children that have ended were given so far."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def installed() -> dict[str, Callable[[Path], bytes]]:
    """The deeds of the other decoders that are here; the absent ones are named."""
    found = {}
    for package, (module, deed) in OTHERS.items():
        try:
            found[package] = partial(deed, **{module: import_module(module)})
        except ImportError:
            console.print(f"[bold red]{package} is not installed: not measured[/] (pip install {package})")
    return found


def main(
    files: Annotated[int, typer.Option(help="how many JPEGs")] = 10_000,
    rounds: Annotated[int, typer.Option(help="each way is measured so often, in turns; the median is told")] = 3,
    folder: Annotated[Path | None, typer.Option(help="keep the files here for the next time")] = None,
) -> None:
    """Measure, and print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        raw = (folder or Path(scratch)) / f"raw-{files}"
        paths = furnish(raw, files)
        store = Path(scratch) / "warm"
        again(raw, Path(scratch), store)
        ways: dict[str, Callable[[], Any]] = {
            "bare Pillow loop": partial(bare, paths, by_pillow),
            "the job": partial(job, raw, Path(scratch)),
            "the job, nothing new": partial(again, raw, Path(scratch), store),
            **{f"bare loop, {name}": partial(bare, paths, deed) for name, deed in installed().items()},
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                measured[name].append(timed(files, way))
    report(measured, files)


def report(measured: dict[str, list[tuple[float, float]]], files: int) -> None:
    """The table, on stdout: medians of the rounds."""
    medians = {name: [statistics.median(one) for one in zip(*rounds, strict=True)] for name, rounds in measured.items()}
    rate_of_bare, cpu_of_bare = medians["bare Pillow loop"]
    table = Table(
        "way", "images/s", "of the bare loop", "CPU ms an image", "of the bare loop's", "images/s of the rounds"
    )
    for name, (rate, cpu) in medians.items():
        rounds = " ".join(f"{one:.0f}" for one, _ in measured[name])
        table.add_row(
            name, f"{rate:.0f}", f"{rate / rate_of_bare:.2f}", f"{cpu:.2f}", f"{cpu / cpu_of_bare:.2f}", rounds
        )
    Console(width=120).print(table)
    load = os.getloadavg()
    print(f"{files} JPEGs of about 500 x 500, {CORES} cores, {platform.machine()}, load {load[0]:.1f} {load[1]:.1f}")


if __name__ == "__main__":
    typer.run(main)
