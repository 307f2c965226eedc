"""COURIER's baselines over the same encoder and images: no training at all, SimCLR, SimSiam and CLIP.

None of them sees a click. Each is as its paper has it, with the paper's temperature, at the width of our embedding;
the projection heads of SimCLR and SimSiam, like CLIP's text tower, are thrown away after training.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.courier.config import CourierConfig
from model.courier.data.batches import PageViews
from model.courier.data.loader import BatchTensors
from model.courier.losses.baseline_losses import image_title_contrast, negative_cosine, nt_xent
from model.courier.losses.objective import Objective, gather_crops, gather_images
from model.courier.network.encoder import Encoder
from model.courier.network.text import TextTower, tokenise
from model.errors import CourierError

UNKNOWN = -1  # the number of no title


class Untrained(Objective):
    """The warm start itself: the standardised features' leading principal components, and no step.

    Those are the very numbers that the head of every other method starts from, half whitened as theirs are, so that
    what a method is better by it has learned. The head is the identity: see methods.settle.
    """

    def __init__(self, encoder: Encoder, *, from_features: bool) -> None:
        super().__init__(encoder, weights=(), from_features=from_features)
        with torch.no_grad():
            linear: nn.Linear = encoder.head[0]  # type: ignore[assignment]
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)

    def losses(self, vectors: Tensor, batch: BatchTensors) -> Tensor:  # noqa: ARG002
        """None."""
        return vectors.new_zeros(0)


class SimClr(Objective):
    """Two crops of an image find each other among all crops. Chen et al. 2020, https://arxiv.org/abs/2002.05709."""

    terms = ("nt_xent",)
    crops = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float,
        projection_width: int,
        mask_false_negatives: bool,
        from_features: bool,
    ) -> None:
        super().__init__(encoder, weights=(1.0,), from_features=from_features)
        width = encoder.width
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection_width))
        self.temperature = temperature
        self.mask_false_negatives = mask_false_negatives

    def losses(self, vectors: Tensor, batch: BatchTensors) -> Tensor:
        """See Objective.losses; (1,)."""
        projected = F.normalize(self.projection(vectors).float(), dim=1)
        first, second = gather_crops(projected, self.crops)
        options = {"temperature": self.temperature, "mask_false_negatives": self.mask_false_negatives}
        return nt_xent(first, second, gather_images(batch.images), **options)[None]  # type: ignore[arg-type]


class SimSiam(Objective):
    """A crop predicts the other, without negatives. Chen & He 2021, https://arxiv.org/abs/2011.10566.

    Both heads see the images of all processes: their batch normalisation, which keeps the method from collapsing, then
    means the global batch, as the losses do.
    bottleneck: the prediction head narrows to the width by this.
    """

    terms = ("negative_cosine",)
    crops = 2

    def __init__(self, encoder: Encoder, *, bottleneck: int, from_features: bool) -> None:
        super().__init__(encoder, weights=(1.0,), from_features=from_features)
        width = encoder.width
        projection = [_normed(width, width), nn.ReLU(), _normed(width, width), nn.ReLU(), _normed(width, width)]
        self.projection = nn.Sequential(*projection)
        narrow = width // bottleneck
        self.prediction = nn.Sequential(_normed(width, narrow), nn.ReLU(), nn.Linear(narrow, width))

    def losses(self, vectors: Tensor, batch: BatchTensors) -> Tensor:  # noqa: ARG002
        """See Objective.losses; (1,)."""
        # Each crop by itself: that is whose mean and deviation the paper's normalisation takes.
        projected = [self.projection(crop) for crop in gather_crops(vectors, self.crops)]
        predicted = [self.prediction(crop) for crop in projected]
        both = negative_cosine(predicted[0], projected[1]), negative_cosine(predicted[1], projected[0])
        return ((both[0] + both[1]) / 2)[None]


class Clip(Objective):
    """Image against title. Radford et al. 2021, https://arxiv.org/abs/2103.00020.

    titles: of every image that may come, "" where there is none. Each distinct title of a batch is encoded once.
    """

    terms = ("title",)
    tokens: Tensor
    title: Tensor

    def __init__(
        self,
        encoder: Encoder,
        titles: tuple[str, ...],
        *,
        temperature: float,
        mask_false_negatives: bool,
        from_features: bool,
    ) -> None:
        super().__init__(encoder, weights=(1.0,), from_features=from_features)
        self.tower = TextTower(encoder.width)
        self.temperature = temperature
        self.mask_false_negatives = mask_false_negatives
        distinct = sorted({title for title in titles if title})
        number = {title: index for index, title in enumerate(distinct)}
        # Not saved: it is no weight, and as long as the catalogue.
        self.register_buffer("tokens", tokenise(distinct), persistent=False)
        self.register_buffer("title", torch.tensor([number.get(t, UNKNOWN) for t in titles]), persistent=False)

    def losses(self, vectors: Tensor, batch: BatchTensors) -> Tensor:
        """See Objective.losses; (1,)."""
        title = self.title[batch.images]
        distinct, place = torch.unique(title.clamp(min=0), return_inverse=True)
        words = F.embedding(place, self.tower(self.tokens[distinct]))
        image, words = gather_crops(vectors, 1)[0], gather_crops(words, 1)[0]
        title = gather_images(title)
        options = {"temperature": self.temperature, "mask_false_negatives": self.mask_false_negatives}
        numbers = gather_images(batch.images)
        return image_title_contrast(image, words, title != UNKNOWN, numbers, title, **options)[None]  # type: ignore[arg-type]


def untrained(config: CourierConfig, encoder: Encoder, _: PageViews) -> Untrained:
    """The warm start, or random weights, as `config` says."""
    return Untrained(encoder, from_features=config.trainable == "head")


def simclr(config: CourierConfig, encoder: Encoder, _: PageViews) -> SimClr:
    """SimCLR as `config` describes it."""
    return SimClr(
        encoder,
        temperature=config.simclr.temperature,
        projection_width=config.simclr.projection_width,
        mask_false_negatives=config.mask_false_negatives,
        from_features=config.trainable == "head",
    )


def simsiam(config: CourierConfig, encoder: Encoder, _: PageViews) -> SimSiam:
    """SimSiam as `config` describes it."""
    return SimSiam(encoder, bottleneck=config.simsiam.bottleneck, from_features=config.trainable == "head")


def clip(config: CourierConfig, encoder: Encoder, page_views: PageViews) -> Clip:
    """CLIP as `config` describes it. Raises CourierError where there are not two titles to tell apart."""
    if len(set(page_views.titles) - {""}) < 2:
        raise CourierError("method clip needs items with titles, and there are none: fill in the raw items' `title`")
    return Clip(
        encoder,
        page_views.titles,
        temperature=config.clip.temperature,
        mask_false_negatives=config.mask_false_negatives,
        from_features=config.trainable == "head",
    )


def _normed(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out))
