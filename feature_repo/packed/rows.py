"""The bytes of a packed row: an entity's features of one view, packed and unpacked many rows at a time.

A row, little endian, is a whole number of words of 8 bytes:

    checksum u64 | words u32 | fingerprint u32 | event time i64 | created time i64     32 bytes
    numbers of a fixed width, widest first | ends u32 of the variable cells | a bit a column, set where it is null
    zeros up to a whole word
    the variable cells, one behind the other | zeros up to a whole word

Text is UTF-8, a list of numbers its numbers, a list of text or bytes the count, the ends and the bytes of its members.
Times are microseconds since 1970.  numpy and the standard library only: serving imports this without Feast.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np

from feature_repo.contract import Feature
from feature_repo.errors import CourierError

LAYOUT_VERSION: Final = 1
NO_TIME: Final = -(2**63)  # of a row without created time: older than any
NUMBERS: Final = {"int": "<i8", "float": "<f8", "int32": "<i4", "float32": "<f4", "bool": "|b1"}
SEQUENCES: Final = ("str", "bytes")
KINDS: Final = (*NUMBERS, *SEQUENCES, *(f"list[{kind}]" for kind in (*NUMBERS, *SEQUENCES)))
TIMES_AT: Final = 16  # where in a row its two times begin: event time, created time

_WORD: Final = 8
# No column is called so.
_CHECKSUM, _WORDS, _FINGERPRINT, _EVENT_TIME, _CREATED_TIME = (f"\0{number}" for number in range(5))
_ENDS, _NULLS = "\0ends", "\0nulls"
_HEADER: Final = np.dtype(
    [(_CHECKSUM, "<u8"), (_WORDS, "<u4"), (_FINGERPRINT, "<u4"), (_EVENT_TIME, "<i8"), (_CREATED_TIME, "<i8")]
)
_U4: Final = np.dtype("<u4")
_MAX_BYTES: Final = 2**32 - 1  # an end is 32 bits wide


class RowUnreadable(CourierError):
    """A row that is not of this layout, or not as it was written."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """A column to be packed.

    valid: (N,) bool.  data: numbers (N,); else all cells' bytes on end, uint8.  ends: (N,) int64, where in `data` each
    variable cell ends; a null cell is empty.  Of numbers it is empty.
    """

    valid: np.ndarray
    data: np.ndarray
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows as arrays, one entry for each row asked for.

    found: (B,) bool, whether there is a row.  event_time, created_time: (B,) int64, NO_TIME where there is none.
    values: by column, (B,); numbers of their dtype, else objects: str, bytes, a numpy array, or a list of str or bytes.
    valid: by column, (B,) bool; where it is False the value is 0, False or None.
    """

    found: np.ndarray
    event_time: np.ndarray
    created_time: np.ndarray
    values: dict[str, np.ndarray]
    valid: dict[str, np.ndarray]


