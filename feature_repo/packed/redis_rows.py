"""Packed rows in Redis: a key a row, read by MGET, written by a script that looks at the row that is there."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

import redis

from feature_repo.packed.database import Asked, Batch, newest
from feature_repo.packed.rows import NO_TIME, TIMES_AT

ROWS_A_CALL: Final = 500  # of the script, which other clients wait for: some milliseconds
SCANNED_AT_ONCE: Final = 1_000

# A time is compared in halves: Lua's numbers hold 53 bits, and its comparison of strings goes by the server's locale.
_TIMES: Final = f"""
local function times(row, at)
    local low, high, created_low, created_high = struct.unpack('<I4i4I4i4', row, at)
    return {{high, low, created_high, created_low}}
end
local function header(key)
    local held = redis.call('GETRANGE', key, {TIMES_AT}, {TIMES_AT + 15})
    return #held == 16 and times(held, 1) or nil
end
"""
_WRITE: Final = f"""{_TIMES}
local function is_before(a, b)
    for part = 1, 4 do
        if a[part] ~= b[part] then return a[part] < b[part] end
    end
    return false
end
local low, high = struct.unpack('<I4i4', ARGV[#KEYS + 1])
for place, key in ipairs(KEYS) do
    local held = header(key)
    local replaced = held and (held[1] < high or (held[1] == high and held[2] <= low))
    if not held or replaced or not is_before(times(ARGV[place], {TIMES_AT + 1}), held) then
        redis.call('SET', key, ARGV[place])
    end
end
"""
_DELETE: Final = f"""{_TIMES}
local low, high = struct.unpack('<I4i4', ARGV[1])
local deleted = 0
for _, key in ipairs(KEYS) do
    local held = header(key)
    if held and (held[1] < high or (held[1] == high and held[2] < low)) then
        deleted = deleted + redis.call('DEL', key)
    end
end
return deleted
"""


class RedisRows:
    """A Database on one Redis server (not a cluster: a table's keys must lie together)."""

    def __init__(self, connection: str) -> None:
        self._redis: Any = redis.Redis.from_url(connection)
        self._write = self._redis.register_script(_WRITE)
        self._delete = self._redis.register_script(_DELETE)

    def create(self, table: str) -> None:
        """See Database: a table is the beginning of its keys, so there is nothing to make."""

    def drop(self, table: str) -> None:
        """See Database."""
        for keys in self._keys(table):
            self._redis.unlink(*keys)

    def read(self, asked: Sequence[Asked]) -> list[list[bytes | None]]:
        """See Database. One round trip, whatever the number of tables; what they hold is of one moment."""
        names = [name for table, keys in asked for name in row_names(table, keys)]
        found = self._redis.mget(names) if names else []
        ends = list(accumulate((len(keys) for _, keys in asked), initial=0))
        return [found[start:end] for start, end in pairwise(ends)]

    def write(self, table: str, batch: Batch, *, as_of: int | None = None) -> None:
        """See Database."""
        once = batch if as_of is None else newest(batch)
        names, limit = row_names(table, once.keys), _time(NO_TIME if as_of is None else as_of)
        with self._redis.pipeline(transaction=False) as pipeline:
            for start in range(0, len(names), ROWS_A_CALL):
                some = slice(start, start + ROWS_A_CALL)
                self._write(names[some], [*once.rows[some], limit], client=pipeline)
            pipeline.execute()

    def count(self, table: str) -> int:
        """See Database."""
        return sum(len(keys) for keys in self._keys(table))

    def some_row(self, table: str) -> bytes | None:
        """See Database."""
        found: bytes | None = None
        for keys in self._keys(table):
            found = self._redis.get(keys[0])
            if found is not None:
                break
        return found

    def delete_before(self, table: str, event_time: int) -> int:
        """See Database."""
        return sum(self._delete(keys, [_time(event_time)]) for keys in self._keys(table))

    def find(self, table: str, *, in_key: bytes = b"", in_row: bytes = b"") -> list[bytes]:
        """See Database."""
        start = len(_prefix(table))
        found: set[bytes] = set()
        for names in self._keys(table):
            theirs = [name for name in names if in_key in name[start:]]
            rows = self._redis.mget(theirs) if in_row and theirs else [in_row] * len(theirs)
            found.update(
                name[start:] for name, row in zip(theirs, rows, strict=True) if row is not None and in_row in row
            )
        return sorted(found)  # a scan may show a key twice

    def delete(self, table: str, keys: Sequence[bytes]) -> int:
        """See Database."""
        return int(self._redis.delete(*row_names(table, keys))) if keys else 0

    def close(self) -> None:
        """See Database: of all threads."""
        self._redis.close()

    def _keys(self, table: str) -> Iterator[list[bytes]]:
        pattern = b"".join(b"\\" + bytes([letter]) for letter in _prefix(table)) + b"*"
        cursor = None
        while cursor != 0:
            cursor, keys = self._redis.scan(cursor or 0, match=pattern, count=SCANNED_AT_ONCE)
            if keys:
                yield keys


def _time(moment: int) -> bytes:
    return moment.to_bytes(8, "little", signed=True)


def _prefix(table: str) -> bytes:
    # The length before the name: no table's keys begin as another's do.
    name = table.encode()
    return b"packed:%d:%b:" % (len(name), name)


def row_names(table: str, keys: Sequence[bytes]) -> list[bytes]:
    """What Redis calls the rows of these keys."""
    prefix = _prefix(table)
    return [prefix + key for key in keys]
