"""The keys of entities in the online store: Feast's serialization of entity keys, version 3, of many at a time.

Feast's form, and not a shorter one of ours, so that Feast's own tools read the store's keys.  Standard library only.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Final

_STRING: Final = 2  # ValueType.STRING in Feast's Value.proto
_COUNT: Final = struct.Struct("<I")
_TYPE_AND_LENGTH: Final = struct.Struct("<II")


def entity_keys(columns: Mapping[str, Sequence[str]]) -> list[bytes]:
    """The key of each entity: join key -> its value, which is text, for each entity."""
    names = sorted(columns)
    head = _COUNT.pack(len(names)) + b"".join(_sized(name.encode()) for name in names)
    first, *others = [_all_sized(columns[name]) for name in names]
    if not others:
        return [head + value for value in first]
    if len(others) == 1:
        return [head + value + other for value, other in zip(first, others[0], strict=True)]
    return [head + b"".join(values) for values in zip(first, *others, strict=True)]


def _all_sized(values: Sequence[str]) -> list[bytes]:
    pack = _TYPE_AND_LENGTH.pack
    if len(values) > 1 and values[0] == values[-1]:  # one space, most often
        known = {value: _sized(value.encode()) for value in set(values)}
        return [known[value] for value in values]
    encoded = [value.encode() for value in values]
    return [pack(_STRING, len(value)) + value for value in encoded]


def key_part(value: str) -> bytes:
    """What the key of every entity holds one of whose join keys has this value; `entity_of` tells which."""
    return _sized(value.encode())


def entity_of(key: bytes) -> dict[str, str]:
    """Join key -> its value, of a key of `entity_keys`."""
    [count] = _COUNT.unpack_from(key)
    texts, place = [], _COUNT.size
    for _ in range(2 * count):
        _, length = _TYPE_AND_LENGTH.unpack_from(key, place)
        place += _TYPE_AND_LENGTH.size
        texts.append(key[place : place + length].decode())
        place += length
    return dict(zip(texts[:count], texts[count:], strict=True))


def _sized(value: bytes) -> bytes:
    return _TYPE_AND_LENGTH.pack(_STRING, len(value)) + value
