"""Which profile of an item held when: its states as ingests saw them, put in order. Plain Python, the oracle of SQL.

A profile is what the items table says of an item and a model reads. A state is known to hold from its `updated_at`, or
from the ingest that first saw it where the table dates nothing. What held before the first is not known: the first one
stands for it, and whoever counts says so.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class State:
    """What an ingest saw of one item. first_seen: the clock of the first ingest that saw it so."""

    profile: Hashable
    first_seen: datetime
    updated_at: datetime | None = None

    @property
    def known_from(self) -> datetime:
        """From when on it is known to hold."""
        return self.updated_at or self.first_seen


def is_news(row: State, remembered: Iterable[State]) -> bool:
    """Whether a row of the items table says something else than what is remembered: of its updated_at, or of now."""
    states = list(remembered)
    if row.updated_at is None:
        held = states_in_order(states)
    else:
        dated = [one for one in states if one.updated_at == row.updated_at]
        held = sorted(dated, key=lambda one: one.first_seen)
    return not held or held[-1].profile != row.profile


def states_in_order(remembered: Iterable[State]) -> list[State]:
    """One item's states in the order in which they hold.

    Of those with one updated_at the last that was seen counts: it mends the others. What a table dated later overrules
    what was only seen.
    """
    states = list(remembered)
    kept = [
        one
        for one in states
        if not any(
            (one.updated_at is not None and other.updated_at == one.updated_at and other.first_seen > one.first_seen)
            or (
                one.updated_at is None
                and other.updated_at is not None
                and other.updated_at <= one.first_seen < other.first_seen
            )
            for other in states
        )
    ]
    return sorted(kept, key=lambda one: (one.known_from, one.first_seen))


def profiles(remembered: Iterable[State], since: datetime, as_of: datetime) -> list[tuple[datetime, Hashable]]:
    """(valid from, profile) of one item, each other than the one before: the rows of a feature view.

    since, as_of: when the item is known first, and the end of the data. The first state holds since then; what became
    known after the end, from the end on.
    """
    valid: dict[datetime, Hashable] = {}
    for place, state in enumerate(states_in_order(remembered)):
        valid[min(max(state.known_from, since), as_of) if place else since] = state.profile
    found: list[tuple[datetime, Hashable]] = []
    for at, profile in valid.items():
        if not found or found[-1][1] != profile:
            found.append((at, profile))
    return found
