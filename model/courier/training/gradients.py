"""The gradients of one step: of the whole batch at once, or chunk by chunk where the batch is larger than memory."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.courier.data.loader import BatchTensors
from model.courier.losses.objective import Objective
from model.courier.training.process_group import ProcessGroup
from model.errors import CourierError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Prepare = Callable[[Tensor], Tensor]


class Gradients:
    """Leaves a step's gradients in the objective's parameters, averaged over the processes.

    chunk_images: encode at most so many images at a time; 0: all at once.
    precision: of the computation, `auto`, or one of PRECISIONS; parameters and losses are float32 always. fp16 scales
    the losses (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740, section 3.2) by `scaler`.
    """

    def __init__(self, objective: Objective, group: ProcessGroup, *, chunk_images: int, precision: str) -> None:
        self.objective = objective
        self.group = group
        self.chunk_images = chunk_images
        self.weights = torch.tensor(objective.weights, device=group.device)
        self.dtype = _dtype(precision, group.device)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.dtype is torch.float16)
        overlapped = group.count > 1 and not chunk_images and bool(objective.terms)
        # Buffers are of the data or of the global batch, the same on every process; sending them is megabytes a step.
        self._model: nn.Module = (
            DistributedDataParallel(objective, broadcast_buffers=False) if overlapped else objective
        )

    def of(self, raw: Tensor, prepare: Prepare, batch: BatchTensors) -> Tensor:
        """raw: (U, ...), made the objective's input by `prepare`, a chunk at a time -> losses (terms,), detached."""
        if not self.chunk_images:
            with self._half():
                losses: Tensor = self._model(prepare(raw), batch)
            self.scaler.scale((self.weights * losses).sum()).backward()  # type: ignore[no-untyped-call]
            return losses.detach()
        losses = self._cached(torch.split(raw, self.chunk_images), prepare, batch)
        if self.group.count > 1:
            average_gradients(list(self.objective.parameters()))
        return losses

    def _cached(self, chunks: Sequence[Tensor], prepare: Prepare, batch: BatchTensors) -> Tensor:
        """Gao et al. 2021, https://arxiv.org/abs/2101.06983, section 3: the memory of one chunk, one forward more.

        Every chunk is encoded without a graph; the losses' gradient stops at its vectors; then it is encoded again,
        with the same random numbers, and the gradient goes on.
        """
        device = self.group.device
        drawn, vectors = [], []
        with torch.no_grad(), self._half():
            for chunk in chunks:
                drawn.append(random_state(device))
                vectors.append(self.objective.encode(prepare(chunk)))
        leaf = torch.cat(vectors).requires_grad_()
        self.objective.seen = leaf.detach()
        with self._half():
            losses = self.objective.losses(leaf, batch)
        self.scaler.scale((self.weights * losses).sum()).backward()  # type: ignore[no-untyped-call]
        gradient = leaf.grad
        assert gradient is not None  # every loss reads the vectors
        after = random_state(device)
        for chunk, state, part in zip(chunks, drawn, torch.split(gradient, self.chunk_images), strict=True):
            set_random_state(state, device)
            with self._half():
                again = self.objective.encode(prepare(chunk))
            again.backward(part)  # type: ignore[no-untyped-call]
        set_random_state(after, device)
        return losses.detach()

    def _half(self) -> AbstractContextManager[object]:
        return torch.autocast(self.group.device.type, self.dtype, enabled=self.dtype is not torch.float32)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Make every process's gradients their mean, in one message; what DistributedDataParallel does bit by bit."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    for gradient, part in zip(gradients, torch.split(together, [one.numel() for one in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def random_state(device: torch.device) -> Tensor:
    """The global generators that a step draws from, as bytes: the CPU's and, on a GPU, that GPU's."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Go on as from `state`, which `random_state` gave on such a device."""
    cpu = len(torch.get_rng_state())
    torch.set_rng_state(state[:cpu])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[cpu:], device)


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":  # a CPU without matrix units for it is slower at half precision: docs/LOG.md
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if precision not in PRECISIONS:
        raise CourierError(f"unknown precision {precision!r}: choose one of auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]
