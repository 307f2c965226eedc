"""The division of pictures into shards: every picture once, no shard over its bound, neighbours together."""

import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs.images.shards import ROW_BYTES, cut, most_pictures, most_png_bytes, plan
from model.courier.data.images import to_png

COUNTS = st.dictionaries(st.integers(0, 63), st.integers(1, 40), max_size=12)


def laid_out(pictures, most):
    """Shard -> the pictures it holds, picture (number, n) being the n-th of shard `number` of the store."""
    shards = plan(pictures, most)
    found = {shard: [] for shard in range(shards.count)}
    for number, count in pictures.items():
        wanted = [(f"{number}-{n}", (f"{n:03d}.jpg", "")) for n in range(count)]
        for shard, some in cut(wanted[::-1], shards.parts[number]):
            found[shard] += [image_id for image_id, _ in some]
    return found


@given(COUNTS, st.integers(1, 50))
def test_every_picture_lies_in_one_shard_and_no_shard_holds_more_than_it_may(pictures, most):
    found = laid_out(pictures, most)
    held = [image_id for shard in found.values() for image_id in shard]
    assert sorted(held) == sorted(f"{number}-{n}" for number, count in pictures.items() for n in range(count))
    assert max(map(len, found.values())) <= most
    assert all(found.values()) or found == {0: []}


@given(COUNTS, st.integers(1, 50))
def test_two_neighbours_would_not_have_fitted_into_one(pictures, most):
    """Fewer shards are possible only by tearing a shard of the store apart that fits into one."""
    shards = plan(pictures, most)
    numbers = sorted(pictures)
    for number, after in pairwise(numbers):
        last, first = shards.parts[number][-1], shards.parts[after][0]
        together = sum(pictures[n] for n in numbers if n <= after and shards.parts[n] == range(last, last + 1))
        whole = len(shards.parts[number]) == 1
        assert first == last or not whole or together + pictures[after] > most
        assert first in (last, last + 1)


def test_by_hand():
    assert laid_out({0: 2, 5: 2, 7: 1, 9: 7}, 4) == {
        0: ["0-0", "0-1", "5-0", "5-1"],
        1: ["7-0"],
        2: ["9-0", "9-1", "9-2"],
        3: ["9-3", "9-4", "9-5", "9-6"],
    }
    assert laid_out({}, 4) == {0: []}


@pytest.mark.parametrize("size", [1, 8, 16, 64, 96, 224, 512])
def test_no_png_is_larger_than_the_largest_that_is_reckoned_with(size):
    rng = np.random.default_rng(size)
    noise = rng.integers(0, 256, (size, size, 3), np.uint8)  # nothing can be compressed
    smooth = (np.add.outer(np.arange(size), np.arange(3 * size)) % 256).astype(np.uint8).reshape(size, size, 3)
    sizes = [len(to_png(Image.fromarray(pixels))) for pixels in (noise, smooth)]
    assert max(sizes) <= most_png_bytes(size)
    assert sizes[0] > 0.9 * most_png_bytes(size) - 200  # and the bound is near what noise takes
    assert Image.open(io.BytesIO(to_png(Image.fromarray(noise)))).size == (size, size)


def test_a_shard_has_room_for_as_many_of_the_largest_pictures_as_its_bytes_hold():
    largest = most_png_bytes(96) + ROW_BYTES
    assert most_pictures(96, 10 * largest) == 10
    assert most_pictures(96, 10 * largest - 1) == 9
    assert most_pictures(96, 1) == 1
