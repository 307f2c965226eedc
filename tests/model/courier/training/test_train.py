"""Pre-training: one process and two agree, a run repeats itself, and a collapsed encoder is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.courier.config import CourierConfig
from model.courier.data.batches import Batch, Counts, PageViews, rows_of_step, take_batch
from model.courier.data.loader import BatchTensors, Features
from model.courier.losses.courier_objective import BehaviourObjective
from model.courier.losses.objective import Objective
from model.courier.network.encoder import build_encoder, load_encoder
from model.courier.training import collapse_metrics, train
from model.courier.training.array_cache import ArrayCache
from model.courier.training.card import warm_start_of
from model.courier.training.checkpoint import Checkpoint
from model.courier.training.gradients import Gradients
from model.courier.training.process_group import ProcessGroup
from model.courier.training.trainer import Trained, learning_rate_at
from model.errors import CourierError
from model.settings import flatten

ROOT = Path(__file__).parents[4]
SIZE, IMAGES, ROWS = 16, 24, 60
TINY = CourierConfig(
    backbone="small", backbone_weights="random", image_size=SIZE, batch_rows=16, steps=25, warmup_steps=5
)
ABLATED = {"attention": "self", "projection_head": True, "within_category": False, "mask_false_negatives": False}
SPEEDS = ("images_per_second", "loader_stall")


def generated_views(seed: int = 0) -> PageViews:
    rng = np.random.default_rng(seed)
    page = rng.integers(0, IMAGES, (ROWS, 5)).astype(np.int32)
    page[:, 3:][rng.random((ROWS, 2)) < 0.3] = -1
    length = rng.integers(0, 6, ROWS)
    history = np.where(np.arange(5) < length[:, None], rng.integers(0, IMAGES, (ROWS, 5)), -1).astype(np.int32)
    clicked = (rng.random((ROWS, 5)) < 0.3) & (page >= 0)
    return PageViews(tuple(f"p{n:02d}" for n in range(IMAGES)), np.arange(IMAGES) % 3, page, clicked, history)


def objective(**changes: Any) -> Objective:
    torch.manual_seed(0)
    encoder = build_encoder(replace(TINY, trainable="all"))
    choices = {
        "width": 256,
        "heads": 4,
        "value_maps": True,
        "temperature": 0.05,
        "mask_false_negatives": True,
        "within_category": True,
        "from_features": False,
    }
    return BehaviourObjective(encoder, **choices | changes)


def pixels_of(batch: Batch) -> torch.Tensor:
    pixels = torch.randn(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return pixels[torch.from_numpy(batch.images)]


def gradients(model: nn.Module, inner: Objective, batch: Batch) -> dict[str, torch.Tensor]:
    losses = model(pixels_of(batch), BatchTensors.of(batch, torch.device("cpu")))
    losses.sum().backward()
    found = {name: p.grad.contiguous() for name, p in inner.named_parameters() if p.grad is not None}
    return found | {"losses": losses.detach()}


def chunked_gradients(inner: Objective, batch: Batch, group: ProcessGroup) -> dict[str, torch.Tensor]:
    """The same, with gradient caching in chunks of seven."""
    tensors = BatchTensors.of(batch, torch.device("cpu"))
    losses = Gradients(inner, group, chunk_images=7, precision="fp32").of(pixels_of(batch), Tensor.clone, tensors)
    found = {name: p.grad.contiguous() for name, p in inner.named_parameters() if p.grad is not None}
    return found | {"losses": losses}


def one_of_two_processes(rank: int, folder: Path) -> None:
    """What each process of the two-process test runs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    inner = objective()
    batch = take_batch(generated_views(), np.arange(32).reshape(2, 16)[rank])
    save_file(gradients(DistributedDataParallel(inner), inner, batch), folder / f"whole{rank}.safetensors")
    inner = objective()
    group = ProcessGroup(rank, 2, torch.device("cpu"))
    save_file(chunked_gradients(inner, batch, group), folder / f"in chunks{rank}.safetensors")
    inner = objective(**ABLATED)
    save_file(gradients(DistributedDataParallel(inner), inner, batch), folder / f"ablated{rank}.safetensors")
    dist.destroy_process_group()


def run_together(commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]]) -> None:
    base = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, *command], env=base | extra, stderr=subprocess.PIPE, cwd=ROOT)
        for command, extra in zip(commands, environments, strict=True)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr.decode()[-2000:]


def test_two_processes_give_the_gradients_of_one_on_the_same_global_batch_whole_or_in_chunks(tmp_path: Path) -> None:
    run_together([[__file__, str(rank), str(tmp_path)] for rank in range(2)], [{}, {}])
    for inner, parts in ((objective(), ("whole", "in chunks")), (objective(**ABLATED), ("ablated",))):
        alone = gradients(inner, inner, take_batch(generated_views(), np.arange(32)))
        for part in (f"{part}{rank}" for part in parts for rank in range(2)):
            theirs = load_file(tmp_path / f"{part}.safetensors")
            assert theirs.keys() == alone.keys()
            for name, gradient in alone.items():
                torch.testing.assert_close(theirs[name], gradient, atol=1e-5, rtol=1e-4, msg=f"{part} {name}")


