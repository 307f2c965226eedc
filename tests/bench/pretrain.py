"""What a training step costs beside its bare backbone: `python tests/bench/pretrain.py [--backbone lite0 --size 96]`.

A step decodes nothing, but reads pixels from a mapped file ahead of the model, encodes each distinct image once,
reconstructs, computes the three losses, and moves the weights. The bare loop is the backbone's forward and backward
over the very same normalised images, already in memory, and nothing else. Both take turns, batch by batch.
"""

import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.table import Table

from model.courier.config import CourierConfig
from model.courier.data.batches import Batch, PageViews, rows_of_step, take_batch
from model.courier.data.loader import Pixels, loaded
from model.courier.training.array_cache import cached_array
from model.courier.training.methods import build_objective
from model.courier.training.process_group import ProcessGroup
from model.courier.training.trainer import Trainer
from model.space import Preprocessing

ALONE = ProcessGroup(0, 1, torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))


def draw_page_views(images: int, rows: int, seed: int = 0) -> PageViews:
    """Pages of five and histories of none to five clicks, of so many images."""
    rng = np.random.default_rng(seed)
    page = rng.integers(0, images, (rows, 5)).astype(np.int32)
    length = rng.integers(0, 6, rows)
    history = np.where(np.arange(5) < length[:, None], rng.integers(0, images, (rows, 5)), -1).astype(np.int32)
    ids = tuple(f"p{number:07d}" for number in range(images))
    return PageViews(ids, np.arange(images) % 20, page, rng.random((rows, 5)) < 0.2, history)


def draw_pixels(folder: Path, images: int, size: int) -> npt.NDArray[np.uint8]:
    """Noise, (images, size, size, 3), in a file that is mapped, as the pretrain stage keeps its images."""

    def fill(pixels: npt.NDArray[np.uint8]) -> None:
        rng = np.random.default_rng(0)
        for start in range(0, images, 256):
            part = pixels[start : start + 256]
            part[:] = rng.integers(0, 256, part.shape, np.uint8)

    return cached_array(folder / f"pixels-{images}-{size}.npy", (images, size, size, 3), np.uint8, fill)


@dataclass(frozen=True)
class Round:
    """One batch: its distinct images, seconds and CPU seconds of both ways, and of the step's seconds the wait."""

    images: int
    bare: float
    bare_cpu: float
    step: float
    step_cpu: float
    waited: float


class Race:
    """The step and the bare loop, in turns over one stream of batches."""

    def __init__(self, config: CourierConfig, page_views: PageViews, source: Pixels) -> None:
        torch.manual_seed(config.seed)
        self.config, self.page_views, self.source = config, page_views, source
        self.trainer = Trainer(build_objective(config, page_views).to(ALONE.device).train(), config, ALONE)
        self.backbone = build_objective(config, page_views).encoder.backbone.to(ALONE.device).train()

    def batch_of(self, step: int) -> Batch:
        """The rows of a step."""
        return take_batch(
            self.page_views, rows_of_step(len(self.page_views), self.config.batch_rows, step, self.config.seed)
        )

    def bare(self, images: torch.Tensor) -> None:
        """Forward and backward of the backbone alone."""
        self.backbone.stages(images)[-1].float().mean().backward()
        for parameter in self.backbone.parameters():
            parameter.grad = None

    def run(self, rounds: int, *, bare: bool) -> list[Round]:
        """So many rounds; bare: with the bare loop."""
        found = []
        with loaded(range(rounds + 1), self.batch_of, self.source, ALONE.device) as parts:
            for number, part in enumerate(parts):
                ways = {"step": partial(self.trainer.take_step, part, self.source)}
                if bare:
                    ways["bare"] = partial(self.bare, self.source.prepare(part.raw))
                order = sorted(ways, reverse=number % 2 == 0)  # whoever comes second finds the memory warm
                took = {"bare": (0.0, 0.0)} | {name: timed(ways[name]) for name in order}
                step, step_cpu = took["step"]
                found.append(Round(part.images, *took["bare"], step + part.waited, step_cpu, part.waited))
        return found[1:]  # the first one warms up


