"""COURIER's objective equals plain loops from vectors to losses; each ablation changes its part and nothing else."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.courier.config import CourierConfig, CourierMethodConfig
from model.courier.data.batches import Batch, PageViews, take_batch
from model.courier.data.loader import BatchTensors
from model.courier.losses.courier_objective import BehaviourObjective
from model.courier.network.encoder import build_encoder
from model.courier.training.methods import build_objective
from model.errors import CourierError
from model.settings import from_mapping, full_name, unflatten

untimed = settings(deadline=None, max_examples=40)  # a busy machine is no failure
WIDTH, HEADS, IMAGES, TAU = 8, 2, 7, 0.3
TINY = CourierConfig(
    backbone="small",
    backbone_weights="random",
    trainable="all",
    image_size=16,
    width=WIDTH,
    courier=CourierMethodConfig(heads=HEADS, temperature=TAU),
)


@dataclass
class Case:
    """Page views of few images, so that the same one comes twice, and a vector for each image."""

    page_views: PageViews
    vectors: Tensor

    def batch(self, rows: Any = None) -> Batch:
        return take_batch(self.page_views, np.arange(len(self.page_views)) if rows is None else np.array(rows))

    def losses(self, objective: BehaviourObjective, rows: Any = None) -> Tensor:
        batch = self.batch(rows)
        return objective.losses(self.vectors[torch.from_numpy(batch.images)], tensors(batch))


def tensors(batch: Batch) -> BatchTensors:
    return BatchTensors.of(batch, torch.device("cpu"))


def case(page: Any, clicked: Any, history: Any, seed: int = 0) -> Case:
    vectors = np.random.default_rng(seed).normal(size=(IMAGES, WIDTH))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    page, history = np.array(page, np.int32), np.array(history, np.int32)
    ids, categories = tuple(f"p{n}" for n in range(IMAGES)), np.arange(IMAGES) % 2
    page_views = PageViews(ids, categories, page, np.array(clicked, bool) & (page >= 0), history)
    return Case(page_views, torch.tensor(vectors, dtype=torch.float32))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Padding anywhere on a page, histories of 0 to 5 clicks, no click to all clicks."""
    rows = draw(st.integers(1, 5))
    image = st.integers(0, IMAGES - 1)
    page = draw(st.lists(st.lists(st.integers(-1, IMAGES - 1), min_size=5, max_size=5), min_size=rows, max_size=rows))
    page[0][0] = max(page[0][0], 0)
    clicked = draw(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=rows, max_size=rows))
    clicks = draw(st.lists(st.lists(image, max_size=5), min_size=rows, max_size=rows))
    return case(page, clicked, [known + [-1] * (5 - len(known)) for known in clicks], draw(st.integers(0, 2**16)))


def objective_of(**changes: Any) -> BehaviourObjective:
    torch.manual_seed(0)
    config = from_mapping(TINY, unflatten({full_name(TINY, name, within="courier"): changes[name] for name in changes}))
    objective = build_objective(config, some_case().page_views)
    assert isinstance(objective, BehaviourObjective)
    return objective


def some_case() -> Case:
    page = [[0, 1, 2, -1, 3], [4, -1, 0, 5, 6], [1, 1, -1, -1, 2]]
    clicked = [[1, 0, 1, 0, 0], [0, 0, 1, 0, 0], [1, 1, 0, 0, 1]]
    return case(page, clicked, [[3, 4, 5, -1, -1], [2, 6, -1, -1, -1], [0, 0, 1, 2, 4]])


# --- the plain loops ------------------------------------------------------------------------------------------------


def slow_rebuilt(objective: BehaviourObjective, target: Tensor, history: list[Tensor]) -> Tensor:
    attention, size, parts = objective.intention, WIDTH // HEADS, []
    history = history or [attention.nothing_clicked]  # type: ignore[list-item]
    for head in range(HEADS):
        span = slice(head * size, (head + 1) * size)
        query = attention.query(target)[span]  # type: ignore[operator]
        scores = [math.exp(float(query @ attention.key(one)[span]) / math.sqrt(size)) for one in history]  # type: ignore[operator]
        parts.append(sum(s / sum(scores) * one[span] for s, one in zip(scores, history, strict=True)))
    rebuilt = torch.cat(parts)  # type: ignore[arg-type]
    return rebuilt / rebuilt.norm()


def slow_contrast(rebuilt: dict[Any, Tensor], candidates: dict[Any, int], vectors: Tensor, within: bool) -> float:
    """rebuilt: anchor -> vector; candidates: place -> image. Mean over anchors of -log of the own one's share."""
    losses = []
    for anchor, r in rebuilt.items():
        own, total = candidates[anchor], 0.0
        for place, image in candidates.items():
            if place == anchor or (image != own and (not within or image % 2 == own % 2)):
                total += math.exp(float(vectors[image] @ r) / TAU - float(vectors[own] @ r) / TAU)
        losses.append(math.log(total))
    return sum(losses) / len(losses) if losses else 0.0


