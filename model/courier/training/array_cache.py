"""What is computed once and lies on disk: decoded images, and what the frozen parts of a backbone make of them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap
from torch import Tensor, nn

from model import artifact, strict_json
from model.courier.training.process_group import ProcessGroup
from model.errors import CourierError

Array = npt.NDArray[Any]
Fill = Callable[[Array], None]


@dataclass(frozen=True, slots=True)
class ArrayCache:
    """Arrays in a folder, each made by one process of a run and mapped by all, and by every run of the same folder.

    key: hex digest of what the arrays depend on besides their names.
    """

    folder: Path
    key: str
    group: ProcessGroup

    def of(self, **more: Any) -> "ArrayCache":
        """The same folder, for arrays that depend on this too: whatever JSON can hold."""
        return replace(self, key=digest(key=self.key, **more))

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, fill: Fill) -> Array:
        """The array of that name, made by `fill` where it is not there yet. All processes of the group must ask."""
        path = self.folder / f"{name}-{self.key[:16]}.npy"
        if self.group.rank == 0:
            cached_array(path, shape, dtype, fill)
        self.group.wait()
        return cached_array(path, shape, dtype, fill)


def cached_array(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, fill: Fill) -> Array:
    """The array at `path`, mapped for reading; made by `fill` where it is not there yet. Never seen half made.

    Raises CourierError where it is of another shape or kind: made by another version of this program.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}{artifact.PARTIAL}")
        made = open_memmap(aside, "w+", dtype, shape)
        fill(made)
        made.flush()
        del made
        aside.replace(path)
    mapped: Array = np.load(path, mmap_mode="c")  # torch warns of memory that it may not write to
    if mapped.shape != shape or mapped.dtype != np.dtype(dtype):
        raise CourierError(f"{path} is {mapped.dtype} {mapped.shape}, not {np.dtype(dtype)} {shape}: remove the file")
    return mapped


def digest(**said: Any) -> str:
    """The hex digest of what JSON can hold."""
    return hashlib.sha256(strict_json.dumps(said, sort_keys=True).encode()).hexdigest()


def digest_of_weights(module: nn.Module) -> str:
    """The hex digest of a module's parameters and buffers."""
    return digest(**{name: digest_of_tensor(tensor) for name, tensor in module.state_dict().items()})


def digest_of_tensor(tensor: Tensor) -> str:
    """The hex digest of a tensor's kind, shape and values."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
