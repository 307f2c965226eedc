"""The figures of a collapsed and of an evenly spread embedding."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from model.courier.training.collapse_metrics import Collapsed, measure, refuse_collapse

NO_PAIRS = torch.empty(0, 2, dtype=torch.long)


def test_vectors_spread_evenly_fill_every_dimension() -> None:
    spread = F.normalize(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    figures = measure(spread, NO_PAIRS)
    assert figures.deviation == pytest.approx(1.0, abs=0.02)
    assert figures.effective_rank == pytest.approx(16, abs=0.1)
    refuse_collapse(figures, 4000)


def test_two_opposite_points_have_rank_one_and_are_refused() -> None:
    points = F.normalize(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), dim=1).repeat(10, 1)
    figures = measure(points, torch.tensor([[0, 1], [0, 2]]))
    assert figures.effective_rank == pytest.approx(1.0)
    assert figures.alignment == pytest.approx((4 + 0) / 2)
    with pytest.raises(Collapsed, match=r"effective rank 1\.00 \(at least 4\.0\)"):
        refuse_collapse(figures, 100)


def test_one_point_has_no_deviation_and_uniformity_zero() -> None:
    figures = measure(torch.ones(10, 4) / 2, NO_PAIRS)
    assert (figures.deviation, figures.uniformity, figures.alignment) == (0.0, 0.0, 0.0)
    with pytest.raises(Collapsed, match=r"deviation 0\.000"):
        refuse_collapse(figures, 10)


@pytest.mark.parametrize("name", ["deviation", "effective_rank"])
def test_an_encoder_whose_vectors_are_no_numbers_is_refused(name: str) -> None:
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    figures = replace(measure(points, NO_PAIRS), **{name: math.nan})
    with pytest.raises(Collapsed, match=f"{name.replace('_', ' ')} nan"):
        refuse_collapse(figures, 3)


def test_a_figure_that_is_not_defined_is_a_fact_and_one_that_there_is_not_is_none() -> None:
    figures = measure(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), NO_PAIRS)
    assert "attention_entropy" not in figures.as_facts()
    assert math.isnan(replace(figures, attention_entropy=math.nan).as_facts()["attention_entropy"])


def test_uniformity_is_the_log_mean_potential_of_all_pairs() -> None:
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # squared distances 2, 4, 2
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert measure(points, NO_PAIRS).uniformity == pytest.approx(expected)