def timed(deed: Callable[[], None]) -> tuple[float, float]:
    """Seconds, with whatever an accelerator still has to do, and seconds of CPU: on a busy machine they tell more."""
    started, used = time.perf_counter(), time.process_time()
    deed()
    if ALONE.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - used


def peak_memory() -> float:
    """The most that this process, or its GPU, has held so far, in GiB."""
    if ALONE.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def main(
    backbone: Annotated[str, typer.Option(help="lite0 | small | swin_t")] = "lite0",
    size: Annotated[int, typer.Option(help="pixels")] = 96,
    rows: Annotated[int, typer.Option(help="page views a step")] = 16,
    images: Annotated[int, typer.Option(help="in the catalogue")] = 2000,
    rounds: Annotated[int, typer.Option(help="steps of each way, in turns; medians are told")] = 5,
    chunk: Annotated[int, typer.Option(help="gradient caching: images encoded at a time; 0: all at once")] = 0,
    recompute: Annotated[bool, typer.Option(help="activation checkpointing")] = False,
    alone: Annotated[bool, typer.Option("--step-alone", help="no bare loop: for the step's own peak memory")] = False,
) -> None:
    """Measure, and print the table."""
    config = CourierConfig(
        backbone=backbone, backbone_weights="random", image_size=size, trainable="all", batch_rows=rows, steps=10_000
    )
    config = replace(config, chunk_images=chunk, recompute_activations=recompute)
    page_views = draw_page_views(images, max(rows * 4, 2000))
    with tempfile.TemporaryDirectory() as folder:
        source = Pixels(draw_pixels(Path(folder), images, size), Preprocessing(size=size))
        found = Race(config, page_views, source).run(rounds, bare=not alone)
    report(found, config)


def report(found: list[Round], config: CourierConfig) -> None:
    """The table, on stdout."""
    columns = ("distinct images/s", "of the bare", "CPU ms an image", "of the bare", "loader stall")
    table = Table("way", *columns, "images/s of the rounds")
    steps = [one.images / one.step for one in found]
    stall = sum(one.waited for one in found) / sum(one.step for one in found)
    ratio = cpu_ratio = ""
    if found[0].bare:
        bare = [one.images / one.bare for one in found]
        cpu = f"{statistics.median(one.bare_cpu / one.images for one in found) * 1e3:.2f}"
        table.add_row("bare backbone", f"{statistics.median(bare):.1f}", "1", cpu, "1", "", row_of(bare))
        ratio = f"{statistics.median(one.bare / one.step for one in found):.3f}"
        cpu_ratio = f"{statistics.median(one.step_cpu / one.bare_cpu for one in found):.3f}"
    cpu = f"{statistics.median(one.step_cpu / one.images for one in found) * 1e3:.2f}"
    rate = f"{statistics.median(steps):.1f}"
    table.add_row("training step", rate, ratio, cpu, cpu_ratio, f"{stall:.2%}", row_of(steps))
    Console(width=120).print(table)
    caching = f"in chunks of {config.chunk_images}" if config.chunk_images else "all at once"
    caching += ", activations recomputed" if config.recompute_activations else ""
    print(
        f"{config.backbone} at {config.image_size} px, {config.batch_rows} rows and about "
        f"{round(statistics.mean(one.images for one in found))} distinct images a step, {caching}; "
        f"peak memory {peak_memory():.2f} GiB; {ALONE.device}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, load {os.getloadavg()[0]:.1f}"
    )


def row_of(rates: list[float]) -> str:
    """The rounds one by one."""
    return " ".join(f"{rate:.1f}" for rate in rates)


if __name__ == "__main__":
    typer.run(main)
