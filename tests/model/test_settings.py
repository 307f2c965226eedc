"""Settings by dotted name: of a config with every kind of field, and of the project's own."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import PRESETS
from model.errors import CourierError
from model.settings import flatten, from_mapping, full_name, parse_setting, parse_settings, replace_setting, unflatten


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    temperature: float = 0.07
    heads: int = 4
    sizes: tuple[int, ...] = (64, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    temperature: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    steps: int = 400
    rate: float = 1e-3
    masked: bool = True
    name: str = "one"
    hosts: tuple[str, ...] = ()
    limit: int | None = None
    kind: Literal["flat", "ivf"] = "flat"
    inner: Inner = field(default_factory=Inner)
    other: Other = field(default_factory=Other)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise CourierError(f"steps is {self.steps}: give at least 1")


CONFIGS = [Outer(), *PRESETS.values()]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_every_config_is_its_flattened_settings_again_and_lists_may_stand_for_tuples(config: Any) -> None:
    as_json = {name: list(value) if isinstance(value, tuple) else value for name, value in flatten(config).items()}
    assert from_mapping(type(config)(), unflatten(as_json)) == config
    assert from_mapping(type(config)(), asdict(config)) == config


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_every_setting_of_every_config_is_written_and_read_back_as_text(config: Any) -> None:
    for name, value in flatten(config).items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert parse_setting(config, name, text) == value
        assert replace_setting(config, name, text) == config


def test_flattening_names_the_group_and_keeps_the_order() -> None:
    names = "steps rate masked name hosts limit kind inner.temperature inner.heads inner.sizes other.temperature"
    assert list(flatten(Outer())) == names.split()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "7", 7),
        ("rate", "3", 3.0),
        ("rate", "1e-5", 1e-5),
        ("masked", "False", False),
        ("masked", "true", True),
        ("name", "a, b", "a, b"),
        ("hosts", "a.example, *.b.example", ("a.example", "*.b.example")),
        ("hosts", "", ()),
        ("limit", "9", 9),
        ("limit", "none", None),
        ("kind", "ivf", "ivf"),
        ("inner.heads", "8", 8),
        ("inner.sizes", "5", (5,)),
    ],
)
def test_a_text_becomes_the_type_of_its_field_and_nothing_else_moves(name: str, text: str, value: Any) -> None:
    changed = replace_setting(Outer(limit=3), name, text)
    found = flatten(changed)[name]
    assert (found, type(found)) == (value, type(value))
    assert flatten(changed) == {**flatten(Outer(limit=3)), name: value}


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.lists(st.integers()))
def test_any_number_survives_its_text(rate: float, heads: int, sizes: list[int]) -> None:
    config = replace_setting(Outer(), "rate", repr(rate))
    config = replace_setting(config, "inner.heads", str(heads))
    config = replace_setting(config, "inner.sizes", ",".join(map(str, sizes)))
    assert config == Outer(rate=rate, inner=Inner(heads=heads, sizes=tuple(sizes)))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("steps", "1.5", "steps='1.5' is not a whole number: write steps=8"),
        ("rate", "fast", "rate='fast' is not a number: write rate=0.5"),
        ("rate", "nan", "is not a number"),
        ("rate", "inf", "is not a number"),
        ("masked", "yes", r"is not true or false: write masked=true\|false"),
        ("limit", "some", "is not a whole number or none: write limit=8"),
        ("kind", "hnsw", r"is not one of flat, ivf: write kind=flat\|ivf"),
        ("inner.sizes", "4,x", "is not a list of which each is a whole number: write inner.sizes=8,8"),
        ("step", "1", "unknown setting 'step': did you mean steps[?] There are steps, rate, .*, other.temperature"),
        ("heads", "1", "did you mean inner.heads[?]"),
        ("other.heads", "1", "did you mean inner.heads[?]"),
        ("temperature", "1", "did you mean inner.temperature or other.temperature[?]"),
        ("temprature", "1", "did you mean .*temperature[?]"),
        ("inner.temprature", "1", "did you mean inner.temperature[?]"),
        ("zzz", "1", "unknown setting 'zzz': There are steps"),
        ("inner", "1", "'inner' is a group of settings, not one: choose among inner.temperature, inner.heads"),
        ("steps", "0", "steps is 0: give at least 1"),
    ],
)
def test_a_wrong_name_or_text_is_refused_with_the_cure(name: str, text: str, said: str) -> None:
    with pytest.raises(CourierError, match=said):
        replace_setting(Outer(), name, text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": "10"}, "setting steps is '10', not a whole number: write steps=8"),
        ({"steps": True}, "setting steps is True, not a whole number"),
        ({"masked": 1}, "setting masked is 1, not true or false"),
        ({"rate": math.nan}, "setting rate is nan, not a number"),
        ({"hosts": "a.example"}, "setting hosts is 'a.example', not a list of which each is text"),
        ({"hosts": ["a", 1]}, "not a list of which each is text"),
        ({"inner": {"heads": 8.0}}, "setting inner.heads is 8.0, not a whole number: write inner.heads=8"),
        ({"inner": {"sizes": [1, None]}}, "setting inner.sizes"),
        ({"inner": {"temprature": 1}}, "unknown setting 'inner.temprature': did you mean inner.temperature[?]"),
        ({"inner": 3}, "'inner' is a group of settings, not one: choose among inner.temperature"),
        ({"steps": {"a": 1}}, "setting steps is {'a': 1}, not a whole number"),
        ({"kind": "hnsw"}, "setting kind is 'hnsw', not one of flat, ivf"),
        ({"temperature": 1.0}, "did you mean inner.temperature or other.temperature[?]"),
        ({"steps": -1}, "steps is -1: give at least 1"),
    ],
)
def test_a_wrong_name_or_type_in_a_mapping_is_refused_with_the_cure(settings: Mapping[str, Any], said: str) -> None:
    with pytest.raises(CourierError, match=said):
        from_mapping(Outer(), settings)


def test_a_command_line_gives_typed_settings_the_last_of_a_name_and_none_without_a_value() -> None:
    given = ["steps=3", "name=a=b", "inner.sizes=1,2", "steps=4"]
    assert parse_settings(Outer(), given) == {"steps": 4, "name": "a=b", "inner.sizes": (1, 2)}
    with pytest.raises(CourierError, match="setting 'steps' has no value: write steps=VALUE"):
        parse_settings(Outer(), ["steps"])


def test_a_mapping_replaces_what_it_names_and_leaves_the_rest_of_a_group() -> None:
    before = Outer(rate=0.5, inner=Inner(heads=2))
    after = from_mapping(before, {"steps": 10, "limit": 5, "rate": 1, "inner": {"temperature": 1}})
    assert after == Outer(rate=1.0, steps=10, limit=5, inner=Inner(heads=2, temperature=1.0))
    assert isinstance(after.rate, float)
    assert from_mapping(before, {}) == before
    assert from_mapping(after, {"limit": None}).limit is None


def test_a_group_may_be_left_out_of_a_name_only_where_that_says_which() -> None:
    assert full_name(Outer(), "steps") == "steps"
    assert full_name(Outer(), "heads") == full_name(Outer(), "inner.heads") == "inner.heads"
    assert full_name(Outer(), "temperature", within="other") == "other.temperature"
    with pytest.raises(CourierError, match=r"'temperature' may be each of inner.temperature, other.temperature: write"):
        full_name(Outer(), "temperature")
    with pytest.raises(CourierError, match=r"unknown setting 'head': did you mean inner.heads[?]"):
        full_name(Outer(), "head")
