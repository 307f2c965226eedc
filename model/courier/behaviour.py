"""COURIER's own objective: images reconstructed out of what the user clicked, and the three losses."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.courier.batches import PADDING, PageViews
from model.courier.config import CourierConfig
from model.courier.encoder import Encoder
from model.courier.intention import ClickHead, IntentionReconstruction, SequencePrediction
from model.courier.losses import click_prediction, pv_contrast, user_click_sequence_contrast
from model.courier.objective import BatchTensors, Objective, gather, gather_images, gather_views
from model.courier.rival_losses import nt_xent

NEGATIVES = ("all", "category")
ATTENTIONS: dict[str, type[IntentionReconstruction] | type[SequencePrediction]] = {
    "cross": IntentionReconstruction,
    "self": SequencePrediction,
}
ORDERS = ("newest", "random")
SELF_TEMPERATURE = 0.2  # SimCLR's


class BehaviourObjective(Objective):
    """PV contrast, user click sequence contrast and click prediction. Yang et al. 2025 (COURIER), section 3.

    weight_self, augmented, attention, projection_head, history_order: see CourierConfig.
    popularity: (2, images), what is subtracted from an image's logit as a negative, where it is shown and where it is a
    newest click; None: nothing.
    """

    terms: tuple[str, ...] = ("pv", "ucs", "click")
    popularity: Tensor | None

    def __init__(
        self,
        encoder: Encoder,
        *,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        weight_self: float = 0.0,
        augmented: bool = False,
        width: int,
        heads: int,
        value_maps: bool,
        temperature: float,
        mask_false_negatives: bool,
        within_category: bool,
        from_features: bool,
        attention: str = "cross",
        projection_head: bool = False,
        history_order: str = "newest",
        popularity: Tensor | None = None,
    ) -> None:
        super().__init__(encoder, weights=weights, from_features=from_features)
        self.intention = ATTENTIONS[attention](width, heads, value_maps=value_maps)
        self.click_head = ClickHead(width)
        hidden = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.projection = hidden if projection_head else None
        self.temperature = temperature
        self.mask_false_negatives = mask_false_negatives
        self.within_category = within_category
        self.random_order = history_order == "random"
        self.register_buffer("popularity", popularity, persistent=False)  # of the data, no weight
        self.views = int(augmented)
        if weight_self > 0:
            self.terms, self.weights, self.views = (*self.terms, "views"), (*weights, weight_self), 2

    def losses(self, vectors: Tensor, batch: BatchTensors) -> Tensor:
        """See Objective.losses; (terms,). Of several views the losses of behaviour see the first."""
        seen = self._seen(vectors[: len(batch.images)])
        # F.embedding, not indexing: the backward of indexing adds in no fixed order, and the loss curve would vary.
        page, history = F.embedding(batch.page, seen), F.embedding(batch.history, seen)
        place = self._place_of_newest(batch.remembered)
        newest = F.embedding(batch.history.gather(1, place), seen)
        older = batch.remembered.scatter(1, place, False)
        rebuilt = self.intention(page, history, batch.remembered)
        rebuilt_newest = self.intention(newest, history, older)
        terms = [
            self._pv_contrast(page, rebuilt, batch),
            self._user_click_sequence_contrast(newest[:, 0], rebuilt_newest[:, 0], place, batch),
            self._click_prediction(self.click_head(rebuilt, page), batch),
        ]
        return torch.stack([*terms, self._between_views(vectors, batch)] if self.views == 2 else terms)

    @torch.no_grad()
    def attention_entropy(self, vectors: Tensor, batch: BatchTensors) -> float:
        """See Objective.attention_entropy; over the images shown to users with at least two clicks."""
        seen = self._seen(vectors)
        page, history = F.embedding(batch.page, seen), F.embedding(batch.history, seen)
        return self.intention.entropy(*map(gather, (page, history, batch.remembered, batch.shown)))

    def figures(self, batch: BatchTensors) -> dict[str, float]:
        """See Objective.figures; the attention's entropy is over all rows."""
        return super().figures(batch) | {"attention_entropy": round(self.attention_entropy(self.seen, batch), 4)}

    def _seen(self, vectors: Tensor) -> Tensor:
        """What the losses of behaviour see of these vectors."""
        return vectors if self.projection is None else F.normalize(self.projection(vectors).float(), dim=1)

    def _place_of_newest(self, remembered: Tensor) -> Tensor:
        """(R, 1), which click of each history is to be rebuilt: the newest, or any."""
        if not self.random_order:
            return remembered.new_zeros((len(remembered), 1), dtype=torch.int64)
        drawn = torch.rand(remembered.shape, device=remembered.device).masked_fill(~remembered, -1.0)
        return drawn.argmax(1, keepdim=True)

    def _pv_contrast(self, page: Tensor, rebuilt: Tensor, batch: BatchTensors) -> Tensor:
        page, rebuilt, clicked, shown = map(gather, (page, rebuilt, batch.clicked, batch.shown))
        image = gather(batch.page_image)
        return pv_contrast(
            page,
            rebuilt,
            clicked,
            shown,
            gather(batch.remembered.any(1)),
            image,
            gather(batch.page_category) if self.within_category else None,
            None if self.popularity is None else self.popularity[0][image],
            temperature=self.temperature,
            mask_false_negatives=self.mask_false_negatives,
        )

    def _user_click_sequence_contrast(
        self, newest: Tensor, rebuilt: Tensor, place: Tensor, batch: BatchTensors
    ) -> Tensor:
        image, category = (one.gather(1, place)[:, 0] for one in (batch.history_image, batch.history_category))
        newest, rebuilt, clicks, image = map(gather, (newest, rebuilt, batch.remembered.sum(1), image))
        return user_click_sequence_contrast(
            newest,
            rebuilt,
            clicks,
            image,
            gather(category) if self.within_category else None,
            None if self.popularity is None else self.popularity[1][image],
            temperature=self.temperature,
            mask_false_negatives=self.mask_false_negatives,
        )

    def _click_prediction(self, logit: Tensor, batch: BatchTensors) -> Tensor:
        return click_prediction(gather(logit), gather(batch.clicked), gather(batch.shown))

    def _between_views(self, vectors: Tensor, batch: BatchTensors) -> Tensor:
        first, second = gather_views(vectors, 2)
        images = gather_images(batch.images)
        mask = self.mask_false_negatives
        return nt_xent(first, second, images, temperature=SELF_TEMPERATURE, mask_false_negatives=mask)


