"""A user's history as the online store holds it, merged with clicks that come in any order: plain Python, the oracle.

Merging is idempotent, commutative and associative: a history is the newest K of a set of clicks, however they came.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import TypeAlias

from jobs.rules.events import EPOCH, MICROSECOND, Event
from jobs.rules.histories import AFTER_THE_CLICK

Click: TypeAlias = tuple[str, int]  # item_id, clicked at in microseconds since 1970
History: TypeAlias = tuple[Click, ...]  # newest first, equal times by item_id, each click once


def click(event: Event) -> Click:
    """What a history keeps of a click."""
    return event.item_id, (event.event_time - EPOCH) // MICROSECOND


def merge(history: Iterable[Click], clicks: Iterable[Click], length: int) -> History:
    """The newest `length` clicks of both: newest first, equal times by item_id, one item at one moment once."""
    return tuple(sorted({*history, *clicks}, key=lambda one: (-one[1], one[0]))[:length])


def reconcile(online: History, offline: History, length: int) -> History:
    """What the online store holds once a batch load brings the user's offline history.

    The offline tables have judged events together (whose request it was, how many clicks a day are believed), so their
    word stands, until the stream has gone past their newest click: then both are merged, and nothing goes back.
    """
    if online and (not offline or online[0][1] > offline[0][1]):
        return merge(online, offline, length)
    return offline


def valid_from(history: History) -> datetime:
    """Since when a history that is not empty holds: the moment that the offline snapshot of the same clicks states."""
    return EPOCH + history[0][1] * MICROSECOND + AFTER_THE_CLICK
