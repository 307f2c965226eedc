"""The processes that train together: this one alone, or those that torchrun started, one GPU each if there are any."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

# One decodes a catalogue, or runs a frozen backbone over it, while the others wait; torchrun ends all where one dies.
PATIENCE: Final = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process among those that train together."""

    rank: int
    count: int
    device: torch.device

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def collect(self, local: Tensor) -> list[Tensor]:
        """This tensor as each process holds it, in the order of rank, on the CPU; all of one shape."""
        if self.count == 1:
            return [local.cpu()]
        mine = local.to(self.device)  # NCCL knows no other memory
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(parts, mine)
        return [part.cpu() for part in parts]


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """This process among those torchrun started, or alone."""
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    if count == 1:
        yield ProcessGroup(0, 1, device)
        return
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE)
    try:
        yield ProcessGroup(rank, count, device)
    finally:
        dist.destroy_process_group()
