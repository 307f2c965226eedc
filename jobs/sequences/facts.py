"""What a sequences artifact says of itself, whichever engine counted it; and when it is refused."""

import time
from collections.abc import Mapping
from typing import Any, Final

import structlog

from jobs.config import SequencesConfig
from jobs.raw.folder import RawTableUnusable
from jobs.sequences.splits import Splits
from model.artifact import AnyPath

log = structlog.get_logger()

NOTES: Final = ("as_of", "left_out")  # of the moment of building, not of what was built
ONLY_COUNTED: Final = ("first", "last", "attributed")  # other facts are derived of them


def longest(config: SequencesConfig) -> int:
    """How many clicks of a user must be known at any moment."""
    return max(config.ctr_history, config.pretrain_history)


def require_some(counted: Mapping[str, Any], raw: AnyPath) -> None:
    """Raises RawTableUnusable where no event is accepted."""
    if not counted["events_accepted"]:
        refused = counted["events_rejected"]
        worst = max(refused, key=lambda reason: refused[reason], default="the table is empty")
        raise RawTableUnusable(f"{raw}: no event is accepted (most often: {worst}): see `courier check {raw}`")


def require_page_views(counted: Mapping[str, Any]) -> None:
    """Raises RawTableUnusable where there is no page view."""
    if not counted.get("requests"):
        raise RawTableUnusable(
            "no impression is accepted, so there are no page views: check the raw events' event_type"
        )


def of_artifact(counted: Mapping[str, Any], splits: Splits) -> dict[str, Any]:
    """The facts of an artifact, of what an engine has counted of its events and page views."""
    kept = {name: value for name, value in counted.items() if name not in (*ONLY_COUNTED, *NOTES)}
    return kept | {"unmatched_clicks": counted["clicks"] - counted["attributed"], "splits": splits.facts()}


def notes(counted: Mapping[str, Any]) -> dict[str, Any]:
    """The notes of an artifact: what of the counted is of the moment of building."""
    return {name: counted[name] for name in NOTES if name in counted}


def tell_written(facts: Mapping[str, Any], began: float) -> None:
    """Say what an artifact holds, which was begun at `began` of time.monotonic."""
    counts = {name: facts[name] for name in ("requests", "impressions", "clicks", "users", "items")}
    log.info("sequences_written", **counts, seconds=round(time.monotonic() - began, 1))
