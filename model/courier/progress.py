"""How long work over images is watched: a progress bar with its speed, and a loss curve as it grows."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, TypeVar

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


class TrainingLog:
    """The loss curve: one line for every ten steps, each the mean over them; drawn on `bar` meanwhile.

    Beside the losses a line holds figures of its last step, and how fast the ten were: distinct images a second, and
    the share of the time that the model waited for the loader.
    """

    def __init__(self, steps: int, terms: Sequence[str], *, silent: bool) -> None:
        self.lines: list[dict[str, float]] = []
        self.images = 0
        self.waited = 0.0
        self.steps = steps
        self.terms = tuple(terms)
        self.bar = images_bar("loss {task.fields[loss]:.3f}", silent=silent)
        self._task = self.bar.add_task("pretrain", total=steps, loss=float("nan"), speed=0.0)
        self._step = 0
        self._earlier = 0.0
        self._started = time.perf_counter()
        self._begin_line()

    @property
    def seconds(self) -> float:
        """Since the start; of a run that was stopped, those before its checkpoint and those since it goes on."""
        return self._earlier + time.perf_counter() - self._started

    def ends_line(self, step: int) -> bool:
        """Whether a line is written after so many steps."""
        return step % CURVE_EVERY == 0 or step == self.steps

    def add(
        self,
        losses: Tensor,
        weights: Tensor,
        images: int,
        waited: float = 0.0,
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """One step more. losses, weights: (terms,); images: how many were encoded; waited: seconds, for the loader."""
        self._step += 1
        self._waiting.append(losses)
        self._line_images += images
        self._line_waited += waited
        self.images += images
        self.waited += waited
        if self.ends_line(self._step):
            self._write(torch.stack(self._waiting).mean(0), weights, figures or {})
        self.bar.update(self._task, completed=self._step)

    def state(self) -> tuple[dict[str, Any], Tensor]:
        """What `restore` takes: numbers, and the losses (steps, terms) of the line that has begun."""
        facts = {"step": self._step, "lines": self.lines, "images": self.images, "seconds": self.seconds}
        waiting = torch.stack(self._waiting) if self._waiting else torch.empty(0, len(self.terms))
        return facts | {"waited": self.waited}, waiting

    def restore(self, facts: Mapping[str, Any], waiting: Tensor) -> None:
        """Go on from what `state` gave; the speed of the line that has begun counts from here."""
        self._step, self.images, self.waited = facts["step"], facts["images"], facts["waited"]
        self.lines = list(facts["lines"])
        self._earlier = facts["seconds"]
        self._started = time.perf_counter()
        self._begin_line()
        self._waiting += waiting

    def _write(self, mean: Tensor, weights: Tensor, figures: Mapping[str, float]) -> None:
        seconds = time.perf_counter() - self._line_started
        speed, total = self._line_images / seconds, float((weights * mean).sum())
        line = {"step": self._step, "loss": total, **dict(zip(self.terms, mean.tolist(), strict=True)), **figures}
        line |= {"images_per_second": round(speed, 1), "loader_stall": round(self._line_waited / seconds, 4)}
        self.lines.append(line)
        self.bar.update(self._task, loss=total, speed=speed)
        self._begin_line()

    def _begin_line(self) -> None:
        self._waiting: list[Tensor] = []
        self._line_started, self._line_images, self._line_waited = time.perf_counter(), 0, 0.0
