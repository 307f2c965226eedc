"""A run that is stopped, by whatever and wherever, ends as if it had not been."""

import json
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.courier.config import CourierConfig
from model.courier.training import sources, train
from model.courier.training.checkpoint import STATE, Checkpoint, CheckpointMismatch, State
from model.settings import flatten

ROOT = Path(__file__).parents[4]
TINY = CourierConfig(
    backbone="small",
    backbone_weights="random",
    image_size=16,
    trainable="all",
    batch_rows=16,
    steps=24,
    warmup_steps=5,
    feature_dropout=0.2,  # so that a run that forgets where its generator stood ends elsewhere
)
PATIENCE = 240  # seconds, on a busy machine


class Stopped(Exception):
    """What the tests stop a run with."""


def curve(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "loss.jsonl").read_text("utf-8").splitlines()]
    speeds = ("images_per_second", "loader_stall")
    return [{name: value for name, value in line.items() if name not in speeds} for line in lines]


def assert_same(one: Path, other: Path) -> None:
    for name in ("weights.safetensors", "objective.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert curve(one) == curve(other)


def command(inputs: dict[str, Path], out: Path, config: CourierConfig, every: int) -> list[str]:
    options = [f"--{name}={path}" for name, path in (inputs | {"out": out}).items()]
    settings = [f"--set={name}={value}" for name, value in flatten(config).items()]
    return [sys.executable, "-m", "model.courier.training.train", *options, *settings, f"--checkpoint-every={every}"]


def start(argv: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    base = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(argv, env=base, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr.decode()[-2000:]


def kill_after(checkpoints: int, processes: Sequence[subprocess.Popen[bytes]], folder: Path, delay: float) -> None:
    """Kill the processes a moment after so many more checkpoints have been written."""
    until, last = time.monotonic() + PATIENCE, stamp(folder)
    while checkpoints and all(process.poll() is None for process in processes):
        assert time.monotonic() < until, "no checkpoint came"
        if (now := stamp(folder)) != last:
            checkpoints, last = checkpoints - 1, now
        time.sleep(0.001)
    time.sleep(delay)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this was not to be called")


def stamp(folder: Path) -> int:
    try:
        return (folder / STATE).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def test_a_run_killed_five_times_at_random_moments_ends_with_the_weights_and_curve_of_an_unbroken_one(
    pretrain_inputs: dict[str, Path], tmp_path: Path
) -> None:
    config, out, rng = replace(TINY, steps=120, chunk_images=16), tmp_path / "killed", random.Random()
    for _ in range(5):
        process = start(command(pretrain_inputs, out, config, 2))
        kill_after(rng.randint(0, 4), [process], tmp_path / "killed.checkpoint", rng.uniform(0, 0.05))
        assert not out.exists()
    finish(start(command(pretrain_inputs, out, config, 2)))
    finish(start(command(pretrain_inputs, tmp_path / "unbroken", config, 1000)))
    assert_same(out, tmp_path / "unbroken")
    assert not (tmp_path / "killed.checkpoint").exists()


def test_two_processes_killed_and_started_again_end_as_two_that_were_not(
    pretrain_inputs: dict[str, Path], tmp_path: Path
) -> None:
    def both(out: Path) -> list[subprocess.Popen[bytes]]:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = str(listening.getsockname()[1])
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        argv = command(pretrain_inputs, out, replace(TINY, steps=60), 3)
        return [start(argv, **meet, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]

    kill_after(3, both(tmp_path / "killed"), tmp_path / "killed.checkpoint", 0.0)
    for process in both(tmp_path / "killed") + both(tmp_path / "unbroken"):
        finish(process)
    assert_same(tmp_path / "killed", tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("at", "change"),
    [
        (1, {}),
        (13, {}),
        (7, {"precision": "fp16", "batch_rows": 4, "steps": 8}),
        (13, {"trainable": "head"}),
        (13, {"trainable": "upper", "frozen_parts": 2}),
    ],
    ids=["the first", "all", "fp16 and its scaler", "head", "upper"],
)
def test_a_run_stopped_after_any_step_goes_on_to_the_same_end(
    pretrain_inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    change: dict[str, Any],
) -> None:
    config = replace(TINY, **change)
    train.build(**pretrain_inputs, out=tmp_path / "unbroken", config=config)
    stop_after(monkeypatch, at)
    with pytest.raises(Stopped):
        train.build(**pretrain_inputs, out=tmp_path / "stopped", config=config, checkpoint_every=1)
    monkeypatch.undo()
    train.build(**pretrain_inputs, out=tmp_path / "stopped", config=config, checkpoint_every=1)
    assert_same(tmp_path / "stopped", tmp_path / "unbroken")


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    whole = Checkpoint.write

    def write(self: Checkpoint, state: State) -> None:
        whole(self, state)
        if state.facts["step"] == step:
            raise Stopped

    monkeypatch.setattr(Checkpoint, "write", write)


def stopped(inputs: dict[str, Path], out: Path, monkeypatch: pytest.MonkeyPatch, config: CourierConfig = TINY) -> None:
    stop_after(monkeypatch, 10)
    with pytest.raises(Stopped):
        train.build(**inputs, out=out, config=config, checkpoint_every=5)
    monkeypatch.undo()


@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"steps": 25}, {"seed": 1}])
def test_the_checkpoint_of_another_config_is_refused_and_kept(
    pretrain_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, float]
) -> None:
    stopped(pretrain_inputs, tmp_path / "out", monkeypatch)
    before = (tmp_path / "out.checkpoint" / STATE).read_bytes()
    with pytest.raises(CheckpointMismatch, match=r"out.checkpoint holds an unfinished run of another config"):
        train.build(**pretrain_inputs, out=tmp_path / "out", config=replace(TINY, **change))
    assert (tmp_path / "out.checkpoint" / STATE).read_bytes() == before


