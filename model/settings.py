"""Settings by name: any config, a frozen dataclass that may hold others, as the dotted names of its fields."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from model.errors import CourierError

Config = TypeVar("Config")

TRUTHS: Final = {"true": True, "false": False}
NOTHING: Final = "none"  # how None is written where a setting may be it


def flatten(config: object) -> dict[str, Any]:
    """Every setting of a config, in the order of its fields: {"steps": 400, "courier.heads": 4}."""
    found: dict[str, Any] = {}
    for name, value in _values(config):
        inner = (
            {f"{name}.{one}": each for one, each in flatten(value).items()} if is_dataclass(value) else {name: value}
        )
        found |= inner
    return found


def unflatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"steps": 400, "courier.heads": 4} -> {"steps": 400, "courier": {"heads": 4}}, which `from_mapping` takes."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        *groups, last = name.split(".")
        inner = found
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return found


def from_mapping(config: Config, settings: Mapping[str, Any]) -> Config:
    """The config with these settings in place of its own, each as TOML or JSON holds it: {"courier": {"heads": 8}}.

    A list may stand for a tuple and a whole number for a float. Raises CourierError for a name that the config does
    not have, with the nearest one and all there are, and for a value of another type or that the config refuses.
    """
    return _from_mapping(config, settings, prefix="", names=tuple(flatten(config)))


def parse_setting(config: object, name: str, text: str) -> Any:
    """The value that a command line's `text` gives the setting of this dotted name, of the type of its field.

    true and false, none where it may be None, commas between the entries of a tuple.
    Raises CourierError for an unknown name, or a text that says no such value.
    """
    kind = _kind_of(config, name)
    try:
        return _parsed(text, kind)
    except ValueError:
        raise CourierError(
            f"setting {name}={text!r} is not {_described(kind)}: write {name}={_example(kind)}"
        ) from None


def parse_settings(config: object, settings: Sequence[str]) -> dict[str, Any]:
    """A command line's `name=value`, each under its dotted name; a name twice means its last value.

    Raises CourierError as `parse_setting`, or where there is no =.
    """
    found = {}
    for setting in settings:
        name, there, text = setting.partition("=")
        if not there:
            raise CourierError(f"setting {setting!r} has no value: write {setting}=VALUE")
        found[name] = parse_setting(config, name, text)
    return found


def replace_setting(config: Config, name: str, text: str) -> Config:
    """The config with one setting more: replace_setting(config, "courier.heads", "8"). Raises as `parse_setting`."""
    return from_mapping(config, unflatten({name: parse_setting(config, name, text)}))


def full_name(config: object, name: str, *, within: str = "") -> str:
    """The dotted name of a setting that may be given without the group it is of, as heads for courier.heads.

    A setting of the whole config or of the group `within` comes first; else only one group may have it.
    Raises CourierError for a name that there is not, or that is of several groups.
    """
    names = tuple(flatten(config))
    for full in (name, f"{within}.{name}"):
        if full in names:
            return full
    found = [full for full in names if full.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    raise (
        _unknown(name, names)
        if not found
        else CourierError(f"setting {name!r} may be each of {', '.join(found)}: write the one that is meant")
    )


def _from_mapping(config: Config, settings: Mapping[str, Any], *, prefix: str, names: Sequence[str]) -> Config:
    kinds, now = get_type_hints(type(config)), dict(_values(config))
    chosen: dict[str, Any] = {}
    for name, value in settings.items():
        full = f"{prefix}{name}"
        if name not in now:
            raise _unknown(full, names)
        if not is_dataclass(now[name]):
            chosen[name] = _checked(value, kinds[name], full)
        elif isinstance(value, Mapping):
            chosen[name] = _from_mapping(now[name], value, prefix=f"{full}.", names=names)
        else:
            raise _group(full, names)
    return replace(config, **chosen)  # type: ignore[type-var]


def _values(config: object) -> Iterator[tuple[str, Any]]:
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{config!r} is no config: give an instance of a dataclass")
    yield from ((field.name, getattr(config, field.name)) for field in fields(config))


def _kind_of(config: object, name: str) -> Any:
    """The type of the field of this dotted name."""
    names = tuple(flatten(config))
    if name not in names:
        raise _group(name, names) if any(one.startswith(f"{name}.") for one in names) else _unknown(name, names)
    *groups, last = name.split(".")
    for group in groups:
        config = getattr(config, group)
    return get_type_hints(type(config))[last]


def _unknown(name: str, names: Sequence[str]) -> CourierError:
    """The nearest name is one that ends as this one does (heads: courier.heads), or else is spelt like it."""
    same = [one for one in names if one.rpartition(".")[2] == name.rpartition(".")[2]]
    nearest = same or difflib.get_close_matches(name, names, n=1) or _like_its_end(name, names)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    return CourierError(f"unknown setting {name!r}: {hint}There are {', '.join(names)}")


def _like_its_end(name: str, names: Sequence[str]) -> list[str]:
    """temprature: courier.temperature, whose group is missing too."""
    ends = {one.rpartition(".")[2]: one for one in names}
    return [ends[end] for end in difflib.get_close_matches(name.rpartition(".")[2], ends, n=1)]


def _group(name: str, names: Sequence[str]) -> CourierError:
    inner = ", ".join(one for one in names if one.startswith(f"{name}."))
    return CourierError(f"{name!r} is a group of settings, not one: choose among {inner}")


# --- types -----------------------------------------------------------------------------------------------------------


def _checked(value: Any, kind: Any, name: str) -> Any:
    """The value as the type `kind` has it. Raises CourierError where it is of another."""
    try:
        return _as_kind(value, kind)
    except ValueError:
        wanted = f"{_described(kind)}: write {name}={_example(kind)}"
        raise CourierError(f"setting {name} is {value!r}, not {wanted}") from None


def _as_kind(value: Any, kind: Any) -> Any:
    """The value as a `kind`, a tuple of a list and a float of a whole number. Raises ValueError where it is none."""
    if alternatives := _alternatives(kind):
        return _first_that_fits(value, alternatives)
    if get_origin(kind) is Literal:
        return _one_of(value, get_args(kind))
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_as_kind(one, get_args(kind)[0]) for one in value)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind is not float and type(value) is kind:  # not isinstance: a bool is an int by that
        return value
    raise ValueError


def _first_that_fits(value: Any, kinds: Sequence[Any]) -> Any:
    for kind in kinds:
        with suppress(ValueError):
            return _as_kind(value, kind)
    raise ValueError


def _parsed(text: str, kind: Any) -> Any:
    """Raises ValueError for a text that says no `kind`."""
    if alternatives := _alternatives(kind):
        if text.lower() == NOTHING and NoneType in alternatives:
            return None
        return _parsed(text, next(one for one in alternatives if one is not NoneType))
    if get_origin(kind) is tuple:
        return tuple(_parsed(part.strip(), get_args(kind)[0]) for part in text.split(",") if part.strip())
    if get_origin(kind) is Literal:
        return {str(one): one for one in get_args(kind)}[_one_of(text, [str(one) for one in get_args(kind)])]
    if kind is bool:
        return TRUTHS[_one_of(text.lower(), list(TRUTHS))]
    return _as_kind(kind(text), kind)


def _one_of(value: Any, choices: Sequence[Any]) -> Any:
    if not any(type(value) is type(one) and value == one for one in choices):
        raise ValueError
    return value


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else ()


def _described(kind: Any) -> str:
    if _alternatives(kind):
        return " or ".join(_described(one) for one in _alternatives(kind))
    if get_origin(kind) is tuple:
        return f"a list of which each is {_described(get_args(kind)[0])}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: NOTHING}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _example(kind: Any) -> str:
    if _alternatives(kind):
        return _example(next(one for one in _alternatives(kind) if one is not NoneType))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return ",".join([_example(get_args(kind)[0])] * 2)
    return {bool: "true|false", int: "8", float: "0.5", str: "name"}.get(kind, "<value>")
