"""Packed rows in PostgreSQL: a table a view, written by COPY and one merge a batch."""

import threading
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from feature_repo.packed.database import Asked, Batch, newest
from feature_repo.packed.rows import NO_TIME

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS {table} (
    entity_key bytea PRIMARY KEY, event_time bigint NOT NULL, created_time bigint NOT NULL, packed bytea NOT NULL
)
"""
_INCOMING: Final = """
CREATE TEMP TABLE IF NOT EXISTS packed_incoming (entity_key bytea, event_time bigint, created_time bigint, packed bytea)
ON COMMIT DELETE ROWS
"""
_COPY: Final = "COPY packed_incoming FROM STDIN (FORMAT binary)"
# Ordered by key: two writers that lock the same rows in one order do not block each other.
_MERGE: Final = """
INSERT INTO {table} AS held SELECT * FROM packed_incoming ORDER BY entity_key ON CONFLICT (entity_key) DO UPDATE
SET event_time = excluded.event_time, created_time = excluded.created_time, packed = excluded.packed
WHERE (excluded.event_time, excluded.created_time) >= (held.event_time, held.created_time) OR held.event_time <= %s
"""
_FIND: Final = "SELECT entity_key FROM {table} WHERE position(%s in entity_key) > 0 AND position(%s in packed) > 0"
_DELETE: Final = "DELETE FROM {table} WHERE entity_key = ANY(%s)"
_READ: Final = "SELECT entity_key, packed FROM {table} WHERE entity_key = ANY(%s)"


class PostgresqlRows:
    """A Database on a PostgreSQL server; a connection a thread, made anew where it has been lost."""

    def __init__(self, connection: str) -> None:
        self._address = connection
        self._local = threading.local()

    def create(self, table: str) -> None:
        """See Database."""
        self._change("SELECT pg_advisory_xact_lock(hashtext('packed rows'))", _on(_CREATE, table))

    def drop(self, table: str) -> None:
        """See Database."""
        self._change(_on("DROP TABLE IF EXISTS {table}", table))

    def read(self, asked: Sequence[Asked]) -> list[list[bytes | None]]:
        """See Database. One round trip, whatever the number of tables."""
        connection, cursors = self._connection(), []
        with connection.pipeline():
            for table, keys in asked:
                cursor = connection.cursor(binary=True)
                cursors.append(cursor.execute(_on(_READ, table), (list(keys),), prepare=True))
        found: list[dict[bytes, bytes]] = [dict(cursor.fetchall()) for cursor in cursors]
        return [list(map(rows.get, keys)) for rows, (_, keys) in zip(found, asked, strict=True)]

    def write(self, table: str, batch: Batch, *, as_of: int | None = None) -> None:
        """See Database."""
        once = newest(batch)  # one merge may not touch a row twice
        connection = self._connection()
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute(_INCOMING)
            with cursor.copy(_COPY) as copy:
                copy.set_types(["bytea", "int8", "int8", "bytea"])
                times = (once.event_time.tolist(), once.created_time.tolist())
                for row in zip(once.keys, *times, once.rows, strict=True):
                    copy.write_row(row)
            cursor.execute(_on(_MERGE, table), (NO_TIME if as_of is None else as_of,))

    def count(self, table: str) -> int:
        """See Database."""
        [count] = self._connection().execute(_on("SELECT count(*) FROM {table}", table)).fetchone() or [0]
        return int(count)

    def some_row(self, table: str) -> bytes | None:
        """See Database."""
        connection = self._connection()
        there = connection.execute(
            "SELECT 1 FROM pg_tables WHERE tablename = %s AND schemaname = ANY(current_schemas(false))", (table,)
        )
        if there.fetchone() is None:
            return None
        cursor = connection.cursor(binary=True)
        found: bytes | None
        [found] = cursor.execute(_on("SELECT packed FROM {table} LIMIT 1", table)).fetchone() or [None]
        return found

    def delete_before(self, table: str, event_time: int) -> int:
        """See Database."""
        done = self._connection().execute(_on("DELETE FROM {table} WHERE event_time < %s", table), (event_time,))
        return done.rowcount

    def find(self, table: str, *, in_key: bytes = b"", in_row: bytes = b"") -> list[bytes]:
        """See Database."""
        if self.some_row(table) is None:
            return []
        cursor = self._connection().cursor(binary=True)
        return [key for (key,) in cursor.execute(_on(_FIND, table), (in_key, in_row)).fetchall()]

    def delete(self, table: str, keys: Sequence[bytes]) -> int:
        """See Database."""
        if self.some_row(table) is None:
            return 0
        return self._connection().execute(_on(_DELETE, table), (list(keys),)).rowcount

    def close(self) -> None:
        """See Database."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def _change(self, *statements: Any) -> None:
        connection = self._connection()
        with connection.transaction():
            for statement in statements:
                connection.execute(statement)

    def _connection(self) -> "psycopg.Connection[Any]":
        connection: psycopg.Connection[Any] | None = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            connection = psycopg.connect(self._address, autocommit=True)
            self._local.connection = connection
        return connection


def _on(statement: str, table: str) -> sql.Composed:
    return sql.SQL(statement).format(table=sql.Identifier(table))
