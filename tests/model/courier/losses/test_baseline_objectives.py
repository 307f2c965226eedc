"""The baselines: each learns on tiny images, the same from the same seed, and on two processes as on one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.courier.config import ClipConfig, CourierConfig, CourierMethodConfig, SimClrConfig, for_method
from model.courier.data.augmentation import draw_crops
from model.courier.data.batches import PageViews, take_batch
from model.courier.data.loader import BatchTensors
from model.courier.data.normalise import normalise
from model.courier.losses.baseline_objectives import Clip, SimClr, SimSiam
from model.courier.losses.objective import Objective
from model.courier.network.encoder import embed_images, feature_batches, load_encoder
from model.courier.training import train
from model.courier.training.gradients import Gradients
from model.courier.training.methods import METHODS, UNTRAINED, build_objective, settle
from model.courier.training.process_group import ProcessGroup
from model.errors import CourierError
from model.settings import replace_setting
from model.space import Preprocessing

ROOT = Path(__file__).parents[4]
SIZE, IMAGES, ROWS = 16, 24, 12
TINY = CourierConfig(backbone="small", backbone_weights="random", trainable="all", image_size=SIZE, width=32)
BASELINES = ("simclr", "simsiam", "clip")
TRAINED = [method for method in METHODS if method not in UNTRAINED]
PLAIN = Preprocessing(size=SIZE)


def generated_views() -> PageViews:
    rng = np.random.default_rng(0)
    page, history = (rng.integers(0, IMAGES, (ROWS, 5)).astype(np.int32) for _ in range(2))
    titles = tuple("" if n % 7 == 3 else f"{('Red', 'Blue', 'Green')[n % 3]} Lamp {n // 2}" for n in range(IMAGES))
    ids = tuple(f"p{n:02d}" for n in range(IMAGES))
    return PageViews(ids, np.arange(IMAGES) % 3, page, rng.random((ROWS, 5)) < 0.4, history, titles)


def pixels() -> np.ndarray:
    """Each image has its colour."""
    rng = np.random.default_rng(1)
    colours = rng.integers(40, 215, (IMAGES, 1, 1, 3))
    return (colours + rng.integers(-40, 40, (IMAGES, SIZE, SIZE, 3))).astype(np.uint8)


def objective(method: str, seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    return build_objective(replace(TINY, method=method), generated_views())


def step_inputs(model: Objective, rows: np.ndarray, seed: int = 0) -> tuple[Tensor, BatchTensors]:
    batch = take_batch(generated_views(), rows)
    chosen = pixels()[batch.images]
    if model.crops:
        chosen = draw_crops(chosen, model.crops, torch.Generator().manual_seed(seed))
    return normalise(chosen, PLAIN), BatchTensors.of(batch, torch.device("cpu"))


def trained(method: str, steps: int = 3, seed: int = 0, *, anew: bool = True) -> tuple[Objective, list[float]]:
    """The model after some steps, and the loss at each. anew: whether crops are drawn at each step."""
    model = objective(method, seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    curve = []
    for step in range(steps):
        loss = model(*step_inputs(model, np.arange(ROWS), step * anew)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return model.eval(), curve


@pytest.mark.parametrize("method", TRAINED)
def test_a_method_learns_and_its_vectors_have_unit_length(method: str) -> None:
    model, curve = trained(method, 20, anew=False)  # what other crops cost hides what is learned
    assert curve[-1] < curve[0]
    vectors = model.encoder(normalise(pixels(), PLAIN))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(IMAGES))


@pytest.mark.parametrize("method", TRAINED)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(method: str) -> None:
    first, again, other = (trained(method, seed=seed)[0].encoder.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_never_looks_at_a_click(method: str) -> None:
    model = objective(method)
    images, batch = step_inputs(model, np.arange(ROWS))
    clickless = replace(batch, clicked=~batch.clicked, history_mask=~batch.history_mask, history=batch.page)
    torch.testing.assert_close(model(images, clickless), model(images, batch))


@pytest.mark.parametrize("method", UNTRAINED)
def test_without_training_the_vectors_are_the_features_leading_components(method: str) -> None:
    backbone = {"backbone": "lite0", "backbone_weights": "imagenet", "image_size": 32}
    config = settle(replace(TINY, method=method, **backbone))
    preprocessing = Preprocessing(size=32)
    large = np.repeat(np.repeat(pixels(), 2, axis=1), 2, axis=2)
    torch.manual_seed(0)
    model = build_objective(config, generated_views())
    features = torch.cat(list(feature_batches(model.encoder, large, preprocessing)))
    model.encoder.standardise_by(features, config.feature_whitening)
    assert (model.terms, model.weights, model.crops) == ((), (), 0)
    vectors = model.encode(model.encoder.standard(features))
    # By numpy: standardised, then the axes of the largest spread, each divided by the root of its spread.
    standard = features.double().numpy()
    spread = standard.std(0)
    standard = (standard - standard.mean(0)) / np.where(spread > 1e-6, spread, 1)
    left, singular, _ = np.linalg.svd(standard, full_matrices=False)
    kept = singular > 1e-6 * singular[0]
    expected = (left * singular**0.5)[:, kept][:, : TINY.width]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = vectors.detach().double().numpy()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3)  # the signs of axes are free


def test_what_is_not_trained_is_settled_before_it_is_saved() -> None:
    settled = settle(replace(TINY, method="random", backbone="lite0", backbone_weights="imagenet", head="mlp"))
    assert (settled.backbone_weights, settled.trainable, settled.head) == ("random", "head", "linear")
    assert settled.feature_components == settled.width
    assert settle(settled) == settled
    assert settle(replace(TINY, method="simclr")) == replace(TINY, method="simclr")


def test_imagenet_without_a_warm_start_is_refused() -> None:
    with pytest.raises(CourierError, match="backbone_weights is random: say method random"):
        settle(replace(TINY, method="imagenet"))


@pytest.mark.parametrize(
    ("name", "value", "owner", "other"),
    [
        ("courier.attention", "self", "courier", "simclr"),
        ("courier.weight_ucs", "0", "courier", "imagenet"),
        ("courier.temperature", "0.2", "courier", "clip"),
        ("simclr.temperature", "0.3", "simclr", "courier"),
        ("simsiam.bottleneck", "2", "simsiam", "simclr"),
        ("clip.temperature", "0.3", "clip", "random"),
    ],
)
def test_what_is_one_methods_own_is_refused_by_the_others(name: str, value: str, owner: str, other: str) -> None:
    changed = replace_setting(TINY, name, value)
    assert settle(replace(changed, method=owner)) == replace(changed, method=owner)
    with pytest.raises(CourierError, match=f"{name} changes method {owner} alone, not {other}: leave it out"):
        settle(replace(changed, method=other))


def test_a_methods_own_settings_reach_its_objective() -> None:
    own = {"simclr.temperature": 0.3, "simclr.projection_width": 5, "simsiam.bottleneck": 8, "clip.temperature": 0.7}
    made = {}
    for method in BASELINES:
        given = {name: value for name, value in own.items() if name.startswith(f"{method}.")}
        made[method] = build_objective(for_method(TINY, {"method": method, **given}), generated_views())
    simclr, simsiam, clip = (made[method] for method in BASELINES)
    assert isinstance(simclr, SimClr)
    assert isinstance(simsiam, SimSiam)
    assert isinstance(clip, Clip)
    assert (simclr.temperature, simclr.projection[-1].out_features) == (0.3, 5)
    assert simsiam.prediction[-1].in_features == TINY.width // 8
    assert clip.temperature == 0.7


def test_clip_without_titles_is_refused() -> None:
    with pytest.raises(CourierError, match="method clip needs items with titles"):
        build_objective(replace(TINY, method="clip"), replace(generated_views(), titles=("",) * IMAGES))


def test_images_without_a_title_teach_clip_nothing() -> None:
    model, page_views = objective("clip"), generated_views()
    batch = take_batch(page_views, np.arange(ROWS))
    vectors = torch.nn.functional.normalize(torch.randn(len(batch.images), TINY.width), dim=1).requires_grad_()
    model.losses(vectors, BatchTensors.of(batch, torch.device("cpu"))).sum().backward()
    assert vectors.grad is not None
    for image, gradient in zip(batch.images, vectors.grad, strict=True):
        assert bool((gradient != 0).any()) == (page_views.titles[image] != "")


def test_the_titles_are_no_part_of_what_is_saved() -> None:
    model = objective("clip")
    assert isinstance(model, Clip)
    assert not {"tokens", "title"} & model.state_dict().keys()


@pytest.mark.parametrize("method", TRAINED)
def test_gradients_chunk_by_chunk_are_those_of_the_whole_batch(method: str) -> None:
    found = []
    for chunk in (0, 5):
        model = objective(method)
        images, batch = step_inputs(model, np.arange(ROWS))
        alone = ProcessGroup(0, 1, torch.device("cpu"))
        losses = Gradients(model, alone, chunk_images=chunk, precision="fp32").of(images, lambda raw: raw, batch)
        found.append({name: one.grad for name, one in model.named_parameters()} | {"losses": losses})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("trainable", ["head", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_leaves_an_encoder_in_an_artifact_the_same_for_the_same_seed(
    method: str, trainable: str, pretrain_inputs: dict[str, Path], tmp_path: Path
) -> None:
    warm = {"backbone": "lite0", "backbone_weights": "imagenet"} if method == "imagenet" else {}
    config = replace(TINY, method=method, trainable=trainable, batch_rows=16, steps=3, warmup_steps=1, **warm)
    first, again = (train.build(**pretrain_inputs, out=tmp_path / name, config=config) for name in ("a", "b"))
    assert first.facts["space_id"] == again.facts["space_id"]
    assert first.facts["encoder"] == f"{method}-{config.backbone}"
    assert first.facts["steps"] == (0 if method in UNTRAINED else 3)
    assert first.notes["wall_seconds"] > 0
    vectors = embed_images(load_encoder(tmp_path / "a"), pixels())
    assert vectors.shape == (IMAGES, TINY.width)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"courier": CourierMethodConfig(attention="self", value_maps=True)},
        {"courier": CourierMethodConfig(projection_head=True), "trainable": "head"},
        {"courier": CourierMethodConfig(history_order="random"), "history": 3},
    ],
)
def test_courier_is_trained_with_each_ablation(
    changes: dict[str, Any], pretrain_inputs: dict[str, Path], tmp_path: Path
) -> None:
    config = replace(TINY, batch_rows=16, steps=3, warmup_steps=1, **changes)
    train.build(**pretrain_inputs, out=tmp_path / "out", config=config)
    losses = json.loads((tmp_path / "out" / "loss.jsonl").read_text("utf-8").splitlines()[-1])
    assert np.isfinite(losses["loss"])


def gradients(model: nn.Module, inner: Objective, images: Tensor, batch: BatchTensors) -> dict[str, Tensor]:
    losses = model(images, batch)
    losses.sum().backward()
    return {name: one.grad.contiguous() for name, one in inner.named_parameters() if one.grad is not None} | {
        "losses": losses.detach()
    }


def two_halves() -> list[np.ndarray]:
    """Rows whose distinct images differ in number between the processes."""
    return [np.arange(9), np.arange(9, 12)]


def inputs_of(inner: Objective, halves: list[np.ndarray]) -> list[tuple[Tensor, BatchTensors]]:
    return [step_inputs(inner, rows, seed) for seed, rows in enumerate(halves)]


def one_of_two_processes(rank: int, folder: Path) -> None:
    """What each process of the two-process test runs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for method in BASELINES:
        inner = objective(method)
        found = gradients(DistributedDataParallel(inner), inner, *inputs_of(inner, two_halves())[rank])
        save_file(found, folder / f"{method}{rank}.safetensors")
    dist.destroy_process_group()


