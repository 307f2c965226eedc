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
    if len(names) == 1:
        pack = _TYPE_AND_LENGTH.pack
        encoded = [value.encode() for value in columns[names[0]]]
        return [head + pack(_STRING, len(value)) + value for value in encoded]
    parts = [[_sized(value.encode()) for value in columns[name]] for name in names]
    return [head + b"".join(part) for part in zip(*parts, strict=True)]


def _sized(value: bytes) -> bytes:
    return _TYPE_AND_LENGTH.pack(_STRING, len(value)) + value
