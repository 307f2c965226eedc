"""JSON that every reader takes: a number that is not finite is null, and nothing else changes."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import strict_json

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def refuse(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def read_strictly(text: str) -> Any:
    """As a reader that keeps to RFC 8259, section 6."""
    return json.loads(text, parse_constant=refuse)


def test_numbers_that_json_does_not_know_become_null() -> None:
    value = {"a": [math.nan, 1.0, {"b": math.inf}], "c": (-math.inf, "NaN"), "d": 2}
    assert strict_json.dumps(value) == '{"a": [null, 1.0, {"b": null}], "c": [null, "NaN"], "d": 2}'


@given(VALUES)
def test_what_is_written_is_read_back_by_who_keeps_to_the_standard(value: Any) -> None:
    plain = json.dumps(value)
    expected = json.loads(plain, parse_constant=lambda _: None)
    assert read_strictly(strict_json.dumps(value)) == expected


def test_the_layout_is_that_of_python() -> None:
    value = {"b": 1, "a": {2}}
    assert strict_json.dumps(value, indent=1, sort_keys=True, default=list) == '{\n "a": [\n  2\n ],\n "b": 1\n}'


def test_what_a_default_makes_is_not_written_where_it_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        strict_json.dumps({"a": {1}}, default=lambda _: math.nan)
