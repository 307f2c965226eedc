"""How long work over images is watched: a progress bar with its speed, and a loss curve as it grows."""

import sys
import time
from collections.abc import Iterator, Sequence, Sized
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

Part = TypeVar("Part", bound=Sized)

CURVE_EVERY = 10  # steps in one line of the curve


def images_bar(figure: str = "", *, silent: bool = False) -> Progress:
    """A bar on stderr whose tasks carry the field `speed` (images/s), and what else the format `figure` asks for."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    speed = TextColumn("{task.fields[speed]:.0f} images/s")
    return Progress(*columns, TextColumn(figure), speed, console=Console(file=sys.stderr), disable=silent)


def watched(parts: Iterator[Part], what: str, images: int, *, silent: bool = False) -> Iterator[Part]:
    """The same parts, one entry an image, under a bar of `images` in all."""
    with images_bar(silent=silent) as bar:
        task = bar.add_task(what, total=images, speed=0.0)
        start, done = time.perf_counter(), 0
        for part in parts:
            yield part
            done += len(part)
            bar.update(task, completed=done, speed=done / (time.perf_counter() - start))


class Curve:
    """The loss curve: one line for every ten steps, each the mean over them; drawn on `bar` meanwhile."""

    def __init__(self, steps: int, terms: Sequence[str], *, silent: bool) -> None:
        self.lines: list[dict[str, float]] = []
        self.images = 0
        self.steps = steps
        self.terms = tuple(terms)
        self.started = time.perf_counter()
        self.bar = images_bar("loss {task.fields[loss]:.3f}", silent=silent)
        self._task = self.bar.add_task("pretrain", total=steps, loss=float("nan"), speed=0.0)
        self._step = 0
        self._begin_line()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started

    def add(self, losses: Tensor, weights: Tensor, images: int) -> None:
        """One step more. losses, weights: (terms,); images: how many were encoded."""
        self._step += 1
        self._waiting.append(losses)
        self._line_images += images
        self.images += images
        if self._step % CURVE_EVERY == 0 or self._step == self.steps:
            self._write(torch.stack(self._waiting).mean(0), weights)
        self.bar.update(self._task, advance=1)

    def _write(self, mean: Tensor, weights: Tensor) -> None:
        speed = self._line_images / (time.perf_counter() - self._line_started)
        total = float((weights * mean).sum())
        terms = dict(zip(self.terms, mean.tolist(), strict=True))
        self.lines.append({"step": self._step, "loss": total, **terms, "images_per_second": round(speed, 1)})
        self.bar.update(self._task, loss=total, speed=speed)
        self._begin_line()

    def _begin_line(self) -> None:
        self._waiting: list[Tensor] = []
        self._line_started, self._line_images = time.perf_counter(), 0
