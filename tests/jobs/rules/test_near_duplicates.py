"""Groups of perceptual hashes: the fast search against every pair, over generated hashes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.rules import near_duplicates
from jobs.rules.near_duplicates import search
from model.errors import CourierError


def groups(hashes, max_distance):
    return search(hashes, max_distance).group_of


def written(value):
    return f"{value:016x}"


def by_all_pairs(hashes, max_distance):
    """The groups, by comparing every picture with every other until nothing changes."""
    telling = {image_id: int(value, 16) for image_id, value in hashes.items() if int(value, 16).bit_count() > 1}
    smallest = {image_id: image_id for image_id in telling}
    changed = True
    while changed:
        changed = False
        for one in telling:
            for other in telling:
                near = (telling[one] ^ telling[other]).bit_count() <= max_distance
                if near and smallest[other] < smallest[one]:
                    smallest[one] = smallest[other]
                    changed = True
    members = list(smallest.values())
    return {image_id: first for image_id, first in smallest.items() if members.count(first) > 1}


@st.composite
def crowds(draw):
    """image_id -> hash: a few random seeds, and hashes some bits away from a seed or from an earlier hash."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    values = [rng.getrandbits(64) for _ in range(draw(st.integers(1, 4)))]
    for flips in draw(st.lists(st.integers(0, 9), max_size=40)):
        values.append(rng.choice(values) ^ sum(1 << bit for bit in rng.sample(range(64), flips)))
    values += [0, 1 << 63] * draw(st.integers(0, 1))
    names = rng.sample(range(1000), len(values))
    return {f"p{name}": written(value) for name, value in zip(names, values, strict=True)}


@settings(max_examples=300, deadline=None)
@given(crowds(), st.integers(0, 8))
def test_the_groups_are_those_of_comparing_every_pair(hashes, max_distance):
    assert groups(hashes, max_distance) == by_all_pairs(hashes, max_distance)


@settings(max_examples=60, deadline=None)
@given(crowds(), st.integers(1, 6), st.integers(1, 3))
def test_the_groups_do_not_depend_on_how_many_blocks_must_agree(hashes, max_distance, k):
    """k grows with the number of hashes; here it is forced."""
    original = near_duplicates.BUCKET
    near_duplicates.BUCKET = {1: 1e9, 2: 1e-2, 3: 1e-9}[k]
    try:
        assert groups(hashes, max_distance) == by_all_pairs(hashes, max_distance)
    finally:
        near_duplicates.BUCKET = original


def test_distance_counts_to_the_bit():
    hashes = {"a": written(0xFF00), "b": written(0xFF07)}  # three bits apart
    assert groups(hashes, 3) == {"a": "a", "b": "a"}
    assert groups(hashes, 2) == {}


def test_a_chain_is_one_group_named_after_its_smallest_id():
    hashes = {"c": written(0xFF00), "b": written(0xFF03), "a": written(0xFF0F), "far": written(0xFFFFFF0000)}
    assert groups(hashes, 2) == {"a": "a", "b": "a", "c": "a"}


def test_equal_hashes_are_near_at_distance_zero():
    assert groups({"b": written(7), "a": written(7), "c": written(15)}, 0) == {"a": "a", "b": "a"}


def test_pictures_of_one_colour_are_in_no_group():
    assert groups({"black": written(0), "white": written(1 << 63), "red": written(1 << 63)}, 4) == {}


def test_no_hash_gives_no_group():
    assert groups({}, 4) == {}


@pytest.mark.parametrize("bad", ["abc", "0" * 15, "0" * 18, "g" * 16, ""])
def test_what_is_no_hash_of_64_bits_is_refused(bad):
    with pytest.raises(CourierError, match="perceptual hash is not"):
        groups({"a": bad, "b": written(7)}, 2)


@pytest.mark.parametrize("distance", [-1, 17])
def test_a_senseless_distance_is_refused(distance):
    with pytest.raises(CourierError, match="max_distance"):
        groups({}, distance)


def spread(n):
    """n in the odd bits of a hash, each of its bits twice, so that two numbers lie two or more bits apart."""
    return written(sum(0b1010 << 4 * bit for bit in range(16) if n >> bit & 1) | 0x5555555555555555)


def test_every_pair_of_a_crowded_bucket_is_either_compared_or_counted():
    crowd = {f"p{n:02d}": spread(n) for n in range(50)}  # at one bit two blocks, the even bits and the odd ones
    everything, less = search(crowd, 1), search(crowd, 1, window=3)
    assert (everything.compared, everything.not_compared) == (50 * 49 // 2, 0)
    assert less.compared == 47 * 3 + 2 + 1
    assert less.compared + less.not_compared == everything.compared
    assert everything.group_of == less.group_of == {}


def test_what_is_one_group_already_is_not_compared_again():
    """4,096 hashes that count up in twelve bits: neighbours are near, and after them no pair tells anything."""
    crowd = {f"p{n:04d}": written(0xABCDEF0123456000 + n) for n in range(4096)}
    found = search(crowd, 6, window=64)
    assert set(found.group_of.values()) == {"p0000"}
    assert len(found.group_of) == 4096
    assert found.compared < 3 * 64 * 4096  # seven tables
    assert found.not_compared == 0


def test_the_comparisons_grow_with_the_hashes_and_not_with_their_pairs():
    """All pairs of 200,000 are 20,000 million comparisons; a few per hash are enough."""
    rng = random.Random(0)
    hashes = {f"p{n:06d}": written(rng.getrandbits(64)) for n in range(200_000)}
    near = {f"q{n:06d}": written(int(hashes[f"p{n:06d}"], 16) ^ 0b1011 << n % 60) for n in range(0, 200_000, 1000)}
    found = search(hashes | near, 4)
    assert found.compared < 200 * len(hashes)
    assert found.not_compared == 0
    assert {one: first for one, first in found.group_of.items() if one in near} == {
        one: one.replace("q", "p") for one in near
    }
