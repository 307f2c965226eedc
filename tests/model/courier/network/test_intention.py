"""The cross-attention that rebuilds an image from a history, with its masks."""

import math

import pytest
import torch
from torch import Tensor

from model.courier.network.intention import ClickHead, IntentionReconstruction, SequencePrediction
from model.errors import CourierError

WIDTH, HEADS = 8, 4


@pytest.fixture(params=[True, False], ids=["value maps", "no value maps"])
def attention(request: pytest.FixtureRequest) -> IntentionReconstruction:
    torch.manual_seed(0)
    return IntentionReconstruction(WIDTH, HEADS, value_maps=request.param).eval()


def vectors(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.nn.functional.normalize(torch.randn(*shape, WIDTH, generator=generator), dim=-1)


def slow(attention: IntentionReconstruction, target: Tensor, history: list[Tensor]) -> Tensor:
    """One target (D,) and its history, head by head in plain loops."""
    size = WIDTH // HEADS
    query, parts = attention.query(target), []
    for head in range(HEADS):
        span = slice(head * size, (head + 1) * size)
        scores = [float(query[span] @ attention.key(one)[span]) / math.sqrt(size) for one in history]
        shares = [math.exp(score) / sum(math.exp(other) for other in scores) for score in scores]
        parts.append(sum(share * attention.value(one)[span] for share, one in zip(shares, history, strict=True)))
    out = attention.out(torch.cat(parts))  # type: ignore[arg-type]
    return out / out.norm()


@pytest.mark.parametrize("length", range(6))
def test_rebuilding_equals_the_plain_loops_for_every_length_of_history(
    attention: IntentionReconstruction, length: int
) -> None:
    target, history = vectors(1, 3), vectors(1, 5)
    attention.requires_grad_(False)
    rebuilt = attention(target, history, torch.arange(5)[None, :] < length)
    known = list(history[0, :length]) or [attention.nothing_clicked]
    expected = torch.stack([slow(attention, one, known) for one in target[0]])
    torch.testing.assert_close(rebuilt[0], expected, atol=1e-5, rtol=1e-4)


def test_without_value_maps_one_click_is_rebuilt_as_itself() -> None:
    history = vectors(1, 5)
    rebuilt = IntentionReconstruction(WIDTH, HEADS, value_maps=False)(vectors(1, 3), history, torch.arange(5)[None] < 1)
    torch.testing.assert_close(rebuilt, history[:, :1].expand(1, 3, WIDTH))


def test_what_lies_in_a_padded_place_changes_nothing(attention: IntentionReconstruction) -> None:
    target, history = vectors(2, 3), vectors(2, 5)
    clicked = torch.tensor([[True, False, True, False, False], [True, True, True, True, False]])
    other = torch.where(clicked[..., None], history, 1000.0)
    torch.testing.assert_close(attention(target, history, clicked), attention(target, other, clicked))


def test_without_history_every_image_is_rebuilt_alike_without_nan(attention: IntentionReconstruction) -> None:
    none = torch.zeros(2, 5, dtype=torch.bool)
    rebuilt = attention(vectors(2, 3), vectors(2, 5), none)
    assert torch.isfinite(rebuilt).all()
    torch.testing.assert_close(rebuilt, rebuilt[:1, :1].expand_as(rebuilt))
    torch.testing.assert_close(rebuilt, attention(vectors(2, 3), vectors(2, 5) * float("nan"), none))


def test_without_history_gradients_are_finite_and_reach_the_stand_in(attention: IntentionReconstruction) -> None:
    history = vectors(2, 5).requires_grad_(True)
    rebuilt = attention(vectors(2, 3), history, torch.tensor([[False] * 5, [True] * 5]))
    rebuilt[..., 0].sum().backward()
    assert history.grad is not None
    assert torch.isfinite(history.grad).all()
    assert (history.grad[0] == 0).all()
    assert (history.grad[1] != 0).any()
    assert attention.nothing_clicked.grad is not None
    assert (attention.nothing_clicked.grad != 0).any()


def test_the_order_of_the_history_does_not_matter(attention: IntentionReconstruction) -> None:
    target, history, all_of_it = vectors(1, 3), vectors(1, 5), torch.ones(1, 5, dtype=torch.bool)
    torch.testing.assert_close(
        attention(target, history, all_of_it), attention(target, history.flip(1), all_of_it), atol=1e-6, rtol=1e-5
    )


def test_what_is_rebuilt_has_unit_length(attention: IntentionReconstruction) -> None:
    lengths = attention(vectors(4, 3), vectors(4, 5), torch.ones(4, 5, dtype=torch.bool)).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(4, 3))


