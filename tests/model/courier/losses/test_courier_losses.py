"""The three losses equal slow plain loops on generated batches."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.courier.losses.baseline_losses import image_title_contrast, nt_xent
from model.courier.losses.courier_losses import click_prediction, pv_contrast, user_click_sequence_contrast

untimed = settings(deadline=None, max_examples=50)  # a busy machine is no failure

TAU = 0.05
PAGE, HISTORY, WIDTH = 5, 5, 8


@dataclass
class Rows:
    """A generated batch: what the encoder and the attention would have given."""

    page: Tensor
    rebuilt: Tensor
    shown: Tensor
    clicked: Tensor
    image: Tensor
    newest: Tensor
    rebuilt_newest: Tensor
    clicks: Tensor
    newest_image: Tensor
    group: Tensor | None
    newest_group: Tensor | None
    logit: Tensor

    def take(self, rows: Tensor) -> "Rows":
        return Rows(**{name: None if value is None else value[rows] for name, value in vars(self).items()})

    def pv(self, mask: bool = True) -> Tensor:
        return pv_contrast(
            self.page,
            self.rebuilt,
            self.clicked,
            self.shown,
            self.clicks > 0,
            self.image,
            self.group,
            temperature=TAU,
            mask_false_negatives=mask,
        )

    def ucs(self, mask: bool = True) -> Tensor:
        return user_click_sequence_contrast(
            self.newest,
            self.rebuilt_newest,
            self.clicks,
            self.newest_image,
            self.newest_group,
            temperature=TAU,
            mask_false_negatives=mask,
        )

    def click(self) -> Tensor:
        return click_prediction(self.logit, self.clicked, self.shown)


def unit(rng: np.random.Generator, *shape: int) -> Tensor:
    vectors = rng.normal(size=(*shape, WIDTH))
    return torch.tensor(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=torch.float32)


@st.composite
def batches(draw: st.DrawFn) -> Rows:
    """Padding anywhere, histories of 0 to 5 clicks, no click to all clicks, few images so that many are the same."""
    count = draw(st.integers(1, 6))
    cell = st.tuples(st.booleans(), st.booleans(), st.integers(0, 6))
    cells = draw(st.lists(cell, min_size=count * PAGE, max_size=count * PAGE))
    shown, clicked, image = (np.array(column).reshape(count, PAGE) for column in zip(*cells, strict=True))
    clicks = np.array(draw(st.lists(st.integers(0, HISTORY), min_size=count, max_size=count)))
    newest = np.array(draw(st.lists(st.integers(0, 6), min_size=count, max_size=count)))
    within = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return Rows(
        page=unit(rng, count, PAGE),
        rebuilt=unit(rng, count, PAGE),
        shown=torch.tensor(shown),
        clicked=torch.tensor(clicked & shown),
        image=torch.tensor(np.where(shown, image, -1)),
        newest=unit(rng, count),
        rebuilt_newest=unit(rng, count),
        clicks=torch.tensor(clicks),
        newest_image=torch.tensor(np.where(clicks > 0, newest, -1)),
        group=torch.tensor(image % 2) if within else None,
        newest_group=torch.tensor(newest % 2) if within else None,
        logit=torch.tensor(rng.normal(size=(count, PAGE)), dtype=torch.float32),
    )


def slow_contrast(embedded, rebuilt, anchors, candidates, image, group, mask):  # type: ignore[no-untyped-def]
    def logit(i, j):  # type: ignore[no-untyped-def]
        return float(embedded[i] @ rebuilt[j]) / TAU

    losses = []
    for j in anchors:
        total = 0.0
        for i in candidates:
            fair = (not mask or image[i] != image[j]) and (group is None or group[i] == group[j])
            if i == j or fair:
                total += math.exp(logit(i, j) - logit(j, j))
        losses.append(math.log(total))
    return sum(losses) / len(losses) if losses else 0.0


def slow_pv(rows: Rows, mask: bool) -> float:
    places = [(r, p) for r in range(len(rows.page)) for p in range(PAGE)]
    candidates = [place for place in places if rows.shown[place]]
    anchors = [(r, p) for r, p in candidates if rows.clicked[r, p] and rows.clicks[r] > 0]
    return slow_contrast(rows.page, rows.rebuilt, anchors, candidates, rows.image, rows.group, mask)


def slow_ucs(rows: Rows, mask: bool) -> float:
    candidates = [r for r in range(len(rows.page)) if rows.clicks[r] >= 1]
    anchors = [r for r in candidates if rows.clicks[r] >= 2]
    vectors, images = (rows.newest, rows.rebuilt_newest), (rows.newest_image, rows.newest_group)
    return slow_contrast(*vectors, anchors, candidates, *images, mask)


def slow_click(rows: Rows) -> float:
    losses = []
    for r in range(len(rows.page)):
        for p in range(PAGE):
            if rows.shown[r, p]:
                chance = 1 / (1 + math.exp(-float(rows.logit[r, p])))
                losses.append(-math.log(chance if rows.clicked[r, p] else 1 - chance))
    return sum(losses) / len(losses) if losses else 0.0


@untimed
@given(batches(), st.booleans())
def test_page_view_contrast_equals_the_plain_loop(rows: Rows, mask: bool) -> None:
    assert rows.pv(mask).item() == pytest.approx(slow_pv(rows, mask), rel=1e-4, abs=1e-4)


@untimed
@given(batches(), st.booleans())
def test_user_click_sequence_contrast_equals_the_plain_loop(rows: Rows, mask: bool) -> None:
    assert rows.ucs(mask).item() == pytest.approx(slow_ucs(rows, mask), rel=1e-4, abs=1e-4)


@untimed
@given(batches())
def test_click_prediction_equals_the_plain_loop(rows: Rows) -> None:
    assert rows.click().item() == pytest.approx(slow_click(rows), rel=1e-4, abs=1e-5)


@untimed
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_loss(rows: Rows, random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(rows.page)))
    random.shuffle(order)
    other = rows.take(torch.tensor(order))
    for loss in (Rows.pv, Rows.ucs, Rows.click):
        assert loss(other).item() == pytest.approx(loss(rows).item(), rel=1e-4, abs=1e-4)


@untimed
@given(batches())
def test_a_padded_row_changes_no_loss(rows: Rows) -> None:
    longer = rows.take(torch.tensor([*range(len(rows.page)), 0]))
    longer.shown[-1], longer.clicked[-1], longer.image[-1] = False, False, -1
    longer.clicks[-1], longer.newest_image[-1] = 0, -1
    for loss in (Rows.pv, Rows.ucs, Rows.click):
        assert loss(longer).item() == pytest.approx(loss(rows).item(), rel=1e-5, abs=1e-6)


@untimed
@given(batches())
def test_what_lies_in_a_padded_place_gets_no_gradient(rows: Rows) -> None:
    rows.page.requires_grad_(True)
    rows.rebuilt.requires_grad_(True)
    rows.pv().backward()  # type: ignore[no-untyped-call]
    assert rows.page.grad is not None
    assert rows.rebuilt.grad is not None
    assert torch.isfinite(rows.page.grad).all()
    assert (rows.page.grad[~rows.shown] == 0).all()
    assert (rows.rebuilt.grad[~rows.clicked] == 0).all()


def rows_of(image: list[list[int]], clicked: list[list[bool]]) -> Rows:
    """Every vector alike, so that the loss is the log of the number of images in the softmax."""
    count, page = len(image), len(image[0])
    same = torch.nn.functional.normalize(torch.ones(count, page, WIDTH), dim=-1)
    return Rows(
        page=same,
        rebuilt=same,
        shown=torch.tensor(image) >= 0,
        clicked=torch.tensor(clicked),
        image=torch.tensor(image),
        newest=same[:, 0],
        rebuilt_newest=same[:, 0],
        clicks=torch.full((count,), 2),
        newest_image=torch.tensor(image)[:, 0],
        group=None,
        newest_group=None,
        logit=torch.zeros(count, page),
    )


def test_the_same_image_elsewhere_in_the_batch_leaves_the_softmax_unless_switched_off() -> None:
    rows = rows_of([[1, 2], [1, 3]], [[True, False], [False, False]])
    assert rows.pv(mask=True).item() == pytest.approx(math.log(3))
    assert rows.pv(mask=False).item() == pytest.approx(math.log(4))
    assert rows.ucs(mask=True).item() == pytest.approx(0.0, abs=1e-6)
    assert rows.ucs(mask=False).item() == pytest.approx(math.log(2))


def test_with_groups_given_only_images_of_the_same_one_are_negatives() -> None:
    rows = rows_of([[1, 2, 3], [4, 5, 6]], [[True, False, False], [False, False, False]])
    rows.group, rows.newest_group = torch.tensor([[7, 7, 8], [8, 7, 8]]), torch.tensor([7, 8])
    assert rows.pv().item() == pytest.approx(math.log(3))
    assert rows.ucs().item() == pytest.approx(0.0, abs=1e-6)


def test_unclicked_images_of_the_same_page_are_negatives() -> None:
    assert rows_of([[1, 2, 3]], [[True, False, False]]).pv().item() == pytest.approx(math.log(3))


def test_without_a_click_the_contrast_is_zero_and_the_click_loss_is_not() -> None:
    rows = rows_of([[1, 2]], [[False, False]])
    assert rows.pv().item() == 0.0
    assert rows.click().item() == pytest.approx(math.log(2))


def test_a_row_without_history_is_no_anchor_but_stays_a_negative() -> None:
    rows = rows_of([[1, 2], [3, 4]], [[True, False], [True, False]])
    rows.clicks = torch.tensor([0, 1])
    assert rows.pv().item() == pytest.approx(math.log(4))
    rows.clicks = torch.tensor([0, 0])
    assert rows.pv().item() == 0.0


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_no_cosine(half: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    first, second, numbers, there = unit(rng, 40), unit(rng, 40), torch.arange(40), torch.ones(40, dtype=torch.bool)
    at = {"temperature": 0.02, "mask_false_negatives": True}

    def losses() -> Tensor:
        page, rebuilt = first.reshape(8, PAGE, WIDTH), second.reshape(8, PAGE, WIDTH)
        every = there.reshape(8, PAGE)
        return torch.stack(
            [
                pv_contrast(page, rebuilt, every, every, there[:8], numbers.reshape(8, PAGE), **at),  # type: ignore[arg-type]
                user_click_sequence_contrast(first, second, numbers + 2, numbers, **at),  # type: ignore[arg-type]
                nt_xent(first, second, numbers, **at),  # type: ignore[arg-type]
                image_title_contrast(first, second, there, numbers, numbers, **at),  # type: ignore[arg-type]
            ]
        )

    with torch.autocast("cpu", half):
        halved = losses()
    torch.testing.assert_close(halved, losses(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_cosine_is_divided_by_the_temperature(temperature: float) -> None:
    page = torch.eye(2).reshape(1, 2, 2)  # e.r is 1 for the clicked image and 0 for the other
    loss = pv_contrast(
        page,
        page,
        torch.tensor([[True, False]]),
        torch.tensor([[True, True]]),
        torch.tensor([True]),
        torch.tensor([[1, 2]]),
        temperature=temperature,
        mask_false_negatives=True,
    )
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1 / temperature)))
