"""What pre-training minimises, whatever the method: vectors of a batch's distinct images, and the losses of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.courier.data.loader import BatchTensors
from model.courier.network.encoder import Encoder


class Objective(nn.Module, ABC):
    """The losses of a step, one for each of `terms`; training minimises their sum weighted by `weights`.

    It is cut in two, `encode` and `losses`, so that the encoding can run chunk by chunk.
    crops: how many augmented crops of each distinct image a step encodes; 0: the image itself, as it is.
    Without terms there is nothing to minimise, and no step is made.
    """

    terms: tuple[str, ...] = ()
    crops: int = 0

    def __init__(self, encoder: Encoder, *, weights: Sequence[float], from_features: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.weights = tuple(weights)
        self.seen = torch.empty(0)  # the last step's vectors
        self._encode: Callable[[Tensor], Tensor] = encoder.unit if from_features else encoder.above

    def encode(self, inputs: Tensor) -> Tensor:
        """inputs: images (U, 3, S, S), what Encoder.below or Encoder.standard made of them -> (U, D) of unit length.

        With crops, U is crops times the distinct images: all of the first crop, then all of the second.
        """
        return self._encode(inputs)

    @abstractmethod
    def losses(self, vectors: Tensor, batch: BatchTensors) -> Tensor:
        """vectors: (U, D), what `encode` gave for the batch's distinct images -> (terms,).

        Under torch.distributed every process returns the losses of the global batch.
        """

    def forward(self, inputs: Tensor, batch: BatchTensors) -> Tensor:
        """Both halves: see `encode` and `losses`."""
        vectors = self.encode(inputs)
        self.seen = vectors.detach()
        return self.losses(vectors, batch)

    def attention_entropy(self, vectors: Tensor, batch: BatchTensors) -> float | None:  # noqa: ARG002
        """Of the weights over a user's clicks, in [0, 1]; NaN where nobody has two, None without attention.

        vectors: (U, D), as for `losses`.
        """
        return None


def gather(local: Tensor) -> Tensor:
    """(R, ...) of this process -> (processes * R, ...) of all, in the order of rank, with gradients.

    Every process computes the same global loss from it. The backward sums the processes' gradients, and
    DistributedDataParallel divides the parameters' by their number: what is left is the global loss's gradient,
    whatever that number. (Without the sum it shrinks with that number: open_clip#616, lightly#1977.)
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    return _Gather.apply(local)  # type: ignore[no-any-return, no-untyped-call]


def gather_crops(vectors: Tensor, crops: int) -> tuple[Tensor, ...]:
    """(crops * U, D) of this process, the first crop of every image and then the next -> so many (N, D) of all."""
    by_image = vectors.reshape(crops, -1, vectors.shape[1]).transpose(0, 1)
    return gather_images(by_image).unbind(1)


def gather_images(local: Tensor) -> Tensor:
    """(U, ...) of this process -> (N, ...) of all, in the order of rank, with gradients; U differs between them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    counts = gather(torch.tensor([len(local)], device=local.device)).tolist()
    filled = local.new_zeros((max(counts), *local.shape[1:]))
    parts = torch.split(gather(torch.cat([local, filled[len(local) :]])), max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]
