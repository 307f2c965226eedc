"""COURIER's own objective: images reconstructed out of what the user clicked, and the three losses."""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.courier.batches import PageViews
from model.courier.config import CourierConfig
from model.courier.encoder import Encoder
from model.courier.intention import ClickHead, IntentionReconstruction
from model.courier.losses import click_prediction, pv_contrast, user_click_sequence_contrast
from model.courier.objective import BatchTensors, Objective, gather

NEGATIVES = ("all", "category")


class BehaviourObjective(Objective):
    """PV contrast, user click sequence contrast and click prediction. Yang et al. 2025 (COURIER), section 3."""

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
    ) -> None:
        super().__init__(encoder, weights=weights, from_features=from_features)
        self.intention = IntentionReconstruction(width, heads, value_maps=value_maps)
        self.click_head = ClickHead(width)
        self.temperature = temperature
        self.mask_false_negatives = mask_false_negatives
        self.within_category = within_category

    def losses(self, vectors: Tensor, batch: BatchTensors) -> Tensor:
        """See Objective.losses; (3,)."""
        # F.embedding, not indexing: the backward of indexing adds in no fixed order, and the loss curve would vary.
        page, history = F.embedding(batch.page, vectors), F.embedding(batch.history, vectors)
        rebuilt = self.intention(page, history, batch.remembered)
        rebuilt_newest = self.intention(history[:, :1], history[:, 1:], batch.remembered[:, 1:])[:, 0]
        logit = self.click_head(rebuilt, page)
        return self._gathered_losses(page, rebuilt, history[:, 0], rebuilt_newest, logit, batch)

    @torch.no_grad()
    def attention_entropy(self, vectors: Tensor, batch: BatchTensors) -> float:
        """See Objective.attention_entropy; over the images shown to users with at least two clicks."""
        page, history = F.embedding(batch.page, vectors), F.embedding(batch.history, vectors)
        return self.intention.entropy(*map(gather, (page, history, batch.remembered, batch.shown)))

    def figures(self, batch: BatchTensors) -> dict[str, float]:
        """See Objective.figures; the attention's entropy is over all rows."""
        return super().figures(batch) | {"attention_entropy": round(self.attention_entropy(self.seen, batch), 4)}

    def _gathered_losses(
        self, page: Tensor, rebuilt: Tensor, newest: Tensor, rebuilt_newest: Tensor, logit: Tensor, batch: BatchTensors
    ) -> Tensor:
        page, rebuilt, newest, rebuilt_newest, logit = map(gather, (page, rebuilt, newest, rebuilt_newest, logit))
        shown, clicked, page_image = map(gather, (batch.shown, batch.clicked, batch.page_image))
        clicks, newest_image = gather(batch.remembered.sum(1)), gather(batch.history_image[:, 0])
        page_rival = gather(batch.page_category) if self.within_category else None
        newest_rival = gather(batch.history_category[:, 0].contiguous()) if self.within_category else None
        sharp, mask = self.temperature, self.mask_false_negatives
        return torch.stack(
            [
                pv_contrast(
                    page,
                    rebuilt,
                    clicked,
                    shown,
                    clicks > 0,
                    page_image,
                    page_rival,
                    temperature=sharp,
                    mask_false_negatives=mask,
                ),
                user_click_sequence_contrast(
                    newest,
                    rebuilt_newest,
                    clicks,
                    newest_image,
                    newest_rival,
                    temperature=sharp,
                    mask_false_negatives=mask,
                ),
                click_prediction(logit, clicked, shown),
            ]
        )


def behaviour_objective(config: CourierConfig, encoder: Encoder, _: PageViews) -> BehaviourObjective:
    """The objective that `config` describes. Raises ValueError for an unknown choice of negatives."""
    if config.negatives not in NEGATIVES:
        raise ValueError(f"unknown negatives {config.negatives!r}: choose one of {', '.join(NEGATIVES)}")
    return BehaviourObjective(
        encoder,
        weights=(config.weight_pv, config.weight_ucs, config.weight_click),
        width=config.width,
        heads=config.heads,
        value_maps=config.value_maps,
        temperature=config.temperature,
        mask_false_negatives=config.mask_false_negatives,
        within_category=config.negatives == "category",
        from_features=config.trainable == "head",
    )
