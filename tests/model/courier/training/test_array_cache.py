"""What is computed once: never half made, by whatever it depends on, and shared by runs without a trace in them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model.courier.config import CourierConfig
from model.courier.training import sources, train
from model.courier.training.array_cache import ArrayCache, cached_array, digest_of_weights
from model.courier.training.process_group import ProcessGroup
from model.errors import CourierError

ALONE = ProcessGroup(0, 1, torch.device("cpu"))
TINY = CourierConfig(backbone="small", backbone_weights="random", image_size=16, batch_rows=16, steps=4, warmup_steps=2)
WEIGHTS = "weights.safetensors"


def test_an_array_is_made_once_and_then_read(tmp_path: Path) -> None:
    made = cached_array(tmp_path / "new" / "a.npy", (3, 2), np.float32, lambda array: array.fill(7))
    assert made.tolist() == [[7, 7]] * 3

    def refuse(_: np.ndarray) -> None:
        raise AssertionError("made again")

    assert cached_array(tmp_path / "new" / "a.npy", (3, 2), np.float32, refuse).tolist() == [[7, 7]] * 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.npy"]


def test_an_array_whose_making_was_stopped_is_made_again(tmp_path: Path) -> None:
    def half(array: np.ndarray) -> None:
        array[0] = 7
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_array(tmp_path / "a.npy", (3,), np.float32, half)
    assert cached_array(tmp_path / "a.npy", (3,), np.float32, lambda array: array.fill(1)).tolist() == [1, 1, 1]


def test_an_array_of_another_shape_or_kind_is_refused(tmp_path: Path) -> None:
    cached_array(tmp_path / "a.npy", (3, 2), np.float32, lambda array: array.fill(7))
    for shape, dtype in (((2, 3), np.float32), ((3, 2), np.int64)):
        with pytest.raises(CourierError, match=r"a.npy is float32 \(3, 2\), not .*: remove the file"):
            cached_array(tmp_path / "a.npy", shape, dtype, lambda array: array.fill(7))


def test_arrays_of_the_same_name_lie_apart_where_they_depend_on_something_else(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path, "0" * 64, ALONE)
    for seed in (1, 2, 1):
        found = cache.of(seed=seed).array("crops", (2,), np.int64, lambda array, seed=seed: array.fill(seed))  # type: ignore[misc]
        assert found.tolist() == [seed, seed]
    assert len(list(tmp_path.glob("crops-*.npy"))) == 2


def test_any_weight_and_any_buffer_changes_the_digest() -> None:
    module = nn.BatchNorm1d(3)
    first = digest_of_weights(module)
    assert digest_of_weights(nn.BatchNorm1d(3)) == first
    for tensor in (module.weight, module.running_var):
        with torch.no_grad():
            tensor[1] += 1e-6
        assert digest_of_weights(module) != first
        with torch.no_grad():
            tensor[1] = 1


# --- runs that share a folder ---------------------------------------------------------------------------------------


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed again")


def built(inputs: dict[str, Path], out: Path, config: CourierConfig, **more: Any) -> bytes:
    train.build(**inputs, out=out, config=config, **more)
    return (out / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "simclr"}, {"trainable": "upper", "frozen_parts": 2}],
    ids=["features", "crops", "activations"],
)
def test_a_second_run_computes_nothing_of_the_frozen_part_again_and_ends_alike(
    pretrain_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    config, shared = replace(TINY, **settings), tmp_path / "shared"
    alone = built(pretrain_inputs, tmp_path / "alone", config)
    assert not list(tmp_path.glob("alone.*"))  # what one run keeps goes with it
    assert built(pretrain_inputs, tmp_path / "first", config, shared=shared) == alone
    for name in ("decode_images", "version_batches", *(["feature_batches"] if config.trainable == "head" else [])):
        monkeypatch.setattr(sources, name, refuse)
    activations = sources.activation_batches  # of one image it is asked for their shape
    monkeypatch.setattr(sources, "activation_batches", lambda *a: activations(*a) if len(a[1]) == 1 else refuse())
    assert built(pretrain_inputs, tmp_path / "second", config, shared=shared) == alone
    assert not list(tmp_path.glob("second.*"))


def test_another_backbone_and_another_seed_of_crops_share_nothing_but_images(
    pretrain_inputs: dict[str, Path], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    for seed in (0, 1):  # random weights, drawn by the seed
        config = replace(TINY, method="simclr", seed=seed)
        alone = built(pretrain_inputs, tmp_path / f"alone-{seed}", config)
        assert built(pretrain_inputs, tmp_path / f"shared-{seed}", config, shared=shared) == alone
    names = sorted(path.name.split("-")[0] for path in shared.iterdir())
    assert names == ["crops", "crops", "features", "features", "pixels"]
