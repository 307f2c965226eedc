"""A workspace: the folder of every artifact, the raw folder they are made from, and the configs of the stages."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from jobs.config import PipelineConfig
from jobs.paths import any_path
from jobs.settings import Layer, Settings, read_layers, resolve
from jobs.settings import remember as remember_settings
from model import artifact, strict_json
from model.artifact import AnyPath
from model.errors import CourierError

MEMORY: Final = "run.json"
DATABASE: Final = "COURIER_RELEASES"  # names the database of releases, for serving too (serving/settings.py)


class StageError(CourierError):
    """A stage cannot run as asked; the message says what to run first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Where artifacts lie, what they are made from, and the settings of every stage.

    asked: what a command line said for good, for `remember`.  config_file: a courier.toml other than those two that
    are always looked for.  beam_args: Beam's own options, for this run alone and no part of what is built.
    """

    folder: Path
    raw: AnyPath
    settings: Settings
    asked: Mapping[str, Any] = field(default_factory=dict)
    config_file: Path | None = None
    beam_args: tuple[str, ...] = ()

    @property
    def config(self) -> PipelineConfig:
        """Every stage's config."""
        return self.settings.config

    def plain_config(self, stage: str) -> Mapping[str, Any]:
        """A stage's config as plain values, as JSON gives them back; empty where it has none."""
        found = getattr(self.config, stage, None)
        plain: Mapping[str, Any] = {} if found is None else json.loads(strict_json.dumps(asdict(found)))
        return plain

    def with_config(self, **changes: Any) -> "Workspace":
        """This workspace with other fields of its PipelineConfig."""
        return replace(self, settings=replace(self.settings, config=replace(self.config, **changes)))


def open_workspace(
    folder: Path,
    raw: AnyPath | None = None,
    *,
    preset: str | None = None,
    allowed_hosts: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    config_file: Path | None = None,
    given: Sequence[str] = (),
) -> Workspace:
    """A workspace with its settings: raw folder and config file, where not given, are those of its last run.

    given: `stage.field=value`, for this run alone.
    Raises StageError where there was no run, CourierError where the settings cannot be.
    """
    last: dict[str, Any] = {}
    if (folder / MEMORY).is_file():
        last = json.loads((folder / MEMORY).read_text("utf-8"))
    if raw is None and "raw" not in last:
        raise StageError(f"{folder} has no run yet: say `courier run RAW --workspace {shlex.quote(str(folder))}`")
    found = _absolute(raw or any_path(last["raw"]))
    if isinstance(found, Path) and not found.is_dir():
        raise StageError(f"{found} is not a folder with the raw tables `events` and `items`")
    file = config_file or (Path(last["config_file"]) if last.get("config_file") else None)
    asked: dict[str, Any] = {"preset": preset} if preset else {}
    asked |= {"images": {"allowed_hosts": list(allowed_hosts)}} if allowed_hosts else {}
    asked |= {"ingest": {"columns": list(columns)}} if columns is not None else {}
    layers = [*read_layers(found, folder, file), Layer(origin="the command line", settings=asked)]
    return Workspace(
        folder=folder.resolve(),
        raw=found,
        settings=resolve(layers, given=given),
        asked=asked,
        config_file=file.resolve() if file else None,
    )


def remember(workspace: Workspace) -> None:
    """Write down what the workspace's next run takes for granted."""
    said = {"raw": str(_absolute(workspace.raw))}
    said |= {"config_file": str(workspace.config_file)} if workspace.config_file else {}
    artifact.write_whole(workspace.folder / MEMORY, strict_json.dumps(said, indent=1).encode())
    remember_settings(workspace.folder, workspace.asked)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a workspace's folder for this process. Raises StageError where another one does."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise StageError(f"another run is at work in {folder}: wait for it, or stop it") from None


def releases_url(folder: Path) -> str:
    """The SQLAlchemy URL of the database of releases: what COURIER_RELEASES says, or SQLite in the workspace."""
    from model.release_database import url_in  # SQLAlchemy takes half a second

    return os.environ.get(DATABASE) or url_in(folder)


def _absolute(raw: AnyPath) -> AnyPath:
    """A raw folder's path as it means the same to whoever stands in another folder."""
    return raw.resolve() if isinstance(raw, Path) else raw
