"""Titles as vectors: a vocabulary and a small transformer, both learned from the titles at hand.

No weights come from outside, so the tower is CLIP's own (Radford et al. 2021, https://arxiv.org/abs/2103.00020,
section 2.4: byte pairs, then a transformer) at the size of a catalogue. Byte pairs need no list of words and no spaces
between them; the transformer tells "a hat on a chair" from "a chair on a hat", which a bag of words cannot, and costs
less than the images do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 4096  # byte pairs, at most
LENGTH = 32  # tokens of a title; what is beyond is cut off
WIDTH, LAYERS, HEADS, HIDDEN = 128, 2, 4, 256
GROUPS = 6  # of titles, by length: padded to a batch's longest, films' titles are three times as long
PADDING, START = 0, 1  # tokens


def tokenise(titles: Sequence[str]) -> Tensor:
    """titles -> (N, L) int64, L <= LENGTH: a start token, then the byte pairs of the title, then padding.

    The byte pairs are those of these very titles: the same titles give the same tokens, in whatever order they come.
    Sennrich et al. 2016, https://arxiv.org/abs/1508.07909, section 3.2.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers  # late: one method needs it

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<padding>", "<start>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(titles, trainer)
    rows = [[START, *encoded.ids][:LENGTH] for encoded in tokenizer.encode_batch(list(titles))]
    longest = max(map(len, rows), default=1)
    return torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows]).reshape(-1, longest)


class TextTower(nn.Module):
    """A transformer over a title's tokens, their mean projected to a unit vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PADDING)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.01)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) int64, see tokenise -> (N, width) of unit length. Padding changes nothing."""
        length = (tokens != PADDING).sum(1)
        order = length.argsort()
        parts = [self._whole(tokens[part, : int(length[part[-1]])]) for part in order.chunk(GROUPS)]
        return torch.cat(parts)[order.argsort()]

    def _whole(self, tokens: Tensor) -> Tensor:
        """What `forward` gives, at the cost of as many tokens for each title as the longest has."""
        padded = tokens == PADDING
        hidden = self.token(tokens) + self.position[: tokens.shape[1]]
        hidden = self.layers(hidden, src_key_padding_mask=padded).masked_fill(padded[..., None], 0.0)
        return F.normalize(self.out(hidden.sum(1) / (~padded).sum(1, keepdim=True)).float(), dim=1)
