"""The versions of a stage's artifact on disk, what went into their keys, and what differs between two of them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model import artifact, strict_json


def stage_key(identity: Mapping[str, Any]) -> str:
    """12 hex digits that name a version of an artifact."""
    return hashlib.sha256(strict_json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def key_of(folder: Path) -> dict[str, Any] | None:
    """What the key of this artifact was made of; None where that was not kept."""
    file = folder.with_name(f"{folder.name.partition('-')[0]}.json")
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def differences(stage: str, last: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """What differs between what two artifacts of a stage are made of, a phrase each."""
    changed = [f"its revision was {last['revision']} and is {identity['revision']}"]
    changed = changed if last["revision"] != identity["revision"] else []
    was, now = (flat(one["config"]) for one in (last, identity))
    changed += [
        f"{stage}.{name} was {was.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name, "absent") != now.get(name, "absent")
    ]
    was, now = last["inputs"], identity["inputs"]
    for name in sorted(was.keys() | now.keys()):
        if name not in was or name not in now:
            changed.append(f"{name} {'is no longer' if name in was else 'is now'} among its inputs")
        elif was[name] != now[name]:
            changed.append(f"the content of {name} changed ({was[name][:8]} to {now[name][:8]})")
    return changed


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config by dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def generations(first: Path) -> list[Path]:
    """The folders of one version, oldest first, KEY, KEY-1, ...: a rebuild never replaces what a release names."""
    rebuilt = [path for path in first.parent.glob(f"{first.name}-*") if path.name.rpartition("-")[2].isdecimal()]
    return [first, *sorted(rebuilt, key=lambda path: int(path.name.rpartition("-")[2]))]


def next_generation(first: Path) -> Path:
    """The folder of the next build of this version: FIRST, unless something whole lies there."""
    last = generations(first)[-1]
    if not (last / artifact.MANIFEST).is_file():
        return last
    count = 0 if last == first else int(last.name.rpartition("-")[2])
    return first.with_name(f"{first.name}-{count + 1}")


def damage(folder: Path, kind: str) -> str | None:
    """Why the artifact in a folder cannot be read; None where it is whole."""
    try:
        artifact.read(folder, kind=kind)
    except (artifact.ArtifactMissing, artifact.ArtifactMismatch) as error:
        return str(error)
    return None
