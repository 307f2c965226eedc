"""Packed rows in a SQLite file: a table a view, in write-ahead mode, so that readers and a writer do not wait."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from feature_repo.packed.database import Asked, Batch, newest
from feature_repo.packed.rows import NO_TIME

WAIT_SECONDS: Final = 60.0  # for another writer's transaction
KEYS_A_QUERY: Final = 1_000  # SQLite takes up to 32,766 parameters

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS {table} (
    entity_key BLOB PRIMARY KEY, event_time INTEGER NOT NULL, created_time INTEGER NOT NULL, packed BLOB NOT NULL
) WITHOUT ROWID
"""
_WRITE: Final = """
INSERT INTO {table} AS held VALUES (?, ?, ?, ?) ON CONFLICT (entity_key) DO UPDATE
SET event_time = excluded.event_time, created_time = excluded.created_time, packed = excluded.packed
WHERE (excluded.event_time, excluded.created_time) >= (held.event_time, held.created_time) OR held.event_time <= ?
"""


class SqliteRows:
    """A Database in one file of this machine; a connection a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def create(self, table: str) -> None:
        """See Database."""
        with self._writing() as connection:
            connection.execute(_CREATE.format(table=_quoted(table)))

    def drop(self, table: str) -> None:
        """See Database."""
        with self._writing() as connection:
            connection.execute(f"DROP TABLE IF EXISTS {_quoted(table)}")

    def read(self, asked: Sequence[Asked]) -> list[list[bytes | None]]:
        """See Database. What several tables hold is of one moment."""
        connection = self._connection()
        connection.execute("BEGIN")
        try:
            return [_read(connection, table, keys) for table, keys in asked]
        finally:
            connection.rollback()

    def write(self, table: str, batch: Batch, *, as_of: int | None = None) -> None:
        """See Database."""
        once = batch if as_of is None else newest(batch)
        columns = (once.keys, once.event_time.tolist(), once.created_time.tolist(), once.rows)
        rows = zip(*columns, [NO_TIME if as_of is None else as_of] * len(once.keys), strict=True)
        with self._writing() as connection:
            connection.executemany(_WRITE.format(table=_quoted(table)), rows)

    def count(self, table: str) -> int:
        """See Database."""
        [(count,)] = self._connection().execute(f"SELECT count(*) FROM {_quoted(table)}")
        return int(count)

    def some_row(self, table: str) -> bytes | None:
        """See Database."""
        connection = self._connection()
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
            return None
        found: bytes | None
        [found] = connection.execute(f"SELECT packed FROM {_quoted(table)} LIMIT 1").fetchone() or [None]
        return found

    def delete_before(self, table: str, event_time: int) -> int:
        """See Database."""
        with self._writing() as connection:
            done = connection.execute(f"DELETE FROM {_quoted(table)} WHERE event_time < ?", (event_time,))
            return done.rowcount

    def find(self, table: str, *, in_key: bytes = b"", in_row: bytes = b"") -> list[bytes]:
        """See Database."""
        if self.some_row(table) is None:
            return []
        query = f"SELECT entity_key FROM {_quoted(table)} WHERE instr(entity_key, ?) > 0 AND instr(packed, ?) > 0"
        return [key for (key,) in self._connection().execute(query, (in_key, in_row))]

    def delete(self, table: str, keys: Sequence[bytes]) -> int:
        """See Database. What was deleted is overwritten in the file, too."""
        if self.some_row(table) is None:
            return 0
        self._connection().execute("PRAGMA secure_delete = on")
        with self._writing() as connection:
            query = f"DELETE FROM {_quoted(table)} WHERE entity_key = ?"
            done = connection.executemany(query, [(key,) for key in keys]).rowcount
        self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log still has the pages as they were
        return max(done, 0)

    def close(self) -> None:
        """See Database."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        # At once: a transaction that begins by reading is refused, not made to wait, when another writes meanwhile.
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            yield connection

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=WAIT_SECONDS, isolation_level=None)
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute(
                "PRAGMA synchronous = normal"
            )  # in this mode a crash loses no more than the last commits
            self._local.connection = connection
        return connection


def _read(connection: sqlite3.Connection, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
    found: dict[bytes, bytes] = {}
    for start in range(0, len(keys), KEYS_A_QUERY):
        some = keys[start : start + KEYS_A_QUERY]
        query = f"SELECT entity_key, packed FROM {_quoted(table)} WHERE entity_key IN ({','.join('?' * len(some))})"
        with closing(connection.execute(query, some)) as rows:
            found.update(rows)
    return list(map(found.get, keys))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
