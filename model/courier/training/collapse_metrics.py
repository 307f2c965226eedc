"""How an embedding fills its space: the figures that show a collapsed encoder, and the refusal of one."""

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from model.courier.data.loader import BatchTensors
from model.courier.losses.objective import Objective, gather
from model.errors import CourierError

MIN_EFFECTIVE_RANK = 4.0  # of 256: fewer directions than this cannot tell a catalogue's styles apart
MIN_DEVIATION = 0.1  # of what vectors spread evenly over the sphere have
UNIFORMITY_SAMPLE = 2000  # images: the figure is a mean over pairs, four million of them are plenty
STEP_ROWS = 64  # a singular value decomposition every ten steps must not be felt


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapseMetrics:
    """Figures of unit vectors (N, D).

    deviation: mean over dimensions of the standard deviation, times sqrt(D); 1 when spread evenly, 0 when collapsed.
    effective_rank: exp of the entropy of the centred singular values; 1..D. Roy & Vetterli 2007, definition 1.
    alignment: mean squared distance of positive pairs; 0..4.
    uniformity: log mean exp(-2 squared distance) of all pairs; 0 when collapsed.
    attention_entropy: of the weights over a user's clicks, by that of equal weights; 1 all alike, 0 on one click; NaN
    where nobody has two clicks, None where there is no attention.
    Alignment and uniformity: Wang & Isola 2020, https://arxiv.org/abs/2005.10242, section 4.1.
    """

    deviation: float
    effective_rank: float
    alignment: float
    uniformity: float
    attention_entropy: float | None = None

    def as_facts(self) -> dict[str, float]:
        """For a manifest, which says null of what is NaN; what there is not has no name in it."""
        return {name: round(value, 4) for name, value in asdict(self).items() if value is not None}


class Collapsed(CourierError):
    """The encoder maps all images to nearly the same place; the message gives the figures."""


def measure(vectors: Tensor, pairs: Tensor) -> CollapseMetrics:
    """vectors: (N, D) of unit length, N >= 2. pairs: (M, 2) int, rows that belong together; alignment 0 without any."""
    return measure_pairs(vectors, vectors[pairs[:, 0]], vectors[pairs[:, 1]])


def measure_pairs(vectors: Tensor, one: Tensor, other: Tensor) -> CollapseMetrics:
    """vectors: (N, D) of unit length, N >= 2. one, other: (M, D), row by row what belongs together."""
    singular = torch.linalg.svdvals((vectors - vectors.mean(0)).double())
    share = singular / singular.sum().clamp(min=1e-12)
    return CollapseMetrics(
        deviation=float(vectors.std(0).mean() * vectors.shape[1] ** 0.5),
        effective_rank=float(torch.exp(-(share * torch.log(share.clamp(min=1e-12))).sum())),
        alignment=float((one - other).square().sum(1).mean()) if len(one) else 0.0,
        uniformity=_uniformity(vectors[:: max(1, len(vectors) // UNIFORMITY_SAMPLE)]),
    )


@torch.no_grad()
def step_figures(objective: Objective, batch: BatchTensors) -> dict[str, float]:
    """Of the last step's vectors: the images shown in the first rows of the global batch, the attention over all rows.

    Every process must ask.
    """
    page, newest = F.embedding(batch.page, objective.seen), F.embedding(batch.history[:, 0], objective.seen)
    page, newest, shown, clicked, known = (
        gather(part)[:STEP_ROWS].cpu()
        for part in (page, newest, batch.shown, batch.clicked, batch.history_mask[:, 0].contiguous())
    )
    row, column = (clicked & known[:, None]).nonzero(as_tuple=True)
    metrics = measure_pairs(page[shown].float(), page[row, column], newest[row])
    return replace(metrics, attention_entropy=objective.attention_entropy(objective.seen, batch)).as_facts()


def is_collapsed(metrics: CollapseMetrics, images: int) -> bool:
    """Whether `images` distinct images fill too few directions or too little space, or have no place: NaN."""
    return not (metrics.effective_rank >= _least_rank(images) and metrics.deviation >= MIN_DEVIATION)


def refuse_collapse(metrics: CollapseMetrics, images: int) -> None:
    """Raise Collapsed, with the figures, for a collapsed encoder."""
    if is_collapsed(metrics, images):
        least, entropy = _least_rank(images), metrics.attention_entropy
        raise Collapsed(
            f"the encoder collapsed: effective rank {metrics.effective_rank:.2f} (at least {least:.1f}), "
            f"deviation {metrics.deviation:.3f} (at least {MIN_DEVIATION}), uniformity {metrics.uniformity:.2f}, "
            f"alignment {metrics.alignment:.2f}{'' if entropy is None else f', attention entropy {entropy:.2f}'}: "
            "lower the learning rate or train on more page views"
        )


def _least_rank(images: int) -> float:
    return min(MIN_EFFECTIVE_RANK, images / 16)  # a handful of images may honestly be of two or three kinds


def _uniformity(vectors: Tensor) -> float:
    return float(torch.pdist(vectors).square().mul(-2).exp().mean().log())