class Layout:
    """How the rows of one view lie in bytes. The same columns in the same order give the same layout anywhere."""

    def __init__(self, features: Sequence[Feature]) -> None:
        """features: name and kind of each column. Raises ValueError on a kind that is none of KINDS."""
        if unknown := [feature.kind for feature in features if feature.kind not in KINDS]:
            raise ValueError(f"no packed row holds a column of kind {unknown[0]}: one of {', '.join(KINDS)}")
        self.kinds = {feature.name: feature.kind for feature in features}
        self.variable = [name for name, kind in self.kinds.items() if kind not in NUMBERS]
        self.fixed = _fixed_part(self.kinds, len(self.variable))
        described = f"{LAYOUT_VERSION}\n" + "\n".join(f"{name} {kind}" for name, kind in self.kinds.items())
        self.fingerprint = zlib.crc32(described.encode())

    def pack(self, event_time: np.ndarray, created_time: np.ndarray, cells: Mapping[str, Cells]) -> list[bytes]:
        """Rows of these times, (N,) int64, and of a column for each of the layout's."""
        fixed = np.zeros(len(event_time), self.fixed)
        fixed[_FINGERPRINT], fixed[_EVENT_TIME], fixed[_CREATED_TIME] = self.fingerprint, event_time, created_time
        nulls = np.zeros((len(fixed), len(self.kinds)), bool)
        for place, (name, kind) in enumerate(self.kinds.items()):
            nulls[:, place] = ~cells[name].valid
            if kind in NUMBERS:
                fixed[name] = np.where(cells[name].valid, cells[name].data, 0)
        fixed[_NULLS] = np.packbits(nulls, axis=1, bitorder="little")
        return _assembled(fixed, [cells[name] for name in self.variable])

    def unpack(self, rows: Sequence[bytes | None]) -> Rows:
        """Rows as arrays; None is a row that is not there. Raises RowUnreadable, and then gives no row at all."""
        present = [row for row in rows if row is not None]
        found = np.ones(len(rows), bool)
        if len(present) < len(rows):
            found[:] = [row is not None for row in rows]
        joined = b"".join(present)
        lengths = np.fromiter(map(len, present), np.int64, len(present))
        fixed, starts = self._checked(joined, lengths)
        nulls = np.unpackbits(fixed[_NULLS], axis=1, count=len(self.kinds), bitorder="little").astype(bool)
        spread = _Spread(found)
        values, valid = {}, {}
        ends = starts[:, None] + self.fixed.itemsize + fixed[_ENDS].astype(np.int64)
        begin = starts + self.fixed.itemsize
        for place, (name, kind) in enumerate(self.kinds.items()):
            valid[name] = spread(~nulls[:, place], False)
            if kind in NUMBERS:
                values[name] = spread(fixed[name], 0)
            else:
                end = ends[:, self.variable.index(name)]
                values[name] = spread(_objects(kind, joined, begin, end, ~nulls[:, place]), None)
                begin = end
        event_time, created_time = (spread(fixed[name], NO_TIME) for name in (_EVENT_TIME, _CREATED_TIME))
        return Rows(found, event_time, created_time, values, valid)

    def _checked(self, joined: bytes, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # The fixed parts, and where in the joined bytes each row starts.
        starts = np.cumsum(lengths) - lengths
        if not len(lengths):
            return np.zeros(0, self.fixed), starts
        if lengths.min() < _HEADER.itemsize or (lengths % _WORD).any():
            raise self._refusal("cut short")
        words, first = np.frombuffer(joined, "<u8"), starts // _WORD
        header = self._parts(words, first, lengths, _HEADER)
        if (header[_FINGERPRINT] != self.fingerprint).any():
            raise self._refusal("of another layout")
        if (header[_WORDS] != lengths // _WORD).any() or (header[_CHECKSUM] != _checksums(words, first)).any():
            raise self._refusal("damaged")
        return self._parts(words, first, lengths, self.fixed), starts

    def _parts(self, words: np.ndarray, first: np.ndarray, lengths: np.ndarray, kind: np.dtype[Any]) -> np.ndarray:
        # The beginning of each row.
        count = kind.itemsize // _WORD
        if (lengths == lengths[0]).all():
            parts = words.reshape(len(lengths), -1)[:, :count]
        else:
            parts = words[first[:, None] + np.arange(count)]
        return np.ascontiguousarray(parts).view(kind).reshape(-1)

    def _refusal(self, why: str) -> RowUnreadable:
        return RowUnreadable(f"a packed row of {', '.join(self.kinds)} is {why}: materialize its view again")


def _fixed_part(kinds: Mapping[str, str], variable: int) -> np.dtype[Any]:
    numbers = {name: np.dtype(NUMBERS[kind]) for name, kind in kinds.items() if kind in NUMBERS}
    fields: list[tuple[str, Any]] = [(name, _HEADER[name]) for name in _HEADER.names or ()]
    fields += sorted(numbers.items(), key=lambda number: -number[1].itemsize)
    fields.append((_ENDS, np.dtype((_U4, (variable,)))))
    fields.append((_NULLS, np.dtype((np.uint8, (-(-len(kinds) // 8),)))))
    offsets = np.cumsum([0, *(kind.itemsize for _, kind in fields)]).tolist()
    size = -(-offsets.pop() // _WORD) * _WORD
    names, formats = zip(*fields, strict=True)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


def _assembled(fixed: np.ndarray, variable: Sequence[Cells]) -> list[bytes]:
    lengths = np.zeros((len(fixed), len(variable)), np.int64)
    for place, cells in enumerate(variable):
        lengths[:, place] = np.diff(cells.ends, prepend=0)
    ends = np.cumsum(lengths, axis=1)
    behind = ends[:, -1] if variable else np.zeros(len(fixed), np.int64)
    if len(fixed) and behind.max() > _MAX_BYTES:
        raise ValueError(f"a row holds {behind.max()} bytes of text and lists, more than {_MAX_BYTES}")
    fixed[_ENDS] = ends
    size = -(-(fixed.dtype.itemsize + behind) // _WORD) * _WORD
    fixed[_WORDS] = size // _WORD
    stop = np.cumsum(size)
    start = stop - size
    out = np.zeros(int(size.sum()), np.uint8)
    words = out.view("<u8")
    head = fixed.view("<u8").reshape(len(fixed), fixed.dtype.itemsize // _WORD)
    words[(start // _WORD)[:, None] + np.arange(head.shape[1])] = head
    for place, cells in enumerate(variable):
        _copy(cells.data, lengths[:, place], out, start + fixed.dtype.itemsize + ends[:, place] - lengths[:, place])
    words[start // _WORD] = _checksums(words, start // _WORD)
    whole = out.tobytes()
    return [whole[begin:end] for begin, end in zip(start.tolist(), stop.tolist(), strict=True)]


def _copy(source: np.ndarray, lengths: np.ndarray, target: np.ndarray, begins: np.ndarray) -> None:
    # Pieces that lie on end in `source` go to where each begins in `target`; by words where they are whole words, as
    # vectors are.
    source = source[: lengths.sum()]
    if not (lengths % _WORD).any() and not (begins % _WORD).any():
        source, target, lengths, begins = source.view("<u8"), target.view("<u8"), lengths // _WORD, begins // _WORD
    before = np.cumsum(lengths) - lengths
    target[np.repeat(begins - before, lengths) + np.arange(len(source))] = source


def _checksums(words: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Of each row, from its first word on, but for that word: the sum of its words, each times an odd number."""
    if not len(first):
        return np.zeros(0, np.uint64)
    place = np.arange(len(words)) - np.repeat(first, np.diff(first, append=len(words)))
    return np.add.reduceat(words * _weights(int(place.max()) + 1)[place], first)


@lru_cache(maxsize=16)
def _weights(count: int) -> np.ndarray:
    # Odd, so that a change of any one word shows; 0 for the checksum itself. The constant is the golden ratio's.
    weights = (np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
    weights[:1] = 0
    return weights


class _Spread:
    """Puts what was read of the rows that are there into an array of all rows asked for."""

    def __init__(self, found: np.ndarray) -> None:
        self._found, self._all = found, bool(found.all())

    def __call__(self, column: np.ndarray, absent: Any) -> np.ndarray:
        if self._all:
            return column
        whole = np.full(len(self._found), absent, column.dtype)
        whole[self._found] = column
        return whole


def _objects(kind: str, joined: bytes, begin: np.ndarray, end: np.ndarray, valid: np.ndarray) -> np.ndarray:
    column = np.empty(len(begin), object)
    if kind == "str" and valid.all():
        pairs = zip(begin.tolist(), end.tolist(), strict=True)
        column[:] = [str(joined[start:stop], "utf-8") for start, stop in pairs]
        return column
    read = _readers(kind)
    places = zip(begin.tolist(), end.tolist(), valid.tolist(), strict=True)
    for place, (start, stop, there) in enumerate(places):
        if there:
            column[place] = read(joined[start:stop])
    return column


@cache
def _readers(kind: str) -> Any:
    member = kind.removeprefix("list[").removesuffix("]")
    if kind == "bytes":
        return bytes
    if kind == "str":
        return bytes.decode
    if member in NUMBERS:
        return lambda cell: np.frombuffer(cell, NUMBERS[member])
    return lambda cell: _members(cell, member)


def _members(cell: bytes, kind: str) -> list[Any]:
    count = int.from_bytes(cell[:4], "little")
    ends = np.frombuffer(cell, _U4, count, 4).tolist()
    content = cell[4 + 4 * count :]
    pieces = [content[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    return pieces if kind == "bytes" else [piece.decode() for piece in pieces]


# --- columns to pack ------------------------------------------------------------------------------------------------


def cells_of(kind: str, values: Sequence[Any]) -> Cells:
    """A column from Python's values, None where null. Text is str, a list any sequence of its members."""
    valid = np.fromiter((value is not None for value in values), bool, len(values))
    if kind in NUMBERS:
        return Cells(valid, np.array([0 if value is None else value for value in values], NUMBERS[kind]))
    encode = _writers(kind)
    pieces = [b"" if value is None else encode(value) for value in values]
    ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))
    return Cells(valid, np.frombuffer(b"".join(pieces), np.uint8), ends)


@cache
def _writers(kind: str) -> Any:
    member = kind.removeprefix("list[").removesuffix("]")
    if kind == "bytes":
        return bytes
    if kind == "str":
        return str.encode
    if member in NUMBERS:
        return lambda values: np.asarray(values, NUMBERS[member]).tobytes()
    encode = _writers(member)
    return lambda values: _joined([encode(value) for value in values])


def _joined(pieces: Sequence[bytes]) -> bytes:
    ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces))).astype(_U4)
    return len(pieces).to_bytes(4, "little") + ends.tobytes() + b"".join(pieces)


def members_joined(valid: np.ndarray, list_ends: np.ndarray, member_ends: np.ndarray, data: np.ndarray) -> Cells:
    """A column of lists of text or bytes, from its members on end.

    list_ends: (N,), in members.  member_ends: (M,), in bytes of `data`.  A null list has no member.
    """
    counts = np.diff(list_ends, prepend=0)
    bounds = np.concatenate([[0], member_ends])
    first = bounds[np.concatenate([[0], list_ends[:-1]])] if len(list_ends) else bounds[:0]
    content = bounds[list_ends] - first
    size = np.where(valid, 4 + 4 * counts + content, 0)
    ends = np.cumsum(size)
    begin = ends - size
    out = np.zeros(int(size.sum()), np.uint8)
    _copy(counts[valid].astype(_U4).view(np.uint8), np.full(int(valid.sum()), 4), out, begin[valid])
    relative = (member_ends - np.repeat(first, counts)).astype(_U4)
    _copy(relative.view(np.uint8), 4 * counts, out, begin + 4)
    _copy(data, content, out, begin + 4 + 4 * counts)
    return Cells(valid, out, ends)
