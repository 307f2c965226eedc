"""Read the raw tables by DuckDB into the contract's columns, and set aside the rows that cannot be used, with why."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import duckdb

from feature_repo import contract
from jobs.engines.duckdb_session import literal
from jobs.raw import duckdb_cells as cells
from jobs.raw.arrow_batches import CORRUPT, FILE
from jobs.raw.duckdb_cells import is_blank
from jobs.raw.duckdb_files import UNREADABLE, Part, parts
from jobs.raw.folder import TableFiles, table_files
from jobs.rules import events as logic
from jobs.rules import items as catalogue
from model.artifact import AnyPath

REASON: Final = "reason"
NUMBER: Final = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
KINDS: Final = {"str": "string", "int": "int32", "float": "double", "timestamp": "timestamp[us, tz=UTC]"}
ROW: Final = "row"  # a rejected row as JSON, as it was read; null for an accepted one

# Of what writes a moment as the column event_time has them: a condition on that column.
Only = Callable[[Callable[[datetime], str]], str]


def read_events(db: duckdb.DuckDBPyConnection, raw: AnyPath, as_of: datetime) -> str:
    """A query of the events table: the contract's columns, `reason`, `row` and `_file`.

    Types: VARCHAR, but event_time TIMESTAMPTZ (microseconds) and position INTEGER. reason and row are null for an
    acceptable event. Each is judged by itself.  as_of: the clock that says which lie in the future.
    Raises RawTableUnusable, RawTableMissing.
    """
    return judged_events(db, table_files(raw, "events"), as_of)


def read_items(db: duckdb.DuckDBPyConnection, raw: AnyPath) -> str:
    """A query of the items table: the contract's columns, `reason`, `row` and `_file`.

    Types: VARCHAR, but price DOUBLE and created_at TIMESTAMPTZ. reason and row are null for an accepted item.
    Raises RawTableUnusable, RawTableMissing.
    """
    return _without_repeated(judged_items(db, table_files(raw, "items")))


def judged_items(db: duckdb.DuckDBPyConnection, table: TableFiles) -> str:
    """As read_items, of some files of items, each row judged without regard to the others."""
    return _union(_judged_item(part) for part in parts(db, table))


def judged_events(db: duckdb.DuckDBPyConnection, table: TableFiles, as_of: datetime, only: Only | None = None) -> str:
    """As read_events, of some files of events.

    only: which rows are wanted: then DuckDB reads no more than the parquet row groups that may hold one. Where
    event_time is text, `only` is not asked.
    """
    return _union(_judged_event(part, as_of, only) for part in parts(db, table))


def events_between(
    db: duckdb.DuckDBPyConnection, table: TableFiles, start: datetime, end: datetime, as_of: datetime
) -> str:
    """As read_events, of some files of events, and only what happened in [start, end)."""

    def between(moment: Callable[[datetime], str]) -> str:
        return f"event_time >= {moment(start)} AND event_time < {moment(end)}"

    return f"SELECT * FROM ({judged_events(db, table, as_of, between)}) WHERE {between(cells.timestamptz)}"


def undated_events(db: duckdb.DuckDBPyConnection, table: TableFiles, as_of: datetime) -> str:
    """As read_events, of some files of events, and only the rows whose time is not known or lies in the future."""
    ahead = min(logic.future_from(as_of), logic.LATEST)

    def undated(moment: Callable[[datetime], str]) -> str:
        # In this form, of the statistics of a row group DuckDB can tell whether it may hold such a row.
        return f"event_time IS NULL OR event_time < {moment(logic.EARLIEST)} OR event_time >= {moment(ahead)}"

    return f"SELECT * FROM ({judged_events(db, table, as_of, undated)}) WHERE event_time IS NULL"


def _union(queries: Iterable[str]) -> str:
    return "\nUNION ALL ".join(queries)


# --- columns as they were read -> the contract's, with a reason ------------------------------------------------------


def _judged_event(part: Part, as_of: datetime, only: Only | None) -> str:
    time, event_type = cells.moment("event_time", part.kinds["event_time"]), _text(part, "event_type")
    position = cells.position("position", part.kinds["position"])
    known, ahead = _in_our_time("_micros"), f"_micros >= {logic.micros(logic.future_from(as_of))}"
    reason = first_reason(
        {
            logic.BAD_ROW: _is_bad_row(part),
            logic.BAD_ENCODING: UNREADABLE,
            logic.NULL_USER_ID: is_blank(_text(part, "user_id")),
            logic.NULL_ITEM_ID: is_blank(_text(part, "item_id")),
            logic.NULL_REQUEST_ID: is_blank(_text(part, "request_id")),
            logic.UNKNOWN_EVENT_TYPE: f"({event_type} IN ({_literals(contract.EVENT_TYPES)})) IS NOT TRUE",
            logic.NULL_EVENT_TIME: time.absent,
            logic.NAIVE_EVENT_TIME: time.naive,
            logic.BAD_EVENT_TIME: f"({known}) IS NOT TRUE",
            logic.FUTURE_EVENT_TIME: ahead,
            logic.BAD_POSITION: position.bad,
            logic.NULL_POSITION: f"{position.absent} AND {event_type} = {literal(logic.IMPRESSION)}",
        }
    )
    wanted = cells.timestamp_like(part.kinds["event_time"]) if only else None
    narrowed = f"{part.query} WHERE {only(wanted)}" if only and wanted else part.query
    return _select(
        {
            **{name: _text(part, name) for name in ("user_id", "item_id")},
            # What lies in the future belongs to no day yet.
            "event_time": f"CASE WHEN {known} AND NOT ({ahead}) THEN make_timestamptz(_micros) END",
            **{name: _text(part, name) for name in ("event_type", "request_id")},
            "position": position.number,
        },
        part,
        contract.EVENTS,
        f"SELECT *, {reason} AS {REASON} FROM (SELECT *, {time.micros} AS _micros FROM ({narrowed}))",
    )


def _judged_item(part: Part) -> str:
    created = cells.moment("created_at", part.kinds["created_at"])
    price = f"trim({_text(part, 'price')}, {cells.WHITE_SPACE})"
    unknown = f"({is_blank('_price')} OR lower(_price) = 'nan')"
    number = f"CASE WHEN NOT {unknown} THEN try_cast(_price AS DOUBLE) END"
    is_price = (
        f"regexp_full_match(_price, {literal(NUMBER)}) AND try_cast(_price AS DOUBLE) >= 0 "
        f"AND try_cast(_price AS DOUBLE) < 'inf'::DOUBLE"
    )
    known = _in_our_time("_micros")
    reason = first_reason(
        {
            catalogue.BAD_ROW: _is_bad_row(part),
            catalogue.BAD_ENCODING: UNREADABLE,
            catalogue.NULL_ITEM_ID: is_blank(_text(part, "item_id")),
            catalogue.BAD_PRICE: f"NOT {unknown} AND ({is_price}) IS NOT TRUE",
            catalogue.BAD_CREATED_AT: f"NOT ({created.absent}) AND ({known}) IS NOT TRUE",
        }
    )
    texts = {name: _text(part, name) for name in ("image_uri", "category", "title")}
    return _select(
        {
            "item_id": _text(part, "item_id"),
            **{name: f"CASE WHEN NOT {is_blank(text)} THEN {text} END" for name, text in texts.items()},
            "price": number,
            "created_at": f"CASE WHEN {known} THEN make_timestamptz(_micros) END",
        },
        part,
        contract.ITEMS,
        f"SELECT *, {reason} AS {REASON} "
        f"FROM (SELECT *, {created.micros} AS _micros, {price} AS _price FROM ({part.query}))",
    )


def _select(columns: Mapping[str, str], part: Part, named: Sequence[contract.Column], judged: str) -> str:
    as_read = json_object({column.name: cells.as_json(column.name, part.kinds[column.name]) for column in named})
    corrupt = json_object({CORRUPT: cells.as_json(CORRUPT, "string")})
    row = f"CASE WHEN {REASON} IS NULL THEN NULL WHEN {CORRUPT} IS NOT NULL THEN {corrupt} ELSE {as_read} END"
    with_reason = {**columns, REASON: REASON, ROW: row, FILE: FILE}
    wanted = ", ".join(f"{sql} AS {name}" for name, sql in with_reason.items())
    return f"SELECT {wanted} FROM ({judged})"


def _is_bad_row(part: Part) -> str:
    # No text has a NUL: it stands in blocks that a crash left unwritten, and no database takes it.
    nul = [cells.has_nul(name) for name, kind in part.kinds.items() if cells.is_text(kind)]
    return " OR ".join([f"{CORRUPT} IS NOT NULL", *nul])


def _text(part: Part, name: str) -> str:
    return cells.text(name, part.kinds[name])


def _in_our_time(micros: str) -> str:
    return f"{micros} >= {logic.micros(logic.EARLIEST)} AND {micros} < {logic.micros(logic.LATEST)}"


def _literals(values: Iterable[str]) -> str:
    return ", ".join(map(literal, values))


def first_reason(reasons: Mapping[str, str]) -> str:
    """The first reason, in their order, whose condition holds; null where none does."""
    return f"CASE {' '.join(f'WHEN {found} THEN {literal(reason)}' for reason, found in reasons.items())} END"


def json_object(values: Mapping[str, str]) -> str:
    """A JSON object of values that are JSON already."""
    members = ", ',', ".join(f"{literal(json.dumps(name) + ':')}, {value}" for name, value in values.items())
    return f"concat('{{', {members}, '}}')"


# --- rows that contradict other rows --------------------------------------------------------------------------------


def _without_repeated(judged: str) -> str:
    """`judged` with all acceptable rows of an item_id rejected but the first by catalogue.precedence."""
    order = ", ".join(f"{name} ASC NULLS LAST" for name in catalogue.PRECEDENCE)
    again = f"CASE WHEN {REASON} IS NULL AND _rank > 1 THEN {literal(catalogue.DUPLICATE_ITEM_ID)} END"
    numbered = f"SELECT *, row_number() OVER (PARTITION BY item_id, {REASON} ORDER BY {order}) AS _rank FROM ({judged})"
    return reject_also(numbered, again, contract.ITEMS)


def reject_also(judged: str, reason: str, columns: Sequence[contract.Column]) -> str:
    """`judged` in the contract's columns, reason, row and _file; rejected too where `reason` is not null."""
    names = ", ".join(column.name for column in columns)
    as_typed = json_object({column.name: cells.as_json(column.name, KINDS[column.kind]) for column in columns})
    return (
        f"SELECT {names}, coalesce({REASON}, _second) AS {REASON}, "
        f"CASE WHEN {REASON} IS NOT NULL THEN {ROW} WHEN _second IS NOT NULL THEN {as_typed} END AS {ROW}, {FILE} "
        f"FROM (SELECT *, {reason} AS _second FROM ({judged}))"
    )
