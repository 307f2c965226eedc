"""The three losses of COURIER on the global batch: page-view contrast, user click sequence contrast, click prediction.

Source: Yang et al. 2025 (COURIER), Front. Comput. Sci. 19(7):197602, https://arxiv.org/abs/2306.05001, section 3.
Shape letters: R rows of the batch, P images of a page view, D the embedding's width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def pv_contrast(
    page_RPD: Tensor,
    rebuilt_RPD: Tensor,
    clicked_RP: Tensor,
    shown_RP: Tensor,
    has_history_R: Tensor,
    image_RP: Tensor,
    group_RP: Tensor | None = None,
    *,
    temperature: float,
    mask_false_negatives: bool,
) -> Tensor:
    """InfoNCE of each clicked image among all images shown, the query being what the user's history makes of it.

        mean over clicked j of  -log softmax_i( e_i . r_j / temperature )[j],   i over every image shown in the batch

    page, rebuilt: (R, P, D) of unit length: e and r.  clicked, shown: (R, P) bool; a padded place is not shown.
    has_history: (R,) bool; a row without history rebuilds nothing, so its clicks are no anchors, but its images stay
    negatives.  image: (R, P) int, equal where the picture is the same; with `mask_false_negatives` the same picture
    elsewhere in the batch leaves the softmax.  group: (R, P) int; where given, only images of the anchor's group are
    negatives (our departure, see CourierMethodConfig.negatives).
    Returns a scalar >= 0 in nats; 0 where there is no anchor.
    The paper sums, we take the mean: the scale must not depend on the size of the batch.
    """
    anchor = clicked_RP & shown_RP & has_history_R[:, None]
    return _reconstruction_contrast(
        page_RPD.flatten(0, 1),
        rebuilt_RPD.flatten(0, 1),
        anchor.flatten(),
        shown_RP.flatten(),
        image_RP.flatten(),
        None if group_RP is None else group_RP.flatten(),
        temperature,
        mask_false_negatives,
    )


def user_click_sequence_contrast(
    newest_RD: Tensor,
    rebuilt_RD: Tensor,
    clicks_R: Tensor,
    image_R: Tensor,
    group_R: Tensor | None = None,
    *,
    temperature: float,
    mask_false_negatives: bool,
) -> Tensor:
    """InfoNCE of each user's newest click among all users', the query being what the older clicks make of it.

        mean over rows k of  -log softmax_l( e_l . r_k / temperature )[k],   l over the newest click of every row

    newest, rebuilt: (R, D) of unit length; rebuilt comes from the row's older clicks.  clicks: (R,) int, length of the
    history: a row anchors with at least two clicks and is a negative with at least one.  image, group: (R,) int, as
    in pv_contrast.  Returns a scalar >= 0 in nats; 0 where there is no anchor.
    The published code ran this at temperature 20; the paper's 0.05 is meant.
    """
    return _reconstruction_contrast(
        newest_RD,
        rebuilt_RD,
        clicks_R >= 2,
        clicks_R >= 1,
        image_R,
        group_R,
        temperature,
        mask_false_negatives,
    )


def click_prediction(logit_RP: Tensor, clicked_RP: Tensor, shown_RP: Tensor) -> Tensor:
    """Binary cross-entropy of the click, mean over the images shown.

        mean over shown j of  -[ y_j log s(z_j) + (1 - y_j) log(1 - s(z_j)) ],   s the logistic function

    logit: (R, P).  clicked, shown: (R, P) bool.  Returns a scalar >= 0 in nats; 0 where nothing is shown.
    """
    each = F.binary_cross_entropy_with_logits(logit_RP.float(), clicked_RP.float(), reduction="none")
    return torch.where(shown_RP, each, 0.0).sum() / shown_RP.sum().clamp(min=1)


def products(left_AD: Tensor, right_BD: Tensor) -> Tensor:
    """(A, B) float32, under autocast too: divided by 0.05, what bfloat16 rounds off a cosine is 0.1."""
    with torch.autocast(left_AD.device.type, enabled=False):
        return left_AD.float() @ right_BD.float().T


def _reconstruction_contrast(
    embedded_ND: Tensor,
    rebuilt_ND: Tensor,
    anchor_N: Tensor,
    candidate_N: Tensor,
    image_N: Tensor,
    group_N: Tensor | None,
    temperature: float,
    mask_false_negatives: bool,
) -> Tensor:
    """Cross-entropy of every anchor's own row among the candidates, mean over anchors; every anchor is a candidate."""
    (positive_A,) = anchor_N.nonzero(as_tuple=True)
    logits_AN = products(rebuilt_ND[positive_A], embedded_ND) / temperature
    excluded_AN = ~candidate_N[None, :].expand_as(logits_AN)
    if mask_false_negatives:
        excluded_AN = excluded_AN | (image_N[positive_A, None] == image_N[None, :])
    if group_N is not None:
        excluded_AN = excluded_AN | (group_N[positive_A, None] != group_N[None, :])
    own_AN = positive_A[:, None] == torch.arange(len(image_N), device=image_N.device)[None, :]
    logits_AN = logits_AN.masked_fill(excluded_AN & ~own_AN, float("-inf"))
    return F.cross_entropy(logits_AN, positive_A, reduction="sum") / max(len(positive_A), 1)