def behaviour_objective(config: CourierConfig, encoder: Encoder, views: PageViews) -> BehaviourObjective:
    """The objective that `config` describes. Raises ValueError for an unknown or idle choice."""
    _check(config)
    return BehaviourObjective(
        encoder,
        weights=(config.weight_pv, config.weight_ucs, config.weight_click),
        weight_self=config.weight_self,
        augmented=config.augmented,
        width=config.width,
        heads=config.heads,
        value_maps=config.value_maps,
        temperature=config.temperature,
        mask_false_negatives=config.mask_false_negatives,
        within_category=config.negatives == "category",
        from_features=config.trainable == "head",
        attention=config.attention,
        projection_head=config.projection_head,
        history_order=config.history_order,
        popularity=config.popularity_correction * log_popularity(views) if config.popularity_correction else None,
    )


def log_popularity(views: PageViews) -> Tensor:
    """(2, images) float32: the log of each image's share of all that is shown, and of all newest clicks.

    Yi et al. 2019, https://doi.org/10.1145/3298689.3346996, eq. 3. An image counts as seen once at least.
    """
    return torch.stack([_log_share(places, len(views.image_ids)) for places in (views.page, views.history[:, 0])])


def _log_share(places: npt.NDArray[np.int32], images: int) -> Tensor:
    counts = np.bincount(places[places != PADDING], minlength=images).clip(min=1)
    return torch.from_numpy(np.log(counts / counts.sum())).float()


def _check(config: CourierConfig) -> None:
    for name, choices in (("negatives", NEGATIVES), ("attention", tuple(ATTENTIONS)), ("history_order", ORDERS)):
        if getattr(config, name) not in choices:
            raise ValueError(f"unknown {name} {getattr(config, name)!r}: choose one of {', '.join(choices)}")
    if not 0 <= config.popularity_correction <= 1:
        raise ValueError(f"popularity_correction is {config.popularity_correction}: give 0 (none) to 1 (all of it)")
    if config.weight_self < 0:
        raise ValueError(f"weight_self is {config.weight_self}: give 0 or more")
    if config.history_order == "random" and not (config.weight_ucs > 0 and config.history > 1):
        raise ValueError(
            "history_order random changes the user click sequence contrast alone, and that is off: "
            "give weight_ucs more than 0 and history more than 1"
        )
