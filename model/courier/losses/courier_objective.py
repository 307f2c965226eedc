"""COURIER's own objective: images reconstructed out of what the user clicked, and the three losses."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.courier.config import CourierConfig, CourierMethodConfig
from model.courier.data.batches import PageViews
from model.courier.data.loader import BatchTensors
from model.courier.losses.courier_losses import click_prediction, pv_contrast, user_click_sequence_contrast
from model.courier.losses.objective import Objective, gather
from model.courier.network.encoder import Encoder
from model.courier.network.intention import ClickHead, IntentionReconstruction, SequencePrediction
from model.errors import CourierError

NEGATIVES = ("all", "category")
ATTENTIONS: dict[str, type[IntentionReconstruction] | type[SequencePrediction]] = {
    "cross": IntentionReconstruction,
    "self": SequencePrediction,
}
ORDERS = ("newest", "random")


class BehaviourObjective(Objective):
    """PV contrast, user click sequence contrast and click prediction. Yang et al. 2025 (COURIER), section 3.

    attention, projection_head, history_order: see CourierMethodConfig.
    """

    terms = ("pv", "ucs", "click")

    def __init__(
        self,
        encoder: Encoder,
        *,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
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

    def losses(self, vectors: Tensor, batch: BatchTensors) -> Tensor:
        """See Objective.losses; (3,)."""
        seen = self._seen(vectors)
        # F.embedding, not indexing: the backward of indexing adds in no fixed order, and the loss curve would vary.
        page, history = F.embedding(batch.page, seen), F.embedding(batch.history, seen)
        place = self._place_of_newest(batch.history_mask)
        newest = F.embedding(batch.history.gather(1, place), seen)
        older = batch.history_mask.scatter(1, place, False)
        rebuilt = self.intention(page, history, batch.history_mask)
        rebuilt_newest = self.intention(newest, history, older)
        terms = (
            self._pv_contrast(page, rebuilt, batch),
            self._user_click_sequence_contrast(newest[:, 0], rebuilt_newest[:, 0], place, batch),
            self._click_prediction(self.click_head(rebuilt, page), batch),
        )
        return torch.stack(terms)

    @torch.no_grad()
    def attention_entropy(self, vectors: Tensor, batch: BatchTensors) -> float:
        """See Objective.attention_entropy; over the images shown to users with at least two clicks."""
        seen = self._seen(vectors)
        page, history = F.embedding(batch.page, seen), F.embedding(batch.history, seen)
        return self.intention.entropy(*map(gather, (page, history, batch.history_mask, batch.shown)))

    def _seen(self, vectors: Tensor) -> Tensor:
        """What the losses of behaviour see of these vectors."""
        return vectors if self.projection is None else F.normalize(self.projection(vectors).float(), dim=1)

    def _place_of_newest(self, history_mask: Tensor) -> Tensor:
        """(R, 1), which click of each history is to be rebuilt: the newest, or any."""
        if not self.random_order:
            return history_mask.new_zeros((len(history_mask), 1), dtype=torch.int64)
        drawn = torch.rand(history_mask.shape, device=history_mask.device).masked_fill(~history_mask, -1.0)
        return drawn.argmax(1, keepdim=True)

    def _pv_contrast(self, page: Tensor, rebuilt: Tensor, batch: BatchTensors) -> Tensor:
        page, rebuilt, clicked, shown = map(gather, (page, rebuilt, batch.clicked, batch.shown))
        return pv_contrast(
            page,
            rebuilt,
            clicked,
            shown,
            gather(batch.history_mask.any(1)),
            gather(batch.page_image),
            gather(batch.page_category) if self.within_category else None,
            temperature=self.temperature,
            mask_false_negatives=self.mask_false_negatives,
        )

    def _user_click_sequence_contrast(
        self, newest: Tensor, rebuilt: Tensor, place: Tensor, batch: BatchTensors
    ) -> Tensor:
        image, category = (one.gather(1, place)[:, 0] for one in (batch.history_image, batch.history_category))
        newest, rebuilt, clicks, image = map(gather, (newest, rebuilt, batch.history_mask.sum(1), image))
        return user_click_sequence_contrast(
            newest,
            rebuilt,
            clicks,
            image,
            gather(category) if self.within_category else None,
            temperature=self.temperature,
            mask_false_negatives=self.mask_false_negatives,
        )

    def _click_prediction(self, logit: Tensor, batch: BatchTensors) -> Tensor:
        return click_prediction(gather(logit), gather(batch.clicked), gather(batch.shown))


def behaviour_objective(config: CourierConfig, encoder: Encoder, _: PageViews) -> BehaviourObjective:
    """The objective that `config` describes. Raises CourierError for an unknown or idle choice."""
    own = config.courier
    _check(own, config.history)
    return BehaviourObjective(
        encoder,
        weights=(own.weight_pv, own.weight_ucs, own.weight_click),
        width=config.width,
        heads=own.heads,
        value_maps=own.value_maps,
        temperature=own.temperature,
        mask_false_negatives=config.mask_false_negatives,
        within_category=own.negatives == "category",
        from_features=config.trainable == "head",
        attention=own.attention,
        projection_head=own.projection_head,
        history_order=own.history_order,
    )


def _check(own: CourierMethodConfig, history: int) -> None:
    for name, choices in (("negatives", NEGATIVES), ("attention", tuple(ATTENTIONS)), ("history_order", ORDERS)):
        if getattr(own, name) not in choices:
            raise CourierError(f"unknown {name} {getattr(own, name)!r}: choose one of {', '.join(choices)}")
    if own.history_order == "random" and not (own.weight_ucs > 0 and history > 1):
        raise CourierError(
            "history_order random changes the user click sequence contrast alone, and that is off: "
            "give weight_ucs more than 0 and history more than 1"
        )
