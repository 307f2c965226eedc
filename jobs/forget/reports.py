"""The texts of a workspace that may name a user or an item: reports with examples, vocabularies, rejected lines."""

import json
from pathlib import Path
from typing import Final

from jobs.forget.rows import Entity, mentions
from model import strict_json

REPORTS: Final = ("check.json", "coverage.json", "coverage.html")  # with rows as examples; made again by the next run
VOCABULARY: Final = "inputs.json"  # of a CTR model: which item has which embedding
LINES: Final = ".jsonl"  # rejected rows, a JSON document a line
NOBODY: Final = "\0forgotten {}"  # holds a vocabulary's place: no id has a NUL


def count_in_text(path: Path, entity: Entity) -> int:
    """How often a text holds the entity: its lines, or 1; 0 for a file that holds no ids."""
    if path.suffix == LINES and path.name != "history.jsonl":
        return sum(mentions(line, entity.ids) for line in path.read_text("utf-8").splitlines())
    if path.name in REPORTS:
        return int(mentions(path.read_text("utf-8"), entity.ids))
    if path.name == VOCABULARY:
        return sum(item in entity.ids for item in json.loads(path.read_text("utf-8")).get("items", ()))
    return 0


def write_text_without(path: Path, to: Path, entity: Entity) -> None:
    """Write a text without the entity to `to`; nothing for a report, which is left out."""
    text = path.read_text("utf-8")
    if path.suffix == LINES:
        kept = [line for line in text.splitlines(keepends=True) if not mentions(line, entity.ids)]
        to.write_text("".join(kept), "utf-8")
    elif path.name == VOCABULARY:
        said = json.loads(text)
        # Its place stays, for what was learned is by place.
        said["items"] = [
            NOBODY.format(place) if item in entity.ids else item for place, item in enumerate(said["items"])
        ]
        to.write_text(strict_json.dumps(said, indent=1), "utf-8")
