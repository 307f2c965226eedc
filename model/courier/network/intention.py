"""User intention reconstruction: an image rebuilt out of what the user clicked, and the click it foretells."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import CourierError

CLICK_HIDDEN = 1024  # Yang et al. 2025 (COURIER): an MLP 512 -> 1024 -> 1


class IntentionReconstruction(nn.Module):
    """One multi-head cross-attention: query = an image, keys and values = the user's clicked images.

    Yang et al. 2025 (COURIER), section 3.2; attention: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1.
    value_maps: with them the values pass two learned linear maps (the paper). Without them an image is rebuilt as a
    weighted mean of the clicked images' own embeddings, so that the losses train the very cosine that is used later:
    the maps are a projection head by another name.
    Padded clicks get no weight. A user without clicks is rebuilt from one learned vector, `nothing_clicked`, which
    stands where the history would: the result is defined, the same for every such user, and never NaN.
    """

    def __init__(self, width: int, heads: int, *, value_maps: bool) -> None:
        super().__init__()
        if width % heads:
            raise CourierError(f"width {width} is not a multiple of {heads} heads: change courier.heads")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width) if value_maps else nn.Identity()
        self.out = nn.Linear(width, width) if value_maps else nn.Identity()
        self.nothing_clicked = nn.Parameter(torch.randn(width) / width**0.5)

    def forward(self, target_RQD: Tensor, history_RHD: Tensor, clicked_RH: Tensor) -> Tensor:
        """target: (R, Q, D), history: (R, H, D), clicked: (R, H) bool, False if padded -> (R, Q, D) of unit length."""
        history_RHD, attended_RH = self._or_nothing_clicked(history_RHD, clicked_RH)
        rebuilt = F.scaled_dot_product_attention(
            self._split(self.query(target_RQD)),
            self._split(self.key(history_RHD)),
            self._split(self.value(history_RHD)),
            attn_mask=attended_RH[:, None, None, :],
        )
        return F.normalize(self.out(rebuilt.transpose(1, 2).flatten(2)).float(), dim=-1)

    @torch.no_grad()
    def entropy(self, target_RQD: Tensor, history_RHD: Tensor, clicked_RH: Tensor, shown_RQ: Tensor) -> float:
        """The entropy of the weights over a user's clicks by that of equal weights, mean over targets shown and heads.

        In [0, 1]; NaN where no user has two clicks. Arguments as for `forward`; shown: (R, Q) bool.
        """
        logits = self._split(self.query(target_RQD)) @ self._split(self.key(history_RHD)).transpose(2, 3)
        logits = (logits.float() / logits.new_tensor(history_RHD.shape[2] // self.heads).sqrt()).masked_fill(
            ~clicked_RH[:, None, None, :], float("-inf")
        )
        clicks_R = clicked_RH.sum(1)
        counted_R = clicks_R >= 2
        weights = logits[counted_R].softmax(-1)
        share = -torch.xlogy(weights, weights).sum(-1) / clicks_R[counted_R, None, None].log()
        return float(share.mean(1)[shown_RQ[counted_R]].mean())

    def _or_nothing_clicked(self, history_RHD: Tensor, clicked_RH: Tensor) -> tuple[Tensor, Tensor]:
        """One place more, first: `nothing_clicked`, which is seen where no click is. H may be 0."""
        empty_R1 = ~clicked_RH.any(1, keepdim=True)
        stand_in_R1D = self.nothing_clicked.to(history_RHD.dtype).expand(len(history_RHD), 1, -1)
        known_RHD = history_RHD.masked_fill(~clicked_RH[..., None], 0.0)  # a weight of 0 would not stop a NaN
        return torch.cat([stand_in_R1D, known_RHD], dim=1), torch.cat([empty_R1, clicked_RH], dim=1)

    def _split(self, x_RLD: Tensor) -> Tensor:
        rows, length, width = x_RLD.shape
        return x_RLD.view(rows, length, self.heads, width // self.heads).transpose(1, 2)


class SequencePrediction(nn.Module):
    """The next click foretold from the history alone: self-attention, which does not know what it is to rebuild.

    The history's places look at each other, and a learned query gathers what they saw. Yang et al. 2025 (COURIER),
    section 3.2, tried the like in place of the cross-attention and found it worse: an ablation.
    """

    def __init__(self, width: int, heads: int, *, value_maps: bool) -> None:
        super().__init__()
        self.among_clicks = IntentionReconstruction(width, heads, value_maps=value_maps)
        self.gather = IntentionReconstruction(width, heads, value_maps=value_maps)
        self.query = nn.Parameter(torch.randn(width) / width**0.5)

    def forward(self, target_RQD: Tensor, history_RHD: Tensor, clicked_RH: Tensor) -> Tensor:
        """See IntentionReconstruction.forward; of the targets only their number counts, each gets the same."""
        seen_RHD = self.among_clicks(history_RHD, history_RHD, clicked_RH)
        query_R1D = self.query.expand(len(history_RHD), 1, -1)
        return self.gather(query_R1D, seen_RHD, clicked_RH).expand(-1, target_RQD.shape[1], -1)  # type: ignore[no-any-return]

    def entropy(self, target_RQD: Tensor, history_RHD: Tensor, clicked_RH: Tensor, shown_RQ: Tensor) -> float:
        """See IntentionReconstruction.entropy; of the weights by which the learned query gathers."""
        seen_RHD = self.among_clicks(history_RHD, history_RHD, clicked_RH)
        return self.gather.entropy(self.query.expand_as(target_RQD), seen_RHD, clicked_RH, shown_RQ)


class ClickHead(nn.Module):
    """The logit of a click, from the rebuilt and the true image. Yang et al. 2025 (COURIER), section 3.3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * width, CLICK_HIDDEN), nn.ReLU(), nn.Linear(CLICK_HIDDEN, 1))

    def forward(self, rebuilt_RPD: Tensor, page_RPD: Tensor) -> Tensor:
        """rebuilt, page: (R, P, D) -> (R, P) logits."""
        return self.layers(torch.cat([rebuilt_RPD, page_RPD], dim=-1)).squeeze(-1)  # type: ignore[no-any-return]