def slow_losses(objective: BehaviourObjective, example: Case) -> list[float]:
    page_views, vectors, within = example.page_views, example.vectors, objective.within_category
    histories = [[int(image) for image in row if image >= 0] for row in page_views.history]
    shown = {(r, p): int(i) for r, row in enumerate(page_views.page) for p, i in enumerate(row) if i >= 0}
    rebuilt = {
        (r, p): slow_rebuilt(objective, vectors[image], [vectors[i] for i in histories[r]])
        for (r, p), image in shown.items()
    }
    anchors = {place: rebuilt[place] for place in shown if page_views.clicked[place] and histories[place[0]]}
    newest = {r: history[0] for r, history in enumerate(histories) if history}
    older = {
        r: slow_rebuilt(objective, vectors[newest[r]], [vectors[i] for i in histories[r][1:]])
        for r in newest
        if len(histories[r]) > 1
    }
    clicks = []
    for place, image in shown.items():
        logit = float(objective.click_head(rebuilt[place][None, None], vectors[image][None, None]))
        chance = 1 / (1 + math.exp(-logit))
        clicks.append(-math.log(chance if page_views.clicked[place] else 1 - chance))
    return [
        slow_contrast(anchors, shown, vectors, within),
        slow_contrast(older, newest, vectors, within),
        sum(clicks) / len(clicks),
    ]


@untimed
@given(cases(), st.sampled_from(["all", "category"]))
def test_the_objective_equals_plain_loops_from_vectors_to_losses(example: Case, negatives: str) -> None:
    objective = objective_of(negatives=negatives).requires_grad_(False)
    fast = example.losses(objective).tolist()
    assert fast == pytest.approx(slow_losses(objective, example), rel=1e-3, abs=1e-4)


@untimed
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_loss(example: Case, random: Any) -> None:
    objective, order = objective_of().requires_grad_(False), list(range(len(example.page_views)))
    random.shuffle(order)
    torch.testing.assert_close(example.losses(objective, order), example.losses(objective), atol=1e-4, rtol=1e-4)


@untimed
@given(cases())
def test_a_row_without_anything_changes_no_loss(example: Case) -> None:
    objective, page_views = objective_of().requires_grad_(False), example.page_views
    nothing = np.full((1, 5), -1, np.int32)
    longer = replace(
        page_views,
        page=np.concatenate([page_views.page, nothing]),
        clicked=np.concatenate([page_views.clicked, nothing > 0]),
        history=np.concatenate([page_views.history, nothing]),
    )
    padded = Case(longer, example.vectors)
    torch.testing.assert_close(padded.losses(objective), example.losses(objective), atol=1e-5, rtol=1e-4)


# --- the ablations --------------------------------------------------------------------------------------------------


def gradients(objective: BehaviourObjective, weights: tuple[float, ...]) -> dict[str, Tensor]:
    example = some_case()
    example.vectors.requires_grad_()
    objective.zero_grad()
    (torch.tensor(weights) * example.losses(objective)).sum().backward()
    found = {name: one.grad for name, one in objective.named_parameters() if one.grad is not None}
    return found | {"vectors": example.vectors.grad}  # type: ignore[dict-item]


@pytest.mark.parametrize("term", [0, 1, 2])
def test_a_weight_of_nothing_leaves_the_gradient_of_the_other_losses(term: int) -> None:
    names = ("weight_pv", "weight_ucs", "weight_click")
    objective = objective_of(**{names[term]: 0.0})
    assert objective.weights[term] == 0
    without, alone = gradients(objective, objective.weights), [0.0, 0.0, 0.0]
    for other in {0, 1, 2} - {term}:
        alone[other] = 1.0
    for name, gradient in gradients(objective_of(), tuple(alone)).items():
        torch.testing.assert_close(without[name], gradient, msg=name)
    assert any((gradient != 0).any() for gradient in without.values())
    touched = any((without[name] != 0).any() for name in without if name.startswith("click_head"))
    assert touched == (term != 2)


def test_with_a_projection_head_the_losses_see_it_and_the_vectors_kept_do_not() -> None:
    plain, projected = objective_of(), objective_of(projection_head=True)
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(projected.encode(images), plain.encode(images))
    assert plain.encoder.state_dict().keys() == projected.encoder.state_dict().keys()
    assert (some_case().losses(plain) != some_case().losses(projected)).all()
    assert (gradients(projected, (1, 1, 1))["vectors"] != 0).any()
    projected.projection = torch.nn.Identity()  # type: ignore[assignment]
    torch.testing.assert_close(some_case().losses(projected), some_case().losses(plain))


