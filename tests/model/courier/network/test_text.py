"""Titles as tokens and vectors: learned from the titles alone, and the same however they come."""

import numpy as np
import torch

from model.courier.network.text import LENGTH, PADDING, START, VOCABULARY, TextTower, tokenise

TITLES = ["Oak Chair", "Red Oak Table", "oak chair", "", "椅子", "Café Stool " * 40]


def test_a_title_is_a_start_token_its_byte_pairs_and_padding() -> None:
    tokens = tokenise(TITLES)
    assert tokens.shape[0] == len(TITLES)
    assert tokens.shape[1] <= LENGTH
    assert (tokens[:, 0] == START).all()
    assert tokens[3].tolist() == [START] + [PADDING] * (tokens.shape[1] - 1)
    assert tokens.max() < VOCABULARY
    assert ((tokens == PADDING).long().diff(dim=1) >= 0).all()  # once padded, padded to the end


def test_case_is_no_difference_and_words_are() -> None:
    tokens = tokenise(TITLES)
    assert torch.equal(tokens[0], tokens[2])
    assert len({tuple(row.tolist()) for row in tokens}) == len(TITLES) - 1


def test_the_same_titles_give_the_same_tokens_in_whatever_order() -> None:
    order = [4, 2, 0, 5, 3, 1]
    assert torch.equal(tokenise([TITLES[n] for n in order]), tokenise(TITLES)[order])


def test_what_many_titles_share_becomes_one_token() -> None:
    tokens = tokenise(["chair"] * 50 + ["zebra"])
    assert (tokens[0] != PADDING).sum() == 2


def test_no_title_at_all_is_no_row() -> None:
    assert tokenise([]).shape[0] == 0


def test_a_titles_vector_has_unit_length_and_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    tower, tokens = TextTower(16), tokenise(TITLES)
    vectors = tower(tokens)
    assert vectors.shape == (len(TITLES), 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(TITLES)))
    alone = tower(tokens[:1, : int((tokens[0] != PADDING).sum())])  # without its padding
    torch.testing.assert_close(alone, vectors[:1], atol=1e-5, rtol=1e-4)


def test_titles_in_groups_of_about_one_length_are_those_encoded_together() -> None:
    rng = np.random.default_rng(0)
    tower, tokens = TextTower(16), torch.zeros(40, LENGTH, dtype=torch.int64)
    for row, length in zip(tokens, rng.integers(1, LENGTH + 1, 40).tolist(), strict=True):
        row[:length] = torch.from_numpy(rng.integers(2, VOCABULARY, length))
    weight = torch.randn(40, 16)
    found = []
    for encode in (tower, tower._whole):
        tower.zero_grad()
        vectors = encode(tokens)
        (vectors * weight).sum().backward()
        found.append((vectors.detach(), tower.position.grad.clone(), tower.out.weight.grad.clone()))
    for ours, twin in zip(*found, strict=True):
        torch.testing.assert_close(ours, twin, atol=1e-5, rtol=1e-4)


def test_the_order_of_the_words_counts() -> None:
    torch.manual_seed(0)
    tower, tokens = TextTower(16), tokenise(["hat chair", "chair hat"] * 5)
    assert (tower(tokens[:1]) - tower(tokens[1:2])).abs().max() > 1e-4
