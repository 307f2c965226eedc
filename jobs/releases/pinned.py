"""Whether what the current release pins can be used with the data there is now."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from model import artifact


def trained_too_late(pinned: Path, inputs: Mapping[str, Path]) -> str | None:
    """Why a pinned artifact knows too much: it was trained on what is the validation period, or later, by now.

    inputs: the folders of the stages it would be made from that are up to date.  None where it knows nothing of it.
    """
    if "sequences" not in inputs:
        return None
    until = artifact.read_manifest(pinned).facts["trained_until"]
    valid_start = artifact.read_manifest(inputs["sequences"]).facts["splits"]["valid_start"]
    if datetime.fromisoformat(until) <= datetime.fromisoformat(valid_start):
        return None
    return f"it was trained on events until {until}, and validation begins at {valid_start} now"
