"""What a user clicked before a moment: plain Python, the oracle of the Spark job."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from jobs.rules.events import Event

# Feast's point-in-time join takes what is valid at or before a moment, a history what lies strictly before it: so a
# snapshot that includes a click becomes valid this much after it.
AFTER_THE_CLICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A user's history as of `valid_from` and until the next one: (item_id, clicked at), newest first."""

    user_id: str
    valid_from: datetime
    history: tuple[tuple[str, datetime], ...]


def history_before(clicks: Iterable[Event], before: datetime, length: int) -> list[tuple[str, datetime]]:
    """One user's last `length` clicks (item_id, clicked at) with event_time < before: newest first, then by item_id.

    An item clicked at one moment in two requests stands there once: an online store that is told again must not grow.
    """
    earlier = {(click.item_id, click.event_time) for click in clicks if click.event_time < before}
    newest_first = sorted(sorted(earlier), key=lambda entry: entry[1], reverse=True)  # stable: then by item_id
    return newest_first[:length]


def snapshots(clicks: Iterable[Event], length: int) -> list[Snapshot]:
    """Every user's history after each moment at which that user clicked, sorted by user and time."""
    clicks = list(clicks)
    moments = sorted({(click.user_id, click.event_time + AFTER_THE_CLICK) for click in clicks})
    return [Snapshot(user_id, moment, _history(clicks, user_id, moment, length)) for user_id, moment in moments]


def _history(clicks: list[Event], user_id: str, before: datetime, length: int) -> tuple[tuple[str, datetime], ...]:
    return tuple(history_before([click for click in clicks if click.user_id == user_id], before, length))
