"""How the pictures of the images artifact are divided into shards, none of which holds more bytes than it may."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from jobs.images.store import Location

ROW_BYTES: Final = 100  # of a shard's row besides its PNG: the id, lengths and offsets

Wanted = tuple[str, Location]  # image_id, and where the store holds the picture


@dataclass(frozen=True, slots=True)
class Shards:
    """Which shards hold the pictures of each shard of the store.

    parts: shard of the store -> its first shard, and how many share it. Neighbours of the store share one shard, so
    that each is read for one shard only, or, where one is too large, for shards of its own.
    """

    count: int
    parts: Mapping[int, range]


def most_pictures(size: int, shard_bytes: int) -> int:
    """How many pictures of this side in pixels lie in a shard: as many as fit in any case, and at least one."""
    return max(1, shard_bytes // (most_png_bytes(size) + ROW_BYTES))


def most_png_bytes(size: int) -> int:
    """The largest PNG that model.courier.data.images.to_png makes of size x size pixels.

    A byte a row says how it was filtered; where nothing can be compressed, deflate stores blocks as they are, a few
    bytes more each; a chunk has 12 bytes beside its 64 KiB, the headers less than 200.
    """
    filtered = size * (3 * size + 1)
    return filtered + filtered // 500 + 200


def plan(pictures: Mapping[int, int], most: int) -> Shards:
    """The shards for so many pictures in each shard of the store, at most `most` in one; one if there are none."""
    parts: dict[int, range] = {}
    shard, held = 0, 0
    for number in sorted(pictures):
        wanted = pictures[number]
        if held and held + wanted > most:
            shard, held = shard + 1, 0
        needed = max(1, -(-wanted // most))
        parts[number] = range(shard, shard + needed)
        shard, held = shard + needed - 1, held + wanted if needed == 1 else most
    return Shards(shard + 1, parts)


def cut(wanted: list[Wanted], parts: range) -> list[tuple[int, list[Wanted]]]:
    """The pictures of a shard of the store, divided evenly among its shards: (shard, pictures) for each.

    By reference, the order in which the store holds them: what is read for one shard are neighbours there.
    """
    ordered = sorted(wanted, key=lambda one: one[1][0])
    edges = [len(ordered) * n // len(parts) for n in range(len(parts) + 1)]
    return [(shard, ordered[edges[n] : edges[n + 1]]) for n, shard in enumerate(parts)]
