"""What a sequences artifact says of itself, whichever engine counted it; and when it is refused."""

import time
from collections.abc import Mapping
from typing import Any, Final

import structlog

from jobs.config import SequencesConfig
from jobs.raw.folder import RawTableUnusable
from jobs.rules.page_views import TRAIN
from jobs.sequences.splits import Splits
from model.artifact import AnyPath
from model.errors import RowsLost

log = structlog.get_logger()

NOTES: Final = ("as_of", "left_out")  # of the moment of building, not of what was built
TOLD: Final = 3  # reasons in a sentence
ONLY_COUNTED: Final = ("first", "last", "attributed")  # other facts are derived of them


def longest(config: SequencesConfig) -> int:
    """How many clicks of a user must be known at any moment."""
    return max(config.ctr_history, config.pretrain_history)


def require_some(counted: Mapping[str, Any], events: AnyPath) -> None:
    """Raises RawTableUnusable where no event is accepted."""
    if not counted["events_accepted"]:
        told = _most_frequent(counted["events_rejected"]) or "the table is empty"
        raise RawTableUnusable(
            f"{events}: none of {counted['events_read']} events is accepted ({told}): "
            f"see `courier check {events.parent}`"
        )


def require_page_views(counted: Mapping[str, Any]) -> None:
    """Raises RawTableUnusable where there is no page view."""
    if not counted.get("requests"):
        told = _most_frequent(counted["events_rejected"]) or "none"
        raise RawTableUnusable(
            f"no impression is accepted, so there are no page views: {counted['events_read']} events hold "
            f"{counted['clicks']} clicks and {counted['conversions']} carts and purchases, and rejected are {told}; "
            "check the raw events' event_type"
        )


def _most_frequent(rejected: Mapping[str, int]) -> str:
    """The most frequent reasons with their counts: "12 bad_event_time, 3 null_item_id"."""
    ordered = sorted(rejected.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered[:TOLD])


def require_split(counted: Mapping[str, Any], splits: Splits) -> None:
    """Raises RawTableUnusable where so many page views began at one moment that none lies in the training period.

    A single page view, as one tries with, has no periods to speak of.
    """
    requests, moment = counted["requests"], splits.facts()["valid_start"]
    if requests > 1 and not counted["requests_by_period"][TRAIN]:
        raise RawTableUnusable(
            f"of {requests} page views so many began at one moment, {moment}, that no split by time is possible: "
            "check the raw events' event_time, which may be cut to a day or filled in"
        )


def of_artifact(counted: Mapping[str, Any], splits: Splits) -> dict[str, Any]:
    """The facts of an artifact, of what an engine has counted of its events and page views.

    Every row that was read is in one of them: read = accepted + rejected; accepted = duplicates + impressions +
    shown_again (by the page that showed the item already) + clicks + conversions; impressions = page_view_items +
    beyond_page_view_size (in no page view's items); requests = requests_by_period.
    Raises RawTableUnusable as require_split does, RowsLost where a row is in no count.
    """
    require_split(counted, splits)
    kept = {name: value for name, value in counted.items() if name not in (*ONLY_COUNTED, *NOTES)}
    kept["unmatched_clicks"] = counted["clicks"] - counted["attributed"]
    kept["beyond_page_view_size"] = counted["impressions"] - counted["page_view_items"]
    _require_all(kept)
    return kept | {"splits": splits.facts()}


def _require_all(facts: Mapping[str, Any]) -> None:
    """Raises RowsLost where a row that was read is in no count."""
    of_accepted = ("duplicates", "impressions", "shown_again", "clicks", "conversions")
    for name, parts in (
        ("events_read", {"events_accepted": facts["events_accepted"], **facts["events_rejected"]}),
        ("events_accepted", {part: facts[part] for part in of_accepted}),
        ("requests", facts["requests_by_period"]),
    ):
        if facts[name] != sum(parts.values()):
            raise RowsLost(f"{name} is {facts[name]}, and what became of them is {parts}")


def notes(counted: Mapping[str, Any]) -> dict[str, Any]:
    """The notes of an artifact: what of the counted is of the moment of building."""
    return {name: counted[name] for name in NOTES if name in counted}


def tell_written(facts: Mapping[str, Any], began: float) -> None:
    """Say what an artifact holds, which was begun at `began` of time.monotonic."""
    counts = {name: facts[name] for name in ("requests", "impressions", "clicks", "users", "items")}
    log.info("sequences_written", **counts, seconds=round(time.monotonic() - began, 1))