def test_nothing_is_unpickled_when_a_run_goes_on(
    pretrain_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(pretrain_inputs, tmp_path / "out", monkeypatch)
    suffixes = {path.suffix for path in (tmp_path / "out.checkpoint").iterdir()}
    assert suffixes == {".safetensors", ".npy"}
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    train.build(**pretrain_inputs, out=tmp_path / "out", config=TINY)


def test_what_a_killed_writer_left_is_swept_and_the_state_before_it_counts(
    pretrain_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(pretrain_inputs, tmp_path / "out", monkeypatch)
    half = tmp_path / "out.checkpoint" / f".{STATE}-0123abcd.partial"
    half.write_bytes(b"half a state")
    stop_after(monkeypatch, 15)
    with pytest.raises(Stopped):
        train.build(**pretrain_inputs, out=tmp_path / "out", config=TINY, checkpoint_every=5)
    assert not half.exists()


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run.checkpoint", "one run", 10)
    assert checkpoint.read() is None
    said = State({"a": torch.arange(6).reshape(2, 3), "b": torch.tensor(0.1)}, {"step": 7, "lines": [{"loss": 0.1}]})
    checkpoint.write(said)
    checkpoint.write(replace(said, facts=said.facts | {"step": 8}))
    read = checkpoint.read()
    assert read is not None
    assert read.facts == {"step": 8, "lines": [{"loss": 0.1}]}
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in said.tensors.items())
    assert [path.name for path in checkpoint.folder.iterdir()] == [STATE]


def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run.checkpoint", "one run", 10)
    checkpoint.write(State({"a": torch.zeros(100)}, {"step": 1}))
    whole = (checkpoint.folder / STATE).read_bytes()
    for damaged in (b"", whole[:20], whole[:-50]):
        (checkpoint.folder / STATE).write_bytes(damaged)
        with pytest.raises(CheckpointMismatch, match=r"is damaged .*: remove run.checkpoint to begin"):
            checkpoint.read()


def test_images_are_decoded_once_however_often_a_run_is_stopped(
    pretrain_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(pretrain_inputs, tmp_path / "out", monkeypatch)
    (cached,) = (tmp_path / "out.checkpoint").glob("pixels-*.npy")
    assert np.load(cached).shape == (24, 16, 16, 3)
    monkeypatch.setattr(sources, "decode_images", refuse)
    train.build(**pretrain_inputs, out=tmp_path / "out", config=TINY)