def test_encoding_each_image_once_equals_encoding_every_place() -> None:
    inner, page_views = objective(), generated_views()
    batch = take_batch(page_views, np.arange(12))
    once = gradients(inner, inner, batch)
    inner.zero_grad()
    wide = np.concatenate([page_views.page[:12], page_views.history[:12]], axis=1)
    every = Batch(
        images=np.maximum(wide, 0).ravel().astype(np.int64),
        page=np.arange(wide.size).reshape(wide.shape)[:, :5],
        history=np.arange(wide.size).reshape(wide.shape)[:, 5:],
        shown=batch.shown,
        clicked=batch.clicked,
        history_mask=batch.history_mask,
        page_image=batch.page_image,
        history_image=batch.history_image,
        page_category=batch.page_category,
        history_category=batch.history_category,
    )
    again = gradients(inner, inner, every)
    for name, gradient in once.items():
        torch.testing.assert_close(again[name], gradient, atol=2e-5, rtol=1e-3, msg=name)


@pytest.fixture
def inputs(pretrain_inputs: dict[str, Path]) -> dict[str, Path]:
    return pretrain_inputs


def curve(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "loss.jsonl").read_text("utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in SPEEDS} for line in lines]


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_the_same_seed_gives_the_same_curve_and_space(inputs: dict[str, Path], tmp_path: Path, trainable: str) -> None:
    config = replace(TINY, trainable=trainable, learning_rate=1e-4, feature_dropout=0.1)
    first, again = (train.build(**inputs, out=tmp_path / name, config=config) for name in ("first", "again"))
    assert curve(tmp_path / "first") == curve(tmp_path / "again")
    assert first.facts["space_id"] == again.facts["space_id"]
    other = train.build(**inputs, out=tmp_path / "other", config=replace(config, seed=1))
    assert other.facts["space_id"] != first.facts["space_id"]


def test_training_lowers_every_loss_and_leaves_the_frozen_backbone_alone(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    train.build(**inputs, out=out, config=replace(TINY, steps=80))
    first, last = curve(out)[0], curve(out)[-1]
    assert all(last[name] < first[name] for name in ("loss", "pv", "ucs", "click"))
    torch.manual_seed(TINY.seed)
    before, after = build_encoder(TINY).state_dict(), load_encoder(out).module.state_dict()
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) == name.startswith("backbone."), name


def test_the_manifest_says_what_was_trained_on_what(inputs: dict[str, Path], tmp_path: Path) -> None:
    manifest = train.build(**inputs, out=tmp_path / "out", config=TINY)
    facts = manifest.facts
    assert (facts["trained_from"], facts["trained_until"]) == ("2025-01-01T00:00:00+00:00", "2025-01-20T00:00:00+00:00")
    assert (facts["page_views"], facts["distinct_images"], facts["steps"]) == (150, IMAGES, 25)
    assert facts["encoder"] == "courier-small"
    assert set(facts["collapse"]) == {"deviation", "effective_rank", "alignment", "uniformity", "attention_entropy"}
    assert 0 <= facts["collapse"]["attention_entropy"] <= 1
    assert 0 <= manifest.notes["loader_stall"] <= 1
    assert (tmp_path / "out" / "objective.safetensors").is_file()


def test_the_card_names_data_metrics_and_the_licence_of_the_warm_start(inputs: dict[str, Path], tmp_path: Path) -> None:
    card = train.build(**inputs, out=tmp_path / "out", config=TINY).facts["card"]
    assert card["data"]["page_views"] == 150
    assert card["data"]["clicks"] > 150
    assert card["metrics"]["loss"] == curve(tmp_path / "out")[-1]
    assert card["warm_start"]["licence"] is None
    assert warm_start_of("imagenet")["licence"] == "Apache-2.0"


def test_the_curve_shows_the_collapse_figures_and_the_loaders_stall_as_it_grows(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    train.build(**inputs, out=tmp_path / "out", config=replace(TINY, trainable="all"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "loss.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 25]
    for line in lines:
        assert 1 <= line["effective_rank"] <= IMAGES
        assert line["deviation"] > 0
        assert line["uniformity"] <= 0
        assert 0 <= line["alignment"] <= 4
        assert 0 <= line["attention_entropy"] <= 1
        assert 0 <= line["loader_stall"] <= 1


class DoubleTrainer(train.Trainer):
    """The trainer of a head, in double precision from the same features and the same first weights."""

    def __init__(self, objective: Objective, config: CourierConfig, group: ProcessGroup) -> None:
        objective.double().encoder.backbone.to(torch.float32)
        super().__init__(objective, config, group)

    def run(self, batch_of: Callable[[int], Batch], source: Any, checkpoint: Checkpoint | None = None) -> Trained:
        return super().run(batch_of, Features(source.standard.double()), checkpoint)


def test_two_processes_started_like_torchrun_give_the_curve_of_one(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each within what float32 rounds off one step's losses, from one run in double precision: steps add nothing.

    A cosine of unit vectors in D dimensions is at most D u from its true value (Higham 2002, Accuracy and Stability of
    Numerical Algorithms, section 3.1; u: 2^-24), a logit that by the temperature, and a cross-entropy, whose gradient
    by the logits sums to no more than 2 in absolute terms, twice as much.
    """
    with monkeypatch.context() as double:
        double.setattr(train, "Trainer", DoubleTrainer)
        double.setattr(Tensor, "float", Tensor.double)  # what keeps half precision out keeps double in
        train.build(**inputs, out=tmp_path / "double", config=TINY)
    train.build(**inputs, out=tmp_path / "one", config=TINY)
    out = tmp_path / "two"
    options = [f"--{name}={path}" for name, path in (inputs | {"out": out}).items()]
    options += [f"--set={name}={value}" for name, value in flatten(TINY).items()]
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [store | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    run_together([["-m", "model.courier.training.train", *options]] * 2, ranks)
    rounding = 2 * TINY.width * 2**-24 / TINY.courier.temperature
    for run in (tmp_path / "one", out):
        for found, exact in zip(curve(run), curve(tmp_path / "double"), strict=True):
            losses = {name: exact.pop(name) for name in ("loss", "pv", "ucs", "click")}
            assert {name: found.pop(name) for name in losses} == pytest.approx(losses, abs=3 * rounding, rel=0)
            assert found == pytest.approx(exact, abs=2e-4, rel=1e-5)  # of two numbers rounded to 4 decimals


def free_port() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_a_collapsed_encoder_is_refused_with_its_figures_and_writes_nothing(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collapse_metrics, "MIN_DEVIATION", 1.5)  # more than any encoder can reach
    with pytest.raises(collapse_metrics.Collapsed, match=r"effective rank [\d.]+ .* deviation [\d.]+"):
        train.build(**inputs, out=tmp_path / "out", config=TINY)
    assert not (tmp_path / "out").exists()


def test_the_learning_rate_warms_up_and_ends_at_nothing() -> None:
    shares = [learning_rate_at(step, 100, 10) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0.0, abs=1e-12)


def test_a_batch_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    alone = ProcessGroup(0, 3, torch.device("cpu"))
    pixels = np.zeros((IMAGES, SIZE, SIZE, 3), np.uint8)
    cache, checkpoint = ArrayCache(tmp_path, "", alone), Checkpoint(tmp_path, "", 1)
    with pytest.raises(CourierError, match="batch_rows 16 can't be split over 3 processes"):
        train.train(generated_views(), pixels, train.Preprocessing(size=SIZE), TINY, alone, cache, checkpoint)


def test_the_processes_split_the_global_batch_without_overlap() -> None:
    page_views = generated_views()
    rows = rows_of_step(len(page_views), 16, 3, 0)
    halves = [
        train._local_batch(page_views, TINY, 3, ProcessGroup(rank, 2, torch.device("cpu"))).page_image
        for rank in range(2)
    ]
    assert (np.concatenate(halves) == page_views.page[rows]).all()


@dataclass(frozen=True)
class Behaviour:
    """What is asked of a sequences artifact's manifest."""

    facts: dict[str, int]


def views(rows: int, images: int, *, clicked: bool = False, known: bool = False) -> PageViews:
    """Page views of one item each, in turn of so many images, of ten that were read."""
    page = np.full((rows, 5), -1, np.int32)
    page[:, 0] = np.arange(rows) % images
    history = np.full((rows, 3), -1, np.int32)
    history[0, 0] = 0 if known else -1
    marks = np.zeros((rows, 5), bool)
    marks[0, 0] = clicked
    names = tuple(f"p{n}" for n in range(images))
    counts = Counts(page_views_read=10, page_views_without_image=10 - rows)
    return PageViews(names, np.zeros(images, np.int64), page, marks, history, counts=counts)


@pytest.mark.parametrize(
    ("shown", "facts", "told"),
    [
        (views(1, 1, clicked=True), {}, "1 of 10 page views of the training period shows an item with a usable image"),
        (views(9, 1, clicked=True), {}, "the 9 page views of the training period show 1 distinct image"),
        (views(9, 2), {"clicks": 0, "unmatched_clicks": 0}, "none of the 9 page views .*: no event is a click; check"),
        (views(9, 2), {"clicks": 7, "unmatched_clicks": 6}, "of 7 clicks 6 name no page view that shows their item"),
    ],
)
def test_page_views_that_teach_nothing_are_refused_with_their_number(
    shown: PageViews, facts: dict[str, int], told: str
) -> None:
    with pytest.raises(CourierError, match=told):
        train.require_enough(TINY, shown, Behaviour(facts))  # type: ignore[arg-type]


def test_a_click_on_a_page_or_before_it_or_a_method_without_clicks_is_enough() -> None:
    for shown in (views(2, 2, clicked=True), views(2, 2, known=True)):
        train.require_enough(TINY, shown, Behaviour({}))  # type: ignore[arg-type]
    train.require_enough(replace(TINY, method="simclr"), views(2, 2), Behaviour({}))  # type: ignore[arg-type]


if __name__ == "__main__":
    one_of_two_processes(int(sys.argv[1]), Path(sys.argv[2]))
