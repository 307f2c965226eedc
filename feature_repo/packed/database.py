"""The databases that can hold packed rows: what each does, and which of them a connection string names."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np

from feature_repo.errors import CourierError

MAX_TABLE_NAME: Final = 63  # bytes; PostgreSQL would cut a longer name, and take two tables for one
FORMS: Final = "sqlite:///PATH, postgresql://HOST/DATABASE, redis://HOST:PORT/NUMBER or rediss://..."


class Batch(NamedTuple):
    """Packed rows to be written: keys, event and created times, (N,) int64 in microseconds, and the rows themselves."""

    keys: list[bytes]
    event_time: np.ndarray
    created_time: np.ndarray
    rows: list[bytes]


class Asked(NamedTuple):
    """The keys whose rows are wanted from one table."""

    table: str
    keys: Sequence[bytes]


class Database(Protocol):
    """Tables of packed rows by key. Any thread may call; errors are those of the database's driver.

    A row replaces one of an earlier (event time, created time) or of the same, never a later one, whoever else writes;
    unless `write` is told otherwise.
    """

    def create(self, table: str) -> None:
        """Make a table where there is none."""

    def drop(self, table: str) -> None:
        """Remove a table and all its rows, where there is one."""

    def read(self, asked: Sequence[Asked]) -> list[list[bytes | None]]:
        """For each table asked, the row of each key; None where there is none."""

    def write(self, table: str, batch: Batch, *, as_of: int | None = None) -> None:
        """Write rows, all or none of a batch (Redis: row by row). A key may come twice: the later time stays.

        as_of: the batch says what holds at this event time, so it replaces rows of up to it even by earlier ones.
        """

    def count(self, table: str) -> int:
        """How many rows a table holds, which must be there (Redis: about, while others write)."""

    def some_row(self, table: str) -> bytes | None:
        """Any row of a table; None where it holds none, or is not there."""

    def delete_before(self, table: str, event_time: int) -> int:
        """Delete the rows of an event time before this one; how many there were."""

    def find(self, table: str, *, in_key: bytes = b"", in_row: bytes = b"") -> list[bytes]:
        """The keys of all rows whose key and whose bytes hold these: every row is looked at. None without the table."""

    def delete(self, table: str, keys: Sequence[bytes]) -> int:
        """Delete the rows of these keys; how many there were."""

    def close(self) -> None:
        """Give back what connections this thread holds."""


def table_name(project: str, view: str) -> str:
    """The table that holds a view of a Feast project."""
    name = f"{project}_{view}"
    if len(name.encode()) <= MAX_TABLE_NAME:
        return name
    tail = f"_{zlib.crc32(name.encode()):08x}"
    return name.encode()[: MAX_TABLE_NAME - len(tail)].decode(errors="ignore") + tail


class ConnectionUnknown(CourierError):
    """A connection string that names none of the databases."""


def open_database(connection: str, folder: Path = Path()) -> Database:
    """The database that a connection string names; it is connected to when it is first used.

    folder: where a relative path of SQLite begins.  Raises ConnectionUnknown.
    """
    scheme, _, rest = connection.partition("://")
    # Each driver is imported by whoever uses it: a server with one database needs no other.
    if scheme == "sqlite" and rest.startswith("/") and rest != "/":
        from feature_repo.packed.sqlite_rows import SqliteRows

        return SqliteRows(folder / rest.removeprefix("/"))
    if scheme in ("postgresql", "postgres"):
        from feature_repo.packed.postgresql_rows import PostgresqlRows

        return PostgresqlRows(connection)
    if scheme in ("redis", "rediss", "unix"):
        from feature_repo.packed.redis_rows import RedisRows

        return RedisRows(connection)
    # The string may hold a password: its scheme is all that is shown.
    raise ConnectionUnknown(f"no online store is reached by {scheme[:20]!r}: give {FORMS}")


def newest(batch: Batch) -> Batch:
    """The rows of a batch, each key once and sorted by it: its last in time, and of those its last in order."""
    order = np.lexsort((np.arange(len(batch.keys)), batch.created_time, batch.event_time)).tolist()
    places = {batch.keys[place]: place for place in order}
    kept = sorted(places.values(), key=batch.keys.__getitem__)
    return Batch(
        [batch.keys[place] for place in kept],
        batch.event_time[kept],
        batch.created_time[kept],
        [batch.rows[place] for place in kept],
    )
