"""Rows of raw files in the contract's types, in DuckDB's SQL: what cannot be used has its reason and stands as read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from feature_repo import contract
from jobs.engines.duckdb_session import literal
from jobs.raw import cells
from jobs.raw.cells import is_blank
from jobs.rules import events, items
from model import strict_json

CORRUPT: Final = "_corrupt_record"  # the line itself, where it is no row; else null
UNREADABLE: Final = "_bad_encoding"  # whether bytes of the row are not UTF-8
REASON: Final = "reason"  # why a row cannot be used; null where it can
ROW: Final = "row"  # such a row as JSON, as it was read; null for an accepted one
LOST: Final = "lost"  # of an accepted item: which optional values could not be read, jobs.rules.items.LOST
FILE: Final = "file"
NUMBER: Final = "number"  # of the row in its file; 1 is the first
# In ingested files it is null where it is that of the row in this one, which readers of parquet know: DuckDB counts the
# rows of text one by one, in one thread.
AS_IT_STANDS: Final = "NULL::BIGINT"
# How ingested rows are written: deltas halve the file, and nobody looks for a single value.
WRITTEN: Final = "FORMAT parquet, PARQUET_VERSION V2, WRITE_BLOOM_FILTER false"
MOMENTS: Final = ("created_at", "updated_at")  # of an item
COMMA: Final = r"\d+,\d{1,2}|\d{1,3}(?:\.\d{3})+,\d{1,2}"  # of a price: the comma can part no thousands
# The point can part no thousands: too few or too many digits stand on one side of it.
POINT: Final = r"\d*\.(?:\d{1,2}|\d{4,})|0\.\d+|\d{4,}\.\d+|\d{1,3}(?:,\d{3})+\.\d{1,2}|.*[eE].*"
KINDS: Final = {"str": "string", "int": "int32", "float": "double", "timestamp": "timestamp[us, tz=UTC]"}


@dataclass(frozen=True, slots=True)
class Part:
    """Rows as they were read.

    query: a SELECT of the contract's columns, CORRUPT, UNREADABLE, FILE and NUMBER.
    kinds: the type of each of the contract's columns, as jobs.raw.parquet_layout names them.
    may_have_nul: whether its text may hold a NUL, as far as is known.
    """

    query: str
    kinds: Mapping[str, str]
    may_have_nul: bool = True


def typed_events(part: Part) -> str:
    """A query of the contract's columns, REASON, ROW, FILE and NUMBER; no clock is looked at.

    Types: VARCHAR, but event_time TIMESTAMPTZ (microseconds) and position INTEGER.
    """
    time, position = (
        cells.moment("event_time", part.kinds["event_time"]),
        cells.position("position", part.kinds["position"]),
    )
    is_shown = f"_type = {literal(events.IMPRESSION)}"
    known = _in_our_time("_micros")
    ids = [_text(part, name) for name in ("user_id", "item_id", "request_id")]
    usable = [
        f"NOT ({_is_bad_row(part)}) AND NOT {UNREADABLE} AND {known}",
        *map(cells.is_surely_not_blank, ids),
        f"_type IS NOT NULL AND (_type <> {literal(events.IMPRESSION)} OR _position IS NOT NULL)",
    ]
    reason = first_reason(
        {
            events.BAD_ROW: _is_bad_row(part),
            events.BAD_ENCODING: UNREADABLE,
            events.NULL_USER_ID: is_blank(_text(part, "user_id")),
            events.NULL_ITEM_ID: is_blank(_text(part, "item_id")),
            events.NULL_REQUEST_ID: is_blank(_text(part, "request_id")),
            events.UNKNOWN_EVENT_TYPE: "_type IS NULL",
            events.NULL_EVENT_TIME: time.absent,
            events.NAIVE_EVENT_TIME: f"_micros IS NULL AND {time.naive}",
            events.BAD_EVENT_TIME: f"({known}) IS NOT TRUE",
            events.BAD_POSITION: f"{is_shown} AND _position IS NULL AND NOT ({position.absent})",
            events.NULL_POSITION: f"{is_shown} AND _position IS NULL",
        }
    )
    return _select(
        {
            **{name: _text(part, name) for name in ("user_id", "item_id")},
            "event_time": f"CASE WHEN {known} THEN make_timestamptz(_micros) END",
            "event_type": f"coalesce(_type, {_text(part, 'event_type')})",
            "request_id": _text(part, "request_id"),
            "position": "_position",
        },
        part,
        contract.EVENTS,
        # One look at nearly every row, and why only where it is needed.
        f"SELECT *, CASE WHEN {' AND '.join(usable)} THEN NULL ELSE {reason} END AS {REASON} "
        f"FROM (SELECT *, {time.micros} AS _micros, {_event_type(part)} AS _type, {position.number} AS _position "
        f"FROM ({part.query}))",
    )


def typed_items(part: Part, *, decimal_comma: bool = False) -> str:
    """A query of the contract's columns, REASON, ROW, LOST, FILE and NUMBER, each row judged without the others.

    Types: VARCHAR, but price DOUBLE, created_at and updated_at TIMESTAMPTZ, LOST VARCHAR[].
    decimal_comma: whether prices are written so.
    """
    moments = {name: cells.moment(name, part.kinds[name]) for name in MOMENTS}
    price = _price(part, decimal_comma)
    known = {name: _in_our_time(f"_{name}") for name in MOMENTS}
    reason = first_reason(
        {
            items.BAD_ROW: _is_bad_row(part),
            items.BAD_ENCODING: UNREADABLE,
            items.NULL_ITEM_ID: is_blank(_text(part, "item_id")),
        }
    )
    lost = {items.BAD_PRICE: price.bad} | {
        f"bad_{name}": f"NOT ({one.absent}) AND ({known[name]}) IS NOT TRUE" for name, one in moments.items()
    }
    micros = ", ".join(f"{one.micros} AS _{name}" for name, one in moments.items())
    listed = ", ".join(f"CASE WHEN {condition} THEN {literal(reason)} END" for reason, condition in lost.items())
    texts = {name: _text(part, name) for name in ("image_uri", "category", "title")}
    return _select(
        {
            "item_id": _text(part, "item_id"),
            **{name: f"CASE WHEN NOT {is_blank(text)} THEN {text} END" for name, text in texts.items()},
            "price": price.number,
            **{name: f"CASE WHEN {known[name]} THEN make_timestamptz(_{name}) END" for name in MOMENTS},
        },
        part,
        contract.ITEMS,
        f"SELECT *, {reason} AS {REASON} FROM (SELECT *, {micros} FROM ({part.query}))",
        {LOST: f"CASE WHEN {REASON} IS NULL THEN list_filter([{listed}], lambda one: one IS NOT NULL) ELSE [] END"},
    )


def decimal_commas(part: Part) -> str:
    """A query of one value: whether the prices of these rows are written with decimal commas, as far as they say.

    `12,99` and `1.299,00` say so, `12.99` and `1,299.00` that they are not; `1,299` and `1.299` may be either.
    """
    text = f"trim({_text(part, 'price')}, {cells.WHITE_SPACE})"
    comma = f"regexp_full_match({text}, {literal(COMMA)})"
    point = f"regexp_full_match({text}, {literal(POINT)})"
    return f"SELECT coalesce(bool_or({comma}) AND NOT bool_or({point}), FALSE) FROM ({part.query})"


def broken_rows(columns: Sequence[contract.Column], broken: str) -> str:
    """A query like typed_events or typed_items of lines that are no rows.

    broken: a query of NUMBER, REASON, CORRUPT (the line) and FILE.
    """
    types = {"str": "VARCHAR", "int": "INTEGER", "float": "DOUBLE", "timestamp": "TIMESTAMPTZ"}
    empty = [f"NULL::{types[column.kind]} AS {column.name}" for column in columns]
    corrupt = json_object({CORRUPT: cells.as_json(CORRUPT, "string")})
    lost = [f"[]::VARCHAR[] AS {LOST}"] if columns is contract.ITEMS else []
    return f"SELECT {', '.join([*empty, REASON, f'{corrupt} AS {ROW}', *lost, FILE, NUMBER])} FROM ({broken})"


def _select(
    columns: Mapping[str, str],
    part: Part,
    named: Sequence[contract.Column],
    judged: str,
    more: Mapping[str, str] | None = None,
) -> str:
    as_read = json_object({column.name: cells.as_json(column.name, part.kinds[column.name]) for column in named})
    corrupt = json_object({CORRUPT: cells.as_json(CORRUPT, "string")})
    row = f"CASE WHEN {REASON} IS NULL THEN NULL WHEN {CORRUPT} IS NOT NULL THEN {corrupt} ELSE {as_read} END"
    with_reason = {**columns, REASON: REASON, ROW: row, **(more or {}), FILE: FILE, NUMBER: NUMBER}
    wanted = ", ".join(f"{sql} AS {name}" for name, sql in with_reason.items())
    return f"SELECT {wanted} FROM ({judged})"


def _event_type(part: Part) -> str:
    kind, known = _text(part, "event_type"), ", ".join(map(literal, contract.EVENT_TYPES))
    lower = f"lower(trim({kind}, {cells.WHITE_SPACE}))"  # costs more than the look at whether it is needed
    ascii_alone = f"strlen({kind}) = length({kind})"  # a Turkish capital I with its dot is another letter
    return f"CASE WHEN {kind} IN ({known}) THEN {kind} WHEN {lower} IN ({known}) AND {ascii_alone} THEN {lower} END"


def _price(part: Part, decimal_comma: bool) -> cells.Price:
    return cells.price("price", part.kinds["price"], decimal_comma=decimal_comma)


def _is_bad_row(part: Part) -> str:
    # No text has a NUL: it stands in blocks that a crash left unwritten, and no database takes it.
    nul = [cells.has_nul(name) for name, kind in part.kinds.items() if cells.is_text(kind) and part.may_have_nul]
    return " OR ".join([f"{CORRUPT} IS NOT NULL", *nul])


def _text(part: Part, name: str) -> str:
    return cells.text(name, part.kinds[name])


def _in_our_time(micros: str) -> str:
    return f"{micros} >= {events.micros(events.EARLIEST)} AND {micros} < {events.micros(events.LATEST)}"


def first_reason(reasons: Mapping[str, str]) -> str:
    """The first reason, in their order, whose condition holds; null where none does."""
    return f"CASE {' '.join(f'WHEN {found} THEN {literal(reason)}' for reason, found in reasons.items())} END"


def json_object(values: Mapping[str, str]) -> str:
    """A JSON object of values that are JSON already."""
    members = ", ',', ".join(f"{literal(strict_json.dumps(name) + ':')}, {value}" for name, value in values.items())
    return f"concat('{{', {members}, '}}')"


def file_name(name: str) -> str:
    """The name of a raw file, as the value of each of its rows: an ENUM is written without a look at each."""
    return f"{literal(name)}::ENUM({literal(name)})"


def union(queries: Iterable[str]) -> str:
    """The rows of all queries."""
    return "\nUNION ALL ".join(queries)
