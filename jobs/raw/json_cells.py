"""The cells of lines of JSON in DuckDB's SQL: lines as Python takes them for objects, numbers as Spark writes them."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from jobs.engines.duckdb_session import literal
from jobs.raw.cells import java_number
from jobs.raw.typed import CORRUPT
from model import strict_json

LINE: Final = "_line"

# DuckDB's parser takes a comma before a bracket, and infinities and NaN in any spelling.
TRAILING_COMMA: Final = r",[ \t\r\n]*[}\]]"
NO_NUMBER: Final = "(?i:inf|nan)"
AS_PYTHON_SPELLS_IT: Final = "(^|[^-])NaN|Infinity"
STRINGS: Final = r'"(?:[^"\\]|\\.)*"'
# Half a surrogate pair, which JSON can spell and UTF-8 cannot, and DuckDB's parser refuses.
WHOLE_PAIR: Final = r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
HALF_PAIR: Final = r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
# Text without escapes; numbers that Java writes alike: whole ones, and decimals of fifteen digits at most.
PLAIN_VALUE: Final = r'"[^"\\\x00-\x1f\x7f]*"|null|0|-?[1-9][0-9]{0,17}|[1-9][0-9]{0,5}[.](?:0|[0-9]{0,7}[1-9])'
BLANKS: Final = r"[ \t\r\n]*"
FLOATING: Final = "-?[0-9]+(?:[.][0-9]*)?(?:[eE][+-]?[0-9]+)?"


def cells_of_lines(lines: str, keys: Mapping[str, str], order: Sequence[str]) -> str:
    """A query of `lines`, which has LINE: its cells as text, and CORRUPT.

    keys: what each cell is to be called -> its key in the objects.  order: the keys of most objects, in theirs.
    Where a line is no JSON object, it stands in CORRUPT, and the cells are null.
    """
    lines = f"SELECT *, {_plain(keys, order)} AS _plain FROM ({lines})"
    lines = f"SELECT _plain, CASE WHEN _plain IS NULL THEN {LINE} END AS {LINE} FROM ({lines})"
    kinds = literal(strict_json.dumps(dict.fromkeys(keys.values(), "JSON"), ensure_ascii=False))
    mended = f"CASE WHEN json_valid({LINE}) THEN {LINE} WHEN {_may_be_mended()} THEN {_mended()} END"
    is_row = f"CASE WHEN json_valid(_json) THEN json_type(_json) = 'OBJECT' AND {_is_strict()} ELSE FALSE END"
    query = _added(lines, {"_json": mended})
    query = _added(query, {"_is_row": is_row})
    query = _added(query, {"_keys": "CASE WHEN _is_row THEN json_keys(_json) END"})
    query = _added(query, {"_row": f"CASE WHEN _is_row THEN json_transform(_json, {kinds}) END"})
    query = _added(query, {name: _value(key) for name, key in keys.items()})
    query = _added(query, {f"_float_{name}": _float(name) for name in keys})
    plain = "CASE WHEN _plain IS NOT NULL THEN struct_extract(_plain, {key}) ELSE {text} END AS {name}"
    cells = ", ".join(plain.format(key=literal(key), text=_text(name), name=name) for name, key in keys.items())
    corrupt = f"CASE WHEN NOT _is_row THEN {LINE} END AS {CORRUPT}"
    return f"SELECT {cells}, {corrupt} FROM ({query})"


def _plain(keys: Mapping[str, str], order: Sequence[str]) -> str:
    """The cells of an object of these keys in this order, whose values are written as any parser gives them back.

    Null for any other line, which costs six times as much to be read as Python reads it.
    """
    kinds = literal(strict_json.dumps(dict.fromkeys(keys.values(), "VARCHAR"), ensure_ascii=False))
    if len(set(order)) < len(order) or not all(re.fullmatch(r"\w+", key, re.ASCII) for key in order):
        return f"json_transform(NULL::JSON, {kinds})"
    members = f"{BLANKS},{BLANKS}".join(f'"{key}"{BLANKS}:{BLANKS}(?:{PLAIN_VALUE})' for key in order)
    whole = BLANKS.join(("", "[{]", members, "[}]", ""))
    return f"CASE WHEN regexp_full_match({LINE}, {literal(whole)}) THEN json_transform({LINE}::JSON, {kinds}) END"


def _added(query: str, columns: Mapping[str, str]) -> str:
    return f"SELECT *, {', '.join(f'{sql} AS {name}' for name, sql in columns.items())} FROM ({query})"


def _is_strict() -> str:
    """Whether a line that DuckDB takes for JSON is JSON, or what Python takes for such."""
    suspicious = f"regexp_matches(_json, {literal(f'{TRAILING_COMMA}|{NO_NUMBER}')})"
    outside = f"regexp_replace(_json, {literal(STRINGS)}, '', 'g')"
    others = f"regexp_replace({outside}, {literal(AS_PYTHON_SPELLS_IT)}, '', 'g')"
    found = f"regexp_matches({outside}, {literal(TRAILING_COMMA)}) OR regexp_matches({others}, {literal(NO_NUMBER)})"
    return f"CASE WHEN {suspicious} THEN NOT ({found}) ELSE TRUE END"


def _may_be_mended() -> str:
    return f"regexp_matches({LINE}, {literal(HALF_PAIR)}) AND NOT regexp_matches({LINE}, '[\\x01\\x02]')"


def _mended() -> str:
    """A line with a question mark for each half of a surrogate pair that stands alone."""
    backslash, pair = "chr(1)", "chr(2)"  # these stand in no JSON: for an escaped backslash, and a whole pair's escapes
    safe = f"replace({LINE}, '\\\\', {backslash})"
    paired = f"regexp_replace({safe}, {literal(WHOLE_PAIR)}, {pair} || '\\1' || {pair} || '\\2', 'g')"
    mended = f"regexp_replace({paired}, {literal(HALF_PAIR)}, '?', 'g')"
    return f"replace(replace({mended}, {pair}, '\\u'), {backslash}, '\\\\')"


def _value(key: str) -> str:
    """The JSON value of a key; of a key that stands there twice, the last."""
    last = f"len(_keys) + 1 - list_position(list_reverse(_keys), {literal(key)})"
    twice = f"nullif(json_extract(_json, '$.*')[{last}], 'null'::JSON)"
    return f"CASE WHEN len(_keys) <> list_unique(_keys) THEN {twice} ELSE struct_extract(_row, {literal(key)}) END"


def _float(name: str) -> str:
    """A JSON value that is a number but no whole one; null for any other."""
    written = f"{name}::VARCHAR"
    is_float = f"regexp_full_match({written}, {literal(FLOATING)}) AND regexp_matches({written}, '[.eE]')"
    beyond = f"CASE WHEN {written} LIKE '-%' THEN '-inf' ELSE 'inf' END::DOUBLE"
    return f"CASE WHEN {is_float} THEN coalesce(try_cast({written} AS DOUBLE), {beyond}) END"


def _text(name: str) -> str:
    """A JSON value as text: a string itself, a number as Spark writes it, anything else as JSON."""
    return (
        f"CASE WHEN json_type({name}) = 'VARCHAR' THEN {name} ->> '$' "
        f"WHEN _float_{name} IS NOT NULL THEN {java_number(f'_float_{name}')} ELSE {name}::VARCHAR END"
    )
