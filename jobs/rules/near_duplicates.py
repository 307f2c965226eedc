"""Bring pictures together whose perceptual hashes differ in few bits, without comparing each with every other.

Hashes of 64 bits within d bits of each other agree entirely on at least k of any d + k blocks that the bits are cut
into: sorted by those k blocks, for each choice of k, near hashes lie side by side (Manku, Jain, Das Sarma 2007,
"Detecting near-duplicates for web crawling", section 3).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from model.errors import CourierError

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Pairs = tuple[Ints, Ints]

BITS: Final = 64
MAX_DISTANCE: Final = 16  # bits; beyond it unrelated pictures meet, and the tables become many
BUCKET: Final = 16  # hashes expected to agree on k blocks by chance; more cost more than another table
# Of hashes that agree on k blocks each is compared with at most so many that follow it: a catalogue of a million
# pictures that differ by a caption ends too.
WINDOW: Final = 512
PAIRS: Final = 4_000_000  # held at once before they are drawn together


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """What a search found: image_id -> the smallest image_id of its group, and what the search cost."""

    group_of: dict[str, str]
    compared: int  # pairs of hashes
    not_compared: int  # pairs in buckets too crowded to look at each, and not yet one group; 0: the groups are exact


def search(hashes: Mapping[str, str], max_distance: int, *, window: int = WINDOW) -> NearDuplicates:
    """The groups of two or more, and how many pairs were compared and left out.

    hashes: image_id -> 16 hex digits. Two images share a group where a chain of images leads from one to the other
    whose hashes differ step by step in at most max_distance bits. A picture of one colour belongs to no group: its
    hash says nothing. Raises CourierError for other hashes or for a distance outside 0 to MAX_DISTANCE.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise CourierError(f"max_distance is {max_distance}: give 0 to {MAX_DISTANCE} bits")
    ids = sorted(hashes)
    values = _parsed([hashes[image_id] for image_id in ids])
    telling = np.flatnonzero(np.bitwise_count(values) > 1)  # one colour: all bits 0 but for the mean's
    distinct, at = np.unique(values[telling], return_inverse=True)
    found = _Search(distinct, max_distance, window)
    if max_distance and len(distinct) > 1:
        for blocks in _tables(len(distinct), max_distance):
            found.compare_by(blocks)
    label = found.labels[at]
    _, first, inverse, size = np.unique(label, return_index=True, return_inverse=True, return_counts=True)
    group_of = {
        ids[telling[n]]: ids[telling[first[group]]] for n, group in enumerate(inverse.tolist()) if size[group] > 1
    }
    return NearDuplicates(group_of, found.compared, found.not_compared)


def _parsed(hashes: list[str]) -> Hashes:
    try:
        packed = b"".join(map(bytes.fromhex, hashes))
    except ValueError as error:
        raise CourierError(f"a perceptual hash is not hexadecimal ({error}): give {BITS // 4} hex digits") from None
    if any(len(one) != BITS // 4 for one in hashes):
        raise CourierError(f"a perceptual hash is not {BITS // 4} hex digits long: compute all of them anew")
    return np.frombuffer(packed, ">u8").astype(np.uint64)


def _tables(hashes: int, max_distance: int) -> Iterator[np.uint64]:
    """Masks of k of the d + k blocks, every choice; k such that by chance few hashes agree on k blocks."""
    wanted = math.log2(max(2, hashes / BUCKET))  # bits
    k = next((k for k in range(1, 4) if k * BITS / (max_distance + k) >= wanted), 3)
    blocks = max_distance + k
    # Every blocks-th bit: neighbouring frequencies are alike, and blocks of neighbours would crowd.
    masks = [np.uint64(sum(1 << bit for bit in range(block, BITS, blocks))) for block in range(blocks)]
    for chosen in combinations(masks, k):
        yield np.uint64(sum(chosen))


class _Search:
    """Connected components of distinct hashes, drawn together as near pairs are found."""

    def __init__(self, values: Hashes, max_distance: int, window: int) -> None:
        self.values, self.max_distance, self.window = values, max_distance, window
        self.labels = np.arange(len(values))
        self.compared = self.not_compared = 0

    def compare_by(self, mask: np.uint64) -> None:
        """Compare the hashes that agree on the masked bits, each with the next ones of its bucket."""
        key = self.values & mask
        # By the rest within a bucket: where it is too crowded, the likelier pairs are the ones compared.
        order = np.lexsort((self.values, key))
        key = key[order]
        start = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
        size = np.diff(np.r_[start, len(key)])
        room = np.repeat(start + size, size) - np.arange(len(key)) - 1  # how many follow in the bucket
        here, near = self._open(order, start, size), list[Pairs]()
        for step in range(1, self.window + 1):
            here = here[room[here] >= step]
            if not len(here):
                break
            near.append(self._near(order[here], order[here + step]))
            if sum(len(labels) for labels, _ in near) > PAIRS:
                self._join(near)
                here, near = np.intersect1d(here, self._open(order, start, size), assume_unique=True), near[:0]
        self._join(near)
        beyond = np.maximum(room[self._open(order, start, size)] - self.window, 0)
        self.not_compared += int(beyond.sum())

    def _open(self, order: Ints, start: Ints, size: Ints) -> Ints:
        """The places of the hashes whose bucket is not yet one group."""
        labels = self.labels[order]
        several = np.minimum.reduceat(labels, start) < np.maximum.reduceat(labels, start)
        return np.flatnonzero(np.repeat(several, size))

    def _near(self, left: Ints, right: Ints) -> Pairs:
        self.compared += len(left)
        near = np.bitwise_count(self.values[left] ^ self.values[right]) <= self.max_distance
        left, right = self.labels[left[near]], self.labels[right[near]]
        apart = left != right
        return left[apart], right[apart]

    def _join(self, near: list[Pairs]) -> None:
        if near:
            n = len(self.values)
            left, right = (np.concatenate(side) for side in zip(*near, strict=True))
            graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(n, n))
            self.labels = connected_components(graph, directed=False)[1][self.labels]