def together(inner: Objective) -> tuple[Tensor, BatchTensors]:
    """Both processes' inputs as one: an image that both hold stays there twice, as it does for them."""
    parts = inputs_of(inner, two_halves())
    page_views = max(1, inner.crops)
    by_view = [images.reshape(page_views, -1, *images.shape[1:]) for images, _ in parts]
    images = torch.cat(by_view, dim=1).flatten(0, 1)
    return images, replace(parts[0][1], images=torch.cat([batch.images for _, batch in parts]))


def test_two_processes_give_the_gradients_of_one_on_the_same_images(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment, cwd=ROOT)
        for rank in range(2)
    ]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    for method in BASELINES:
        inner = objective(method)
        alone = gradients(inner, inner, *together(inner))
        for rank in range(2):
            theirs = load_file(tmp_path / f"{method}{rank}.safetensors")
            assert theirs.keys() == alone.keys()
            for name, gradient in alone.items():
                torch.testing.assert_close(theirs[name], gradient, atol=1e-5, rtol=1e-3, msg=f"{method} {name}")


def test_what_was_tuned_for_couriers_frozen_features_hinders_no_baseline_and_no_trained_backbone() -> None:
    own = CourierMethodConfig(head_start="preference", temperature=0.5, heads=8)
    tuned = CourierConfig(basis="category", feature_components=64, learning_rate=1e-5, steps=7, courier=own)
    assert for_method(tuned, {"seed": 3}) == replace(tuned, seed=3)
    baseline = for_method(tuned, {"method": "simclr", "learning_rate": 1e-2, "simclr.temperature": 0.3})
    assert baseline == CourierConfig(method="simclr", steps=7, learning_rate=1e-2, simclr=SimClrConfig(temperature=0.3))
    with pytest.raises(CourierError, match=r"courier.head_start changes method courier alone, not clip"):
        settle(replace(tuned, method="clip"))
    trained = for_method(tuned, {"trainable": "upper", "courier.temperature": 0.2})
    assert trained == CourierConfig(trainable="upper", steps=7, courier=CourierMethodConfig(temperature=0.2, heads=8))
    with pytest.raises(CourierError, match="basis is of frozen features, and trainable is all"):
        settle(replace(tuned, trainable="all"))
    with pytest.raises(CourierError, match=r"courier.head_start is of frozen features, and trainable is all"):
        settle(replace(tuned, trainable="all", basis="all"))


def test_a_preset_that_trains_the_backbone_or_is_of_another_method_keeps_what_it_says() -> None:
    whole = CourierConfig(trainable="all", learning_rate=1e-4, courier=CourierMethodConfig(temperature=0.1))
    assert for_method(whole, {"seed": 3}) == replace(whole, seed=3)
    assert for_method(whole, {"trainable": "head"}) == CourierConfig()
    clip = CourierConfig(method="clip", learning_rate=1e-4, clip=ClipConfig(temperature=0.2))
    assert for_method(clip, {"steps": 3}) == replace(clip, steps=3)
    assert for_method(clip, {"method": "courier"}) == CourierConfig()


if __name__ == "__main__":
    one_of_two_processes(int(sys.argv[1]), Path(sys.argv[2]))