def test_a_width_that_does_not_divide_by_the_heads_is_refused() -> None:
    with pytest.raises(CourierError, match="10 is not a multiple of 4 heads"):
        IntentionReconstruction(10, 4, value_maps=True)


def test_a_history_of_no_places_is_a_user_without_clicks(attention: IntentionReconstruction) -> None:
    none = torch.zeros(2, 5, dtype=torch.bool)
    empty = attention(vectors(2, 3), vectors(2, 0), none[:, :0])
    torch.testing.assert_close(empty, attention(vectors(2, 3), vectors(2, 5), none))


@pytest.mark.parametrize("length", range(6))
def test_foretelling_equals_the_plain_loops_for_every_length_of_history(length: int) -> None:
    torch.manual_seed(0)
    foretell = SequencePrediction(WIDTH, HEADS, value_maps=True).requires_grad_(False)
    for weight in foretell.parameters():
        weight.mul_(4)  # as they start, all clicks weigh nearly the same
    history = vectors(1, 5)
    known = list(history[0, :length])
    seen = [slow(foretell.among_clicks, one, known) for one in known] or [foretell.gather.nothing_clicked]
    expected = slow(foretell.gather, foretell.query, seen)
    foretold = foretell(vectors(1, 3), history, torch.arange(5)[None, :] < length)
    torch.testing.assert_close(foretold, expected.expand(1, 3, -1), atol=1e-5, rtol=1e-4)


def test_the_click_head_gives_one_logit_an_image() -> None:
    assert ClickHead(WIDTH)(vectors(2, 3), vectors(2, 3)).shape == (2, 3)


def test_equal_weights_have_entropy_one_and_a_weight_on_one_click_none(attention: IntentionReconstruction) -> None:
    clicked, shown = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool(), torch.ones(2, 1, dtype=torch.bool)
    alike = vectors(2, 1).expand(2, 3, WIDTH)
    assert attention.entropy(vectors(2, 1), alike, clicked, shown) == pytest.approx(1.0)
    for part in (attention.query, attention.key):
        torch.nn.init.eye_(part.weight)
        torch.nn.init.zeros_(part.bias)
    target = torch.full((2, 1, WIDTH), 10.0)
    opposite = torch.cat([target, -target, -target], dim=1)  # the first click is the target, the others its contrary
    assert attention.entropy(target, opposite, clicked, shown) == pytest.approx(0.0, abs=1e-6)


def test_padded_clicks_and_users_with_fewer_than_two_do_not_count_in_the_entropy(
    attention: IntentionReconstruction,
) -> None:
    target, history = vectors(2, 2) * 3, vectors(2, 4) * 3
    clicked, shown = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool(), torch.tensor([[1, 0], [1, 1]]).bool()
    whole = attention.entropy(target, history, clicked, shown)
    alone = attention.entropy(target[:1, :1], history[:1, :2], clicked[:1, :2], shown[:1, :1])
    assert whole == pytest.approx(alone)
    logit = attention.query(target[0, 0]).view(attention.heads, -1, 1)
    keys = attention.key(history[0, :2]).view(2, attention.heads, -1).transpose(0, 1)
    weights = (keys @ logit / logit.shape[1] ** 0.5).squeeze(-1).softmax(-1)
    by_hand = -(weights * weights.log()).sum(-1).mean() / math.log(2)
    assert alone == pytest.approx(float(by_hand.detach()), abs=1e-6)


def test_the_entropy_of_users_with_fewer_than_two_clicks_is_not_defined(attention: IntentionReconstruction) -> None:
    clicked, shown = torch.tensor([[1, 0], [0, 0]]).bool(), torch.ones(2, 1).bool()
    assert math.isnan(attention.entropy(vectors(2, 1), vectors(2, 2), clicked, shown))
