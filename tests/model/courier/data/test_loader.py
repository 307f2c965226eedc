"""What a step reads: the right rows in the right order, fetched ahead."""

import threading
import time

import numpy as np
import pytest
import torch

from model.courier.data.batches import Batch, PageViews, take_batch
from model.courier.data.loader import AHEAD, Activations, Features, Pixels, loaded
from model.space import Preprocessing

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (600, 4, 4, 3), np.uint8)
PLAIN = Pixels(PIXELS, Preprocessing(size=4))
VIEWS = PageViews(
    tuple(f"p{n}" for n in range(600)),
    np.zeros(600, np.int64),
    np.arange(600, dtype=np.int32).reshape(120, 5),
    np.zeros((120, 5), np.bool_),
    np.full((120, 5), -1, np.int32),
)


def batch_of(step: int) -> Batch:
    return take_batch(VIEWS, np.arange(step, step + 60))


def test_every_step_gets_its_own_images_in_order() -> None:
    with loaded(range(3, 12), batch_of, PLAIN, CPU) as parts:
        for step, part in zip(range(3, 12), parts, strict=True):
            assert np.array_equal(part.raw.numpy(), PIXELS[batch_of(step).images])
            assert part.images == len(batch_of(step).images) == 300
            assert torch.equal(part.batch.page, torch.from_numpy(batch_of(step).page))


def test_the_next_steps_are_fetched_while_the_model_is_at_work() -> None:
    fetched, here = [], threading.Event()

    def watching(step: int) -> Batch:
        fetched.append((step, threading.current_thread().name))
        if step == AHEAD:
            here.set()
        return batch_of(step)

    with loaded(range(10), watching, PLAIN, CPU) as parts:
        next(parts)
        assert here.wait(30)  # without another step being asked for
        assert max(step for step, _ in fetched) == AHEAD  # and no more: memory is bounded
        assert all(name.startswith("loader") for _, name in fetched)


def test_the_wait_for_a_slow_loader_is_measured() -> None:
    def slow(step: int) -> Batch:
        time.sleep(0.05)
        return batch_of(step)

    with loaded(range(1), slow, PLAIN, CPU) as parts:
        assert next(parts).waited > 0.02


def test_what_goes_wrong_in_the_loader_is_raised_in_the_loop() -> None:
    def broken(step: int) -> Batch:
        if step == 2:
            raise OSError("the disk is gone")
        return batch_of(step)

    with loaded(range(9), broken, PLAIN, CPU) as parts:
        assert [next(parts).images, next(parts).images] == [300, 300]
        with pytest.raises(OSError, match="the disk is gone"):
            next(parts)


def test_a_loop_that_is_left_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with loaded(range(1000), batch_of, PLAIN, CPU) as parts:
        next(parts)
    assert threading.active_count() == before


def test_pixels_are_normalised_and_activations_and_features_come_as_they_were_kept() -> None:
    numbers = np.array([5, 2, 599])
    images = PLAIN.prepare(PLAIN.fetch(numbers, 0))
    expected = (PIXELS[numbers].transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128
    assert np.array_equal(images.numpy(), expected)
    assert images.is_contiguous(memory_format=torch.channels_last)
    maps = Activations(PIXELS.astype(np.float32))
    assert np.array_equal(maps.prepare(maps.fetch(numbers, 0)).numpy(), PIXELS[numbers].transpose(0, 3, 1, 2))
    kept = Features(torch.arange(1200.0).reshape(600, 2))
    assert kept.prepare(kept.fetch(numbers, 0)).tolist() == [[10.0, 11.0], [4.0, 5.0], [1198.0, 1199.0]]
