"""Each gate fails for the fault that it is there for, in one sentence, and passes without it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_releases import AT, EVEN, ITEMS, drawn_vectors, write_stages

from jobs.config import PromotionConfig
from jobs.releases import gates
from model.errors import CourierError
from model.releases import Release
from model.vector_index import VectorIndex


def release(name: str, auc: float | None, **protocol: Any) -> Release:
    metrics = {"auc": auc, **({"protocol": protocol} if protocol else {})}
    return Release(release_id=name, created_at=AT, space_id="s", ctr_model="m/n", artifacts={}, metrics=metrics)


def test_an_even_space_passes_and_a_collapsed_one_is_named_with_its_figures() -> None:
    pytest.importorskip("torch")
    assert gates.collapse({"collapse": EVEN, "distinct_images": 1000}) is None
    for figures in ({"effective_rank": 1.5}, {"deviation": 0.01}, {"effective_rank": None}):
        said = gates.collapse({"collapse": EVEN | figures, "distinct_images": 1000})
        assert said is not None
        assert said.startswith("the encoder is collapsed: effective rank")


@pytest.mark.parametrize(("found", "passes"), [(0.95, True), (0.9, True), (0.8999, False), (None, False)])
def test_an_index_that_misses_more_than_it_may_is_named_with_what_it_finds(found: float | None, passes: bool) -> None:
    said = gates.recall({"recall_at_10": found}, 0.9)
    assert (said is None) == passes
    assert said is None or f"finds {found} of the ten nearest" in said


def test_the_same_items_and_vectors_everywhere_are_reconciled(tmp_path: Path) -> None:
    folders = write_stages(tmp_path)
    assert gates.reconciliation(folders, folders["features"], "c0") is None


@pytest.mark.parametrize("stage", ["embed", "cluster", "features"])
@pytest.mark.parametrize("more", [True, False])
def test_an_item_in_one_place_only_is_named(tmp_path: Path, stage: str, more: bool) -> None:
    folders = write_stages(tmp_path)
    others = write_stages(tmp_path / "other", items=(*ITEMS, "i9") if more else ITEMS[:-1])
    folders |= {stage: others[stage]}
    said = gates.reconciliation(folders, folders["features"], "c0")
    place = "item_embedding" if stage == "features" else stage
    one, other = (place, "the index") if more else ("the index", place)
    item = "i9" if more else ITEMS[-1]
    assert said == f"1 items are in {one} and not in {other} (as '{item}'): run `courier run --from embed`"


def test_the_codes_of_another_codebook_are_not_those_of_a_release(tmp_path: Path) -> None:
    folders = write_stages(tmp_path)
    said = gates.reconciliation(folders, folders["features"], "cother")
    assert str(said).startswith(f"{len(ITEMS)} items are in the index and not in item_cluster")
    assert gates.reconciliation(folders, folders["features"], None) is None  # it names none: all are taken for its own


def test_a_vector_that_differs_by_one_bit_is_found(tmp_path: Path) -> None:
    folders = write_stages(tmp_path)
    vectors = drawn_vectors(0)
    vectors[2, 7] = np.nextafter(vectors[2, 7], np.float32(2))
    np.save(folders["embed"] / "vectors.npy", vectors)
    said = gates.reconciliation(folders, None, "c0")
    assert said == "1 items have another vector in the index than in embed (as 'i3'): run `courier run --from index`"


def test_an_index_of_another_width_is_named(tmp_path: Path) -> None:
    folders = write_stages(tmp_path)
    VectorIndex.build(drawn_vectors(0, width=8), ITEMS).save(folders["index"])
    said = gates.reconciliation(folders, None, "c0")
    assert said == "the index is 8 wide and the vectors 256: run `courier run --from embed`"


def test_a_release_may_lose_no_more_than_the_margin_against_the_current_one() -> None:
    current = release("r1", 0.60)
    assert gates.evaluation(release("r2", 0.596), current, 0.005) is None
    said = gates.evaluation(release("r2", 0.594), current, 0.005)
    assert said is not None
    assert "r2 has an AUC of 0.5940, r1 0.6000" in said
    assert "no AUC" in (gates.evaluation(release("r2", None), current, 0.005) or "")


def test_the_first_release_has_nothing_to_lose_against() -> None:
    assert gates.evaluation(release("r1", None), None, 0.005) is None
    assert gates.evaluation(release("r2", 0.6), release("r1", None), 0.005) is None


def test_figures_of_two_protocols_are_not_compared() -> None:
    shop, films = {"schema": 1, "dataset": "shop"}, {"schema": 1, "dataset": "films"}
    assert gates.evaluation(release("r2", 0.6, **shop), release("r1", 0.6, **shop), 0.005) is None
    said = gates.evaluation(release("r2", 0.9, **films), release("r1", 0.6, **shop), 0.005)
    assert said is not None
    assert "was evaluated otherwise" in said
    assert gates.evaluation(release("r2", 0.6, **films), release("r1", 0.6), 0.005) is None


@pytest.mark.parametrize("name", ["min_recall", "max_auc_loss"])
def test_a_bound_that_is_no_share_is_refused(name: str) -> None:
    with pytest.raises(CourierError, match=f"{name} is 1.5: give 0 to 1"):
        PromotionConfig(**{name: 1.5})
