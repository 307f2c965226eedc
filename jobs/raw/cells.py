"""One raw value in DuckDB's SQL: as text, as a moment, a position or a price, and as JSON the way Spark writes it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from jobs.engines.duckdb_session import literal
from jobs.rules import events, items

ABSENT: Final = "absent"  # the kind of a column that is not there
WHITE_SPACE: Final = "concat(' ', chr(9), chr(10), chr(11), chr(12), chr(13))"
# Of what jobs.rules.events takes for a moment that which DuckDB casts as it stands: nearly all there is, with one look.
ISO_MOMENT: Final = (
    r"[12]\d{3}-\d\d-\d\d[T ][0-2]\d:[0-5]\d(?::[0-5]\d(?:\.\d{1,9})?)?(?:Z|[+-](?:0\d|1[0-4])(?::?[0-5]\d)?)"
)
# What nearly all of these are, read at less than half the cost of the pattern.
ZULU: Final = "____-__-__T__:__:__%Z"
ZULU_FORMATS: Final = "['%Y-%m-%dT%H:%M:%S.%fZ', '%Y-%m-%dT%H:%M:%SZ']"
YEAR_10000: Final = 253_402_300_800_000_000  # microseconds since 1970


@dataclass(frozen=True, slots=True)
class Moment:
    """A raw column read as a moment, in SQL: microseconds since 1970, null where it says none.

    naive: whether its text says one without an offset from UTC.
    """

    micros: str
    absent: str
    naive: str


@dataclass(frozen=True, slots=True)
class Position:
    """A raw column read as a place on the page, in SQL: null where it says none, and whether nothing stands there."""

    number: str
    absent: str


@dataclass(frozen=True, slots=True)
class Price:
    """A raw column read as a price, in SQL, and whether what stands there is none."""

    number: str
    bad: str


def is_text(kind: str) -> bool:
    """Whether a column of this kind, as jobs.raw.parquet_layout names it, is text, or null in every row."""
    return kind in ("string", "large_string", "null", ABSENT)


def text(name: str, kind: str) -> str:
    """A column as text; null for NaN, which is how pandas writes that there is no value."""
    if is_text(kind):
        return name
    return f"CASE WHEN NOT isnan({name}) THEN {java_number(name)} END" if _is_floating(kind) else f"{name}::VARCHAR"


def is_blank(text: str) -> str:
    """Whether a text is absent, empty or only white space."""
    # White space sorts before whatever else is written: only such a text is trimmed, which costs more than reading it.
    return f"({text} IS NULL OR ({text} < '!' AND ltrim({text}, {WHITE_SPACE}) = ''))"


def is_surely_not_blank(text: str) -> str:
    """Whether a text is none that is_blank may find: with one look."""
    return f"{text} >= '!'"


def has_nul(text: str) -> str:
    """Whether a text has a NUL."""
    return f"contains({text}, chr(0))"


def position(name: str, kind: str) -> Position:
    """A column read as a place on the page."""
    if kind.startswith(("int", "uint")):  # cheaper than its text
        fits = f"{name} BETWEEN 0 AND {events.LARGEST_POSITION}"
        return Position(f"CASE WHEN {fits} THEN {name}::INTEGER END", f"{name} IS NULL")
    written = text(name, kind)
    plain = f"try_cast({written} AS INTEGER)"  # costs less than the pattern, and nearly all are written so
    number = (
        f"CASE WHEN {plain} BETWEEN 0 AND {events.LARGEST_POSITION} AND {plain}::VARCHAR = {written} THEN {plain} "
        f"WHEN regexp_full_match({written}, {literal(events.POSITION)}) "
        f"THEN try_cast(regexp_extract({written}, '^[0-9]{{1,7}}') AS INTEGER) END"
    )
    return Position(number, is_blank(written))


def moment(name: str, kind: str) -> Moment:
    """A column read as a moment."""
    if _is_timed(kind):
        return Moment(_micros(name, kind), f"{name} IS NULL", "FALSE")
    written = text(name, kind)
    # DuckDB cuts off what is finer than microseconds, as we do; but it takes 24:00 for the next day's midnight.
    zulu = f"CASE WHEN {written} LIKE {literal(ZULU)} THEN {written} END"
    micros = (
        f"coalesce(epoch_us(try_strptime({zulu}, {ZULU_FORMATS})), "
        f"CASE WHEN substr({written}, 12, 2) >= '24' THEN NULL "
        f"WHEN regexp_full_match({written}, {literal(ISO_MOMENT)}) THEN epoch_us(try_cast({written} AS TIMESTAMPTZ)) "
        f"WHEN regexp_full_match({written}, {literal(events.LOCAL_MOMENT + events.OFFSET)}) "
        f"THEN epoch_us(try_cast({_as_iso(written)} AS TIMESTAMPTZ)) END)"
    )
    return Moment(micros, is_blank(written), f"regexp_full_match({written}, {literal(events.LOCAL_MOMENT)})")


def _as_iso(written: str) -> str:
    """A moment as ISO 8601 writes it: a full stop before fractions, T, Z or an offset that nothing precedes."""
    unnamed = f"regexp_replace(split_part({written}, '[', 1), '([+-][0-9:]+) [A-Z]+$', '\\1')"
    point = f"upper(replace({unnamed}, ',', '.'))"
    zulu = f"regexp_replace({point}, ' ?(?:UTC|GMT)$', 'Z')"
    return f"regexp_replace({zulu}, ' ([+-][0-9:]+)$', '\\1')"


def price(name: str, kind: str, *, decimal_comma: bool) -> Price:
    """A column read as a price. decimal_comma: whether its commas stand before decimals, and its points do not."""
    written = f"trim({text(name, kind)}, {WHITE_SPACE})"
    absent = f"({is_blank(written)} OR lower({written}) IN ({', '.join(map(literal, items.NO_PRICE))}))"
    # Under decimal commas 1.299 may be a thousand or one: only with a comma behind it is it known.
    clear = f"regexp_full_match({written}, '[+-]?(?:[0-9]+(?:,[0-9]+)?|[0-9]{{1,3}}(?:[.][0-9]{{3}})+,[0-9]+)')"
    plain = f"CASE WHEN {clear} THEN replace(replace({written}, '.', ''), ',', '.') END" if decimal_comma else written
    number = f"try_cast({plain} AS DOUBLE)"
    # What no float of 32 bits holds would be infinite in every model.
    fits = (
        f"regexp_full_match({plain}, {literal(items.NUMBER)}) AND {number} >= 0 AND {number} <= {items.LARGEST_PRICE}"
    )
    return Price(f"CASE WHEN NOT {absent} AND {fits} THEN {number} END", f"NOT {absent} AND ({fits}) IS NOT TRUE")


def timestamptz(at: datetime) -> str:
    """A moment as a TIMESTAMPTZ."""
    return f"{literal(_iso(at))}::TIMESTAMPTZ"


def _is_floating(kind: str) -> bool:
    return kind in ("float", "double")


def _is_timed(kind: str) -> bool:
    return kind == "int96" or kind.startswith("timestamp")


def _is_nanos(kind: str) -> bool:
    return kind.startswith("timestamp[ns")


def _micros(name: str, kind: str) -> str:
    if not _is_nanos(kind):
        return f"epoch_us({name})"
    # Floor, as everything finer than microseconds is cut off; DuckDB's division rounds towards zero.
    return f"((epoch_ns({name}) - (epoch_ns({name}) % 1000 + 1000) % 1000) // 1000)"


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(sep=" ")


# --- as JSON --------------------------------------------------------------------------------------------------------


def as_json(name: str, kind: str) -> str:
    """A column's value as Spark's to_json writes it, with AS_JSON of jobs.raw.spark_tables."""
    return f"coalesce({_json(name, kind)}, 'null')"


def _json(name: str, kind: str) -> str:
    if is_text(kind):
        return f"to_json({name})::VARCHAR"
    if _is_timed(kind):
        micros = _micros(name, kind)
        sign = f"(CASE WHEN {micros} >= {YEAR_10000} THEN '+' ELSE '' END)"
        return f"('\"' || {sign} || strftime(make_timestamp({micros}), '%Y-%m-%dT%H:%M:%S.%fZ') || '\"')"
    if _is_floating(kind):
        number = java_number(name)
        return f"CASE WHEN isfinite({name}) THEN {number} ELSE '\"' || {number} || '\"' END"
    return f"{name}::VARCHAR"


def java_number(name: str) -> str:
    """A DOUBLE or FLOAT as Java's Double.toString writes it: an item_id that is a number is the same text anywhere."""
    # DuckDB writes 0.0001 to 1e16 in full, and the others as 1.5e+300; Java so from 0.001 to 1e7, and as 1.5E300.
    written = f"{name}::VARCHAR"
    mantissa = f"replace(split_part({written}, 'e', 1), '-', '')"
    digits = f"trim(replace({mantissa}, '.', ''), '0')"
    exponent = (
        f"CASE WHEN contains({written}, 'e') THEN split_part({written}, 'e', 2)::INTEGER "
        f"WHEN abs({name}) >= 1 THEN strlen(split_part({mantissa}, '.', 1)) - 1 "
        f"ELSE -1 - strlen(regexp_extract({mantissa}, '[.](0*)', 1)) END"
    )
    sign = f"(CASE WHEN {name} < 0 THEN '-' ELSE '' END)"
    fraction = f"coalesce(nullif({digits}[2:], ''), '0')"
    return (
        f"(CASE WHEN isnan({name}) THEN 'NaN' WHEN isinf({name}) THEN {sign} || 'Infinity' "
        f"WHEN {name} = 0 OR (abs({name}) >= 0.001 AND abs({name}) < 1e7) THEN {written} "
        f"ELSE {sign} || {digits}[1] || '.' || {fraction} || 'E' || ({exponent}) END)"
    )
