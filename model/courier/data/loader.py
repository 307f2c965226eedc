"""What a step reads, fetched ahead of the model by a thread: its batch, and pixels or activations of its images."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.courier.data.batches import Batch
from model.courier.data.normalise import normalise_tensor
from model.space import Preprocessing

Numbers = npt.NDArray[np.int64]

AHEAD = 2  # steps; one would do if all took the same time
COPIED = 256  # rows copied between two moments at which another thread may run


@dataclass(frozen=True, slots=True)
class BatchTensors:
    """A Batch as tensors on a device; see Batch."""

    images: Tensor
    page: Tensor
    shown: Tensor
    clicked: Tensor
    history: Tensor
    history_mask: Tensor
    page_image: Tensor
    history_image: Tensor
    page_category: Tensor
    history_category: Tensor

    @staticmethod
    def of(batch: Batch, device: torch.device) -> "BatchTensors":
        """The batch's numbers; the images' pixels or features come apart."""
        names = BatchTensors.__slots__
        return BatchTensors(**{name: torch.from_numpy(getattr(batch, name)).to(device) for name in names})


class Source(Protocol):
    """Where the input of a step's distinct images comes from."""

    def fetch(self, images: Numbers, step: int) -> Tensor:
        """On the loader's thread: what lies in memory or on disk for these images, (U, ...) on the CPU."""

    def prepare(self, raw: Tensor) -> Tensor:
        """On the device, for any part of what `fetch` gave: the input of Objective.encode."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """Images as they are, (N, S, S, 3) uint8 in memory or mapped from disk; normalised on the device."""

    pixels: npt.NDArray[np.uint8]
    preprocessing: Preprocessing

    def fetch(self, images: Numbers, step: int) -> Tensor:  # noqa: ARG002
        """See Source."""
        return torch.from_numpy(rows(self.pixels, images))

    def prepare(self, raw: Tensor) -> Tensor:
        """See Source."""
        return normalise_tensor(raw, self.preprocessing)


@dataclass(frozen=True, slots=True)
class Activations:
    """What the frozen stages make of each image, (N, H, W, C) float32 mapped from disk."""

    maps: npt.NDArray[np.float32]

    def fetch(self, images: Numbers, step: int) -> Tensor:  # noqa: ARG002
        """See Source."""
        return torch.from_numpy(rows(self.maps, images))

    def prepare(self, raw: Tensor) -> Tensor:
        """See Source."""
        return raw.permute(0, 3, 1, 2)  # a view: the memory already lies channels last


@dataclass(frozen=True, slots=True)
class Features:
    """Standardised features of every image, (N, F) on the device: small enough to stay there."""

    standard: Tensor

    def fetch(self, images: Numbers, step: int) -> Tensor:  # noqa: ARG002
        """See Source; here the images' numbers."""
        return torch.from_numpy(images)

    def prepare(self, raw: Tensor) -> Tensor:
        """See Source."""
        return self.standard[raw]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A step's input on the device, its number of distinct images, and the seconds that the model waited for it."""

    raw: Tensor
    batch: BatchTensors
    images: int
    waited: float


@contextmanager
def loaded(
    steps: Iterable[int], batch_of: Callable[[int], Batch], source: Source, device: torch.device
) -> Iterator[Iterator[Loaded]]:
    """The input of each of these steps in turn, fetched while the model is at work on the ones before."""

    def fetch(step: int) -> tuple[Batch, Tensor]:
        batch = batch_of(step)
        raw = source.fetch(batch.images, step)
        return batch, raw.pin_memory() if device.type == "cuda" else raw

    with ThreadPoolExecutor(1, "loader") as pool, closing(_ahead(pool, fetch, steps, device)) as parts:
        yield parts


def _ahead(
    pool: ThreadPoolExecutor, fetch: Callable[[int], tuple[Batch, Tensor]], steps: Iterable[int], device: torch.device
) -> Generator[Loaded]:
    waiting: deque[Future[tuple[Batch, Tensor]]] = deque()
    try:
        for step in steps:
            waiting.append(pool.submit(fetch, step))
            if len(waiting) > AHEAD:
                yield _take(waiting.popleft(), device)
        while waiting:
            yield _take(waiting.popleft(), device)
    finally:
        for future in waiting:
            future.cancel()


def _take(future: Future[tuple[Batch, Tensor]], device: torch.device) -> Loaded:
    start = time.perf_counter()
    batch, raw = future.result()
    waited = time.perf_counter() - start
    return Loaded(raw.to(device, non_blocking=True), BatchTensors.of(batch, device), len(batch.images), waited)


def rows(table: npt.NDArray[Any], numbers: Numbers) -> npt.NDArray[Any]:
    """table[numbers], read in the order of the file when they ascend; `take`, unlike indexing, lets others run."""
    found = np.empty((len(numbers), *table.shape[1:]), table.dtype)
    for start in range(0, len(numbers), COPIED):
        part = slice(start, start + COPIED)
        np.take(table, numbers[part], axis=0, out=found[part], mode="clip")  # "raise" would copy `out` once more
    return found
