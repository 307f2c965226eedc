"""In what two releases differ: space, codebook, model, metrics, and artifacts with the settings that made them."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from model import artifact
from model.artifact import ArtifactMismatch, ArtifactMissing
from model.releases import Release


def differences(workspace: Path, one: Release, other: Release) -> dict[str, Any]:
    """What differs, each as [of one, of the other]: space_id, codebook_id, ctr_model, metrics, artifacts by stage.

    An artifact that differs has its digests and, where both lie in the workspace, the settings that differ.
    """
    found: dict[str, Any] = {
        name: [getattr(one, name), getattr(other, name)]
        for name in ("space_id", "codebook_id", "ctr_model")
        if getattr(one, name) != getattr(other, name)
    }
    digests = [{stage: where["digest"] for stage, where in each.artifacts.items()} for each in (one, other)]
    artifacts = _differing(*digests)
    found["metrics"] = _differing(one.metrics, other.metrics)
    found["artifacts"] = {
        stage: {
            "digests": [_short(digest) for digest in pair],
            "config": _differing(*(_config(workspace, each, stage) for each in (one, other))),
        }
        for stage, pair in artifacts.items()
    }
    return found


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = dict.fromkeys([*one, *other])
    return {name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)}


def _config(workspace: Path, release: Release, stage: str) -> Mapping[str, Any]:
    with suppress(ArtifactMissing, ArtifactMismatch, KeyError):
        return artifact.read_manifest(workspace / release.artifacts[stage]["path"], stage).config
    return {}


def _short(digest: str | None) -> str | None:
    return digest and digest[:12]
