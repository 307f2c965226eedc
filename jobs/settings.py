"""The settings of a run: a preset, what each courier.toml says over it, and the command line over all of them."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final

import tomlkit

from jobs.config import PRESETS, PipelineConfig
from model import artifact
from model.artifact import AnyPath
from model.courier.config import for_method
from model.errors import CourierError
from model.settings import flatten, from_mapping, parse_settings, unflatten

FILE: Final = "courier.toml"
DEFAULT_PRESET: Final = "demo"
METHOD: Final = "pretrain"  # the stage whose settings depend on the method that one of them names


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one source says: its name for messages, and settings as TOML holds them."""

    origin: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds, and where each value came from: dotted name -> the preset, a file, or the command line."""

    preset: str
    config: PipelineConfig
    origins: Mapping[str, str]


def read_layers(raw: AnyPath, workspace: Path, file: Path | None) -> list[Layer]:
    """courier.toml beside the raw folder, in the workspace, and the one asked for, where they are there.

    Raises CourierError where one cannot be read, or the one asked for is not there.
    """
    if file is not None and not file.is_file():
        raise CourierError(f"{file} does not exist: give the file of settings that is meant")
    beside: list[AnyPath] = [raw.parent / FILE, workspace / FILE]
    found = {path.resolve() if isinstance(path, Path) else path: None for path in (*beside, *((file,) if file else ()))}
    return [Layer(origin=str(path), settings=_read(path)) for path in found if path.is_file()]


def _read(path: AnyPath) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CourierError(f"{path} is not TOML ({error}): mend that line") from None


def resolve(layers: Sequence[Layer], *, given: Sequence[str] = ()) -> Settings:
    """What the layers come to, the later over the earlier, and `given` over all.

    given: `stage.field=value` of a command line.
    Raises CourierError for a name that there is not, with the nearest one, and for a value that cannot be.
    """
    for layer in layers:
        named = layer.settings.get("preset", DEFAULT_PRESET)
        if named not in PRESETS:
            raise CourierError(f"{layer.origin}: there is no preset {named!r}: choose among {', '.join(PRESETS)}")
    said = [str(layer.settings["preset"]) for layer in layers if "preset" in layer.settings]
    chosen = said[-1] if said else DEFAULT_PRESET
    base = PRESETS[chosen]
    config, origins = base, dict.fromkeys(flatten(base), f"preset {chosen}")
    own: dict[str, Any] = {}  # of the method's stage, whichever layer says it
    line = Layer(origin="the command line", settings=unflatten(parse_settings(base, given)))
    for layer in (*layers, line):
        settings = {name: value for name, value in layer.settings.items() if name != "preset"}
        _require_known(settings, layer.origin)
        try:
            config = from_mapping(config, settings)
        except CourierError as error:
            raise CourierError(f"{layer.origin}: {error}") from None
        names = dict(_flat(settings))
        origins |= dict.fromkeys(names, layer.origin)
        own |= {name.partition(".")[2]: value for name, value in names.items() if name.startswith(f"{METHOD}.")}
    return Settings(preset=chosen, config=replace(config, pretrain=for_method(base.pretrain, own)), origins=origins)


def _require_known(settings: Mapping[str, Any], origin: str) -> None:
    known = [field.name for field in fields(PipelineConfig)]
    for name in settings.keys() - known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise CourierError(f"{origin}: there is no stage {name!r}: {hint}There are preset, {', '.join(known)}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def remember(workspace: Path, asked: Mapping[str, Any]) -> None:
    """Write into the workspace's courier.toml what a command line said for good; all else in it stays as it is."""
    path = workspace / FILE
    document = tomlkit.parse(path.read_text("utf-8")) if path.is_file() else tomlkit.document()
    before = document.as_string()
    _merge(document, asked)
    if document.as_string() != before:
        artifact.write_whole(path, document.as_string().encode())


def _merge(table: Any, asked: Mapping[str, Any]) -> None:
    for name, value in asked.items():
        if isinstance(value, Mapping):
            if name not in table:
                table[name] = tomlkit.table()
            _merge(table[name], value)
        elif table.get(name) != value:
            table[name] = value


def as_toml(settings: Settings) -> str:
    """What holds as a courier.toml, each value with where it came from; what is none stands in a comment."""
    document = tomlkit.document()
    document["preset"] = settings.preset
    _write(document, settings.config, "", settings.origins)
    return document.as_string()


def _write(table: Any, config: Any, prefix: str, origins: Mapping[str, str]) -> None:
    values = {name: getattr(config, name) for name in dict.fromkeys(one.partition(".")[0] for one in flatten(config))}
    plain = {name: value for name, value in values.items() if not is_dataclass(value)}
    for name, value in plain.items():
        if value is None:
            table.add(tomlkit.comment(f"{name} is none: {origins[prefix + name]}"))
        else:
            item = tomlkit.item(list(value) if isinstance(value, tuple) else value)
            table.add(name, item.comment(origins[prefix + name]))
    for name in (name for name in values if name not in plain):
        inner = tomlkit.table()
        _write(inner, values[name], f"{prefix}{name}.", origins)
        table[name] = inner