def test_self_attention_never_learns_what_it_is_to_foretell() -> None:
    example, objective = some_case(), objective_of(attention="self")
    batch = tensors(example.batch())
    history = example.vectors[batch.history]
    one, other = (objective.intention(torch.randn(3, 5, WIDTH), history, batch.history_mask) for _ in range(2))
    torch.testing.assert_close(one, other)
    assert (one - one.roll(1, 0)).abs().max() > 0.01  # yet it knows the user
    assert bool(example.losses(objective).isfinite().all())


def test_of_a_history_in_random_order_any_click_is_rebuilt_and_no_padding() -> None:
    objective, newest = objective_of(history_order="random"), objective_of()
    history_mask = torch.arange(5)[None, :] < torch.tensor([0, 1, 3, 5])[:, None]
    drawn = torch.cat([objective._place_of_newest(history_mask) for _ in range(200)], dim=1)
    assert [set(row.tolist()) for row in drawn] == [{0}, {0}, {0, 1, 2}, {0, 1, 2, 3, 4}]
    assert (newest._place_of_newest(history_mask) == 0).all()
    mine, plain = some_case().losses(objective), some_case().losses(newest)
    torch.testing.assert_close(mine[[0, 2]], plain[[0, 2]])


def test_a_random_click_is_rebuilt_from_all_the_others_newer_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of(history_order="random").requires_grad_(False)
    monkeypatch.setattr(objective, "_place_of_newest", lambda history_mask: torch.full((len(history_mask), 1), 1))
    first, second = ([[0, 1, 2, 3, 4]], [[0, 0, 0, 0, 0]]), [[2, 5, 6, -1, -1], [1, 3, 4, 0, -1]]
    swapped = [[5, 2, 6, -1, -1], [3, 1, 4, 0, -1]]
    page, clicked = first[0] * 2, first[1] * 2
    at_second = case(page, clicked, second).losses(objective)[1]
    torch.testing.assert_close(at_second, case(page, clicked, swapped).losses(objective_of())[1])


@pytest.mark.parametrize("length", [1, 3, 8, 50])
def test_histories_of_any_length_give_finite_losses_and_gradients(length: int) -> None:
    clicks = (np.arange(length) + np.arange(3)[:, None]) % IMAGES
    history = np.where(np.arange(length) < [[length], [length // 2], [0]], clicks, -1)
    example, objective = some_case(), objective_of(history=length, negatives="all")
    example = case(example.page_views.page, example.page_views.clicked, history)
    example.vectors.requires_grad_()
    losses = example.losses(objective)
    losses.sum().backward()
    assert bool(losses.isfinite().all())
    assert bool(example.vectors.grad.isfinite().all())  # type: ignore[union-attr]
    assert (losses[1] == 0) == (length == 1)  # one click has no older one to be rebuilt from


def test_padding_a_history_further_changes_no_loss() -> None:
    short = some_case()
    history = np.concatenate([short.page_views.history, np.full((3, 4), -1, np.int32)], axis=1)
    longer = Case(replace(short.page_views, history=history), short.vectors)
    objective = objective_of()
    torch.testing.assert_close(longer.losses(objective), short.losses(objective))


def test_without_the_mask_of_false_negatives_a_copy_is_a_negative() -> None:
    page, history = [[0, 0, 1, -1, -1]], [[2, 3, -1, -1, -1]]
    example = case(page, [[1, 0, 0, 0, 0]], history)
    masked, plain = (
        example.losses(objective_of(mask_false_negatives=mask, negatives="all"))[0] for mask in (True, False)
    )
    assert masked < plain


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention": "none"}, "unknown attention 'none': choose one of cross, self"),
        ({"history_order": "oldest"}, "unknown history_order 'oldest': choose one of newest, random"),
        ({"history_order": "random", "weight_ucs": 0.0}, "give weight_ucs more than 0"),
        ({"history_order": "random", "history": 1}, "history more than 1"),
        ({"heads": 3}, "not a multiple of 3 heads"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CourierError, match=says):
        objective_of(**changes)


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_any_number_of_heads_that_divides_the_width(heads: int) -> None:
    assert bool(some_case().losses(objective_of(heads=heads)).isfinite().all())


def test_the_encoder_alone_is_what_an_ablation_leaves_behind() -> None:
    choices: list[Callable[[], BehaviourObjective]] = [
        objective_of,
        lambda: objective_of(attention="self", projection_head=True),
    ]
    names = build_encoder(TINY).state_dict().keys()
    for choice in choices:
        assert choice().encoder.state_dict().keys() == names
