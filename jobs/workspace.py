"""A workspace: the folder of every artifact, the raw folder they are made from, and the configs of the stages."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from jobs.config import PRESETS
from jobs.paths import any_path
from model import artifact
from model.artifact import AnyPath
from model.errors import CourierError

MEMORY: Final = "run.json"


class StageError(CourierError):
    """A stage cannot run as asked; the message says what to run first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Where artifacts lie, what they are made from, and the config of each stage that has one."""

    folder: Path
    raw: AnyPath
    preset: str
    configs: Mapping[str, Any]
    # Where this run's work is done, and no part of what is built:
    master: str | None = None  # the Spark master
    beam_args: tuple[str, ...] = ()

    def config(self, stage: str) -> Mapping[str, Any]:
        """A stage's config as plain values, as JSON gives them back; empty where it has none."""
        found = self.configs.get(stage)
        plain: Mapping[str, Any] = {} if found is None else json.loads(json.dumps(asdict(found)))
        return plain

    def with_config(self, stage: str, config: Any) -> "Workspace":
        """This workspace with another config of one stage."""
        return replace(self, configs={**self.configs, stage: config})


def open_workspace(
    folder: Path, raw: AnyPath | None = None, preset: str | None = None, allowed_hosts: Sequence[str] = ()
) -> Workspace:
    """A workspace: what is not given is taken from its last run. Raises StageError where there was none."""
    last: dict[str, Any] = {}
    if (folder / MEMORY).is_file():
        last = json.loads((folder / MEMORY).read_text())
    if raw is None and "raw" not in last:
        raise StageError(f"{folder} has no run yet: say `courier run RAW --workspace {shlex.quote(str(folder))}`")
    base = preset or last.get("preset", "demo")
    hosts = tuple(allowed_hosts or last.get("allowed_hosts", ()))
    images = replace(PRESETS[base]["images"], allowed_hosts=hosts)
    found = _absolute(raw or any_path(last["raw"]))
    if isinstance(found, Path) and not found.is_dir():
        raise StageError(f"{found} is not a folder with the raw tables `events` and `items`")
    return Workspace(folder=folder.resolve(), raw=found, preset=base, configs={**PRESETS[base], "images": images})


def remember(workspace: Workspace) -> None:
    """Write down what the workspace's next run takes for granted."""
    images = workspace.configs.get("images")
    said = {"raw": str(_absolute(workspace.raw)), "preset": workspace.preset}
    said |= {"allowed_hosts": images.allowed_hosts} if images else {}
    artifact.write_whole(workspace.folder / MEMORY, json.dumps(said, indent=1).encode())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a workspace's folder for this process. Raises StageError where another one does."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise StageError(f"another run is at work in {folder}: wait for it, or stop it") from None


def _absolute(raw: AnyPath) -> AnyPath:
    """A raw folder's path as it means the same to whoever stands in another folder."""
    return raw.resolve() if isinstance(raw, Path) else raw
