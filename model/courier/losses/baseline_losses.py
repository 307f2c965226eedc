"""The losses of COURIER's baselines, which never see behaviour: NT-Xent, negative cosine, image against title.

Shape letters: N images of the batch, D the embedding's width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.courier.losses.courier_losses import products


def nt_xent(
    first_ND: Tensor, second_ND: Tensor, image_N: Tensor, *, temperature: float, mask_false_negatives: bool
) -> Tensor:
    """NT-Xent of an image's two crops among all crops of the batch.

        mean over the 2N crops v of  -log softmax_w( v . w / temperature )[other crop of v's image],   w over all but v

    first, second: (N, D) of unit length, two crops of each image.  image: (N,) int, equal where the picture is the
    same; with `mask_false_negatives` a further copy of it (another process may hold one) leaves the softmax.
    Returns a scalar >= 0 in nats.  Chen et al. 2020 (SimCLR), https://arxiv.org/abs/2002.05709, eq. 1.
    """
    count = len(first_ND)
    crops_VD = torch.cat([first_ND, second_ND])
    place_V = torch.arange(2 * count, device=crops_VD.device)
    other_V = place_V.roll(count)
    excluded_VV = place_V[:, None] == place_V[None, :]
    if mask_false_negatives:
        image_V = image_N.repeat(2)
        own_VV = other_V[:, None] == place_V[None, :]
        excluded_VV = excluded_VV | ((image_V[:, None] == image_V[None, :]) & ~own_VV)
    logits_VV = (products(crops_VD, crops_VD) / temperature).masked_fill(excluded_VV, float("-inf"))
    return F.cross_entropy(logits_VV, other_V)


def negative_cosine(predicted_ND: Tensor, target_ND: Tensor) -> Tensor:
    """Negative cosine of the prediction of one crop with the other crop, which gets no gradient.

        mean over images of  -cos( p, stop_gradient(z) )

    predicted, target: (N, D) of any length.  Returns a scalar in [-1, 1].  Without the stopped gradient everything
    collapses to one place.  Chen & He 2021 (SimSiam), https://arxiv.org/abs/2011.10566, eq. 1 and 3.
    """
    return -F.cosine_similarity(predicted_ND.float(), target_ND.detach().float(), dim=1).mean()


def image_title_contrast(
    image_ND: Tensor,
    title_ND: Tensor,
    has_title_N: Tensor,
    image_key_N: Tensor,
    title_key_N: Tensor,
    *,
    temperature: float,
    mask_false_negatives: bool,
) -> Tensor:
    """Symmetric InfoNCE of images and their titles among those of the batch.

        1/2 mean over images i of -log softmax_t( i . t / temperature )[own title]  +  the same with both exchanged

    image, title: (N, D) of unit length.  has_title: (N,) bool; an image without a title is left out altogether.
    image_key, title_key: (N,) int, equal where the picture or the words are the same; with `mask_false_negatives`
    such a pair is no negative: a shop has many an "Oak Chair".  Returns a scalar >= 0 in nats; 0 without any title.
    Radford et al. 2021 (CLIP), https://arxiv.org/abs/2103.00020, figure 3; the temperature is a constant here.
    """
    (titled_K,) = has_title_N.nonzero(as_tuple=True)
    logits_KK = products(image_ND[titled_K], title_ND[titled_K]) / temperature
    own_K = torch.arange(len(titled_K), device=logits_KK.device)
    if mask_false_negatives:
        keys = (key_N[titled_K] for key_N in (image_key_N, title_key_N))
        same_image_KK, same_title_KK = (key_K[:, None] == key_K[None, :] for key_K in keys)
        apart_KK = own_K[:, None] != own_K[None, :]
        logits_KK = logits_KK.masked_fill((same_image_KK | same_title_KK) & apart_KK, float("-inf"))
    both = [F.cross_entropy(one_KK, own_K, reduction="sum") for one_KK in (logits_KK, logits_KK.T)]
    return (both[0] + both[1]) / (2 * max(len(titled_K), 1))
