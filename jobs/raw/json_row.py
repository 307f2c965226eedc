"""A row that comes by itself as a line of JSON, as ingesting would read it in a file."""

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from model import strict_json


def json_row(line: str, wanted: Sequence[str]) -> dict[str, Any] | str:
    """The row that a line of JSON says, or the line itself where it is no JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        return line
    return {name: _scalar(row.get(name)) for name in wanted}


def _scalar(value: Any) -> Any:
    """A JSON value as ingesting reads it into a column of text."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # JSON can spell half a surrogate pair, UTF-8 cannot
    if isinstance(value, float):
        return _java_number(value)
    return None if value is None else strict_json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _java_number(value: float) -> str:
    """As Java's Double.toString writes it: an item_id that is a number must be the same text in either engine."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return repr(value)
    sign, digits, _ = Decimal(repr(value)).normalize().as_tuple()
    exponent = Decimal(repr(value)).adjusted()
    first, *others = map(str, digits)
    return f"{'-' * sign}{first}.{''.join(others) or '0'}E{exponent}"
