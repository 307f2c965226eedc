"""JSON as its standard has it, for all that is written down or answered: no NaN, no infinity, which it does not know.

RFC 8259, section 6: "Numeric values that cannot be represented in the grammar ... (such as Infinity and NaN) are not
permitted." Python's json writes them all the same, and other readers refuse the whole file.
"""

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **layout: Any) -> str:
    """The value as JSON text, null for every number that is not finite: what is not defined has no number.

    layout: as json.dumps takes it: indent, sort_keys, default, ...
    """
    return json.dumps(nulled(value), allow_nan=False, **layout)


def nulled(value: Any) -> Any:
    """The value with None for every number that is not finite, all the way down."""
    if isinstance(value, Mapping):
        return {key: nulled(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [nulled(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
