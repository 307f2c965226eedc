"""What pre-training minimises: encoder, reconstruction and the three losses, on the batch of all processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from model.courier.batches import Batch
from model.courier.encoder import Encoder
from model.courier.intention import ClickHead, IntentionReconstruction
from model.courier.losses import click_prediction, pv_contrast, user_click_sequence_contrast


@dataclass(frozen=True, slots=True)
class BatchTensors:
    """A Batch as tensors on a device; see Batch."""

    page: Tensor
    shown: Tensor
    clicked: Tensor
    history: Tensor
    remembered: Tensor
    page_image: Tensor
    history_image: Tensor
    page_category: Tensor
    history_category: Tensor

    @staticmethod
    def of(batch: Batch, device: torch.device) -> "BatchTensors":
        """All but the images themselves."""
        names = BatchTensors.__slots__
        return BatchTensors(**{name: torch.from_numpy(getattr(batch, name)).to(device) for name in names})


class Objective(nn.Module):
    """The losses of a step. `encode` is Encoder.forward on images, or Encoder.unit on features computed before."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        width: int,
        heads: int,
        value_maps: bool,
        temperature: float,
        mask_false_negatives: bool,
        within_category: bool,
        from_features: bool,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.intention = IntentionReconstruction(width, heads, value_maps=value_maps)
        self.click_head = ClickHead(width)
        self.temperature = temperature
        self.mask_false_negatives = mask_false_negatives
        self.within_category = within_category
        self.encode: Callable[[Tensor], Tensor] = encoder.unit if from_features else encoder.forward

    def forward(self, inputs: Tensor, batch: BatchTensors) -> Tensor:
        """inputs: the batch's distinct images or their features, (U, ...) -> (3,): PV contrast, UCS contrast, click.

        Under torch.distributed every process returns the losses of the global batch.
        """
        vectors_UD = self.encode(inputs)
        # F.embedding, not indexing: the backward of indexing adds in no fixed order, and the loss curve would vary.
        page, history = F.embedding(batch.page, vectors_UD), F.embedding(batch.history, vectors_UD)
        rebuilt = self.intention(page, history, batch.remembered)
        rebuilt_newest = self.intention(history[:, :1], history[:, 1:], batch.remembered[:, 1:])[:, 0]
        logit = self.click_head(rebuilt, page)
        options = {"temperature": self.temperature, "mask_false_negatives": self.mask_false_negatives}
        return self._losses(page, rebuilt, history[:, 0], rebuilt_newest, logit, batch, options)

    def _losses(
        self,
        page: Tensor,
        rebuilt: Tensor,
        newest: Tensor,
        rebuilt_newest: Tensor,
        logit: Tensor,
        batch: BatchTensors,
        options: dict[str, Any],
    ) -> Tensor:
        page, rebuilt, newest, rebuilt_newest, logit = map(gather, (page, rebuilt, newest, rebuilt_newest, logit))
        shown, clicked, page_image = map(gather, (batch.shown, batch.clicked, batch.page_image))
        clicks, newest_image = gather(batch.remembered.sum(1)), gather(batch.history_image[:, 0])
        page_rival = gather(batch.page_category) if self.within_category else None
        newest_rival = gather(batch.history_category[:, 0].contiguous()) if self.within_category else None
        return torch.stack(
            [
                pv_contrast(page, rebuilt, clicked, shown, clicks > 0, page_image, page_rival, **options),
                user_click_sequence_contrast(newest, rebuilt_newest, clicks, newest_image, newest_rival, **options),
                click_prediction(logit, clicked, shown),
            ]
        )


def gather(local: Tensor) -> Tensor:
    """(R, ...) of this process -> (processes * R, ...) of all, in the order of rank, with gradients.

    Every process computes the same global loss from it. The backward sums the processes' gradients, and
    DistributedDataParallel divides the parameters' by their number: what is left is the global loss's gradient,
    whatever that number. (Without the sum it shrinks with that number: open_clip#616, lightly#1977.)
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    return _Gather.apply(local)  # type: ignore[no-any-return, no-untyped-call]


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
