"""Canonical tables by DuckDB: what cannot be used is set aside, with why."""

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import duckdb

from feature_repo import contract
from jobs.engines.duckdb_session import literal
from jobs.raw import cells
from jobs.raw.canonical import CanonicalTable
from jobs.raw.cells import ABSENT
from jobs.raw.typed import (
    CORRUPT,
    FILE,
    KINDS,
    LOST,
    NUMBER,
    REASON,
    ROW,
    UNREADABLE,
    Part,
    json_object,
    typed_events,
    typed_items,
)
from jobs.rules import events, items

TRUE: Final = "TRUE"


def read_events(db: duckdb.DuckDBPyConnection, table: CanonicalTable, as_of: datetime) -> str:
    """A query of the events table: the contract's columns, `reason`, `row`, `file` and `number`.

    Types: VARCHAR, but event_time TIMESTAMPTZ (microseconds), position INTEGER, number BIGINT. reason and row are null
    for an acceptable event. Each is judged by itself.  as_of: the clock that says which lie in the future.
    """
    return _judged_events(db, table, as_of, TRUE)


def events_between(
    db: duckdb.DuckDBPyConnection, table: CanonicalTable, start: datetime, end: datetime, as_of: datetime
) -> str:
    """As read_events, and only what happened in [start, end): the row groups that may hold some are read."""
    between = f"event_time >= {cells.timestamptz(start)} AND event_time < {cells.timestamptz(end)}"
    return f"SELECT * FROM ({_judged_events(db, table, as_of, between)}) WHERE {between}"


def undated_events(db: duckdb.DuckDBPyConnection, table: CanonicalTable, as_of: datetime) -> str:
    """As read_events, and only the rows whose time is not known or lies in the future."""
    ahead = min(events.future_from(as_of), events.LATEST)
    # In this form, of the statistics of a row group DuckDB can tell whether it may hold such a row.
    earliest, latest = cells.timestamptz(events.EARLIEST), cells.timestamptz(ahead)
    undated = f"event_time IS NULL OR event_time < {earliest} OR event_time >= {latest}"
    return f"SELECT * FROM ({_judged_events(db, table, as_of, undated)}) WHERE event_time IS NULL"


def event_times(db: duckdb.DuckDBPyConnection, table: CanonicalTable, as_of: datetime) -> str:
    """A query of the `path` and the `event_time` of each event, as of read_events; no more than that is read."""
    known = f"event_time >= {cells.timestamptz(events.EARLIEST)} AND NOT ({_is_ahead(as_of)})"
    return f"SELECT path, CASE WHEN {known} THEN event_time END AS event_time FROM {_files(db, table, 'path')}"


def read_items(db: duckdb.DuckDBPyConnection, table: CanonicalTable) -> str:
    """A query of the items table: the contract's columns, `reason`, `row`, `lost`, `file` and `number`.

    Types: VARCHAR, but price DOUBLE, created_at and updated_at TIMESTAMPTZ, lost VARCHAR[], number BIGINT. reason and
    row are null for an accepted item.
    """
    judged = items_alone(db, table)
    order = ", ".join(f"{name} ASC NULLS LAST" for name in (*items.PRECEDENCE, FILE, NUMBER))
    again = (
        f"CASE WHEN {REASON} IS NULL AND _rank > 1 THEN CASE WHEN updated_at IS NOT DISTINCT FROM _before "
        f"THEN {literal(items.DUPLICATE_ITEM_ID)} ELSE {literal(items.SUPERSEDED)} END END"
    )
    numbered = (
        f"SELECT *, row_number() OVER item AS _rank, lag(updated_at) OVER item AS _before FROM ({judged}) "
        f"WINDOW item AS (PARTITION BY item_id, {REASON} ORDER BY updated_at DESC NULLS LAST, {order})"
    )
    return _reject_also(numbered, again, contract.ITEMS, more=(LOST,))


def items_alone(db: duckdb.DuckDBPyConnection, table: CanonicalTable) -> str:
    """As read_items, each row judged without regard to the others."""
    return _rows(db, table, TRUE)


def _judged_events(db: duckdb.DuckDBPyConnection, table: CanonicalTable, as_of: datetime, only: str) -> str:
    ahead = _is_ahead(as_of)
    future = f"CASE WHEN {ahead} THEN {literal(events.FUTURE_EVENT_TIME)} END"
    judged = _reject_also(_rows(db, table, only), future, contract.EVENTS)
    # What lies in the future belongs to no day yet.
    return f"SELECT * REPLACE (CASE WHEN NOT ({ahead}) THEN event_time END AS event_time) FROM ({judged})"


def _is_ahead(as_of: datetime) -> str:
    return f"event_time >= {cells.timestamptz(min(events.future_from(as_of), events.LATEST))}"


def _rows(db: duckdb.DuckDBPyConnection, table: CanonicalTable, only: str) -> str:
    """The rows of a table, each with why it is of no use by itself. only: a condition on columns of the files."""
    if table.kinds is None:
        number = f"coalesce({NUMBER}, file_row_number + 1) AS {NUMBER}"
        return (
            f"SELECT * EXCLUDE (path, file_row_number) REPLACE ({number}) FROM {_files(db, table, 'path')} WHERE {only}"
        )
    columns = [f"NULL::VARCHAR AS {name}" if kind == ABSENT else name for name, kind in table.kinds.items()]
    query = (
        f"SELECT {', '.join(columns)}, NULL::VARCHAR AS {CORRUPT}, FALSE AS {UNREADABLE}, {FILE}, "
        f"file_row_number + 1 AS {NUMBER} FROM {_files(db, table, FILE)} WHERE {only}"
    )
    part = Part(query, table.kinds)
    return typed_events(part) if table.name == "events" else typed_items(part)


def _files(db: duckdb.DuckDBPyConnection, table: CanonicalTable, path: str) -> str:
    """The files of a table, with `file_row_number`. path: the name of a column for their paths."""
    first = table.files[0]
    if not isinstance(first, Path) and first.protocol not in db.list_filesystems():
        db.register_filesystem(first.fs)
    files, places = ", ".join(map(_pattern, table.files)), f"filename = '{path}', file_row_number = true"
    return f"read_parquet([{files}], hive_partitioning = false, {places})"


def _pattern(file: Path | object) -> str:
    # On this machine DuckDB tries the name itself first; of a store it asks fsspec, which takes it for a pattern.
    name = str(file.absolute()) if isinstance(file, Path) else str(file)
    return literal(name if isinstance(file, Path) else re.sub(r"([\[*?])", r"[\1]", name))


def _reject_also(judged: str, reason: str, columns: Sequence[contract.Column], more: Sequence[str] = ()) -> str:
    """`judged` in the contract's columns, `more` and what typed rows have; rejected too where `reason` is not null."""
    names = ", ".join([*(column.name for column in columns), *more])
    as_typed = json_object({column.name: cells.as_json(column.name, KINDS[column.kind]) for column in columns})
    return (
        f"SELECT {names}, coalesce({REASON}, _second) AS {REASON}, "
        f"CASE WHEN {REASON} IS NOT NULL THEN {ROW} WHEN _second IS NOT NULL THEN {as_typed} END AS {ROW}, "
        f"{FILE}, {NUMBER} FROM (SELECT *, {reason} AS _second FROM ({judged}))"
    )
