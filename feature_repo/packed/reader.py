"""Read features from the online store as arrays, without Feast: one user and his candidates in one round trip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import numpy as np

from feature_repo.contract import View
from feature_repo.packed.database import Asked, Database, table_name
from feature_repo.packed.keys import entity_keys
from feature_repo.packed.rows import Layout, Rows

EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True, eq=False)
class PackedView:
    """A view as the store holds it: its table, its rows' layout, and for how long a row holds; zero is for ever."""

    table: str
    layout: Layout
    ttl: timedelta

    @classmethod
    def of(cls, view: View, project: str) -> "PackedView":
        """A view of the contract."""
        return cls(table_name(project, view.name), Layout(view.features), view.ttl)

    def unpack(self, rows: Sequence[bytes | None], as_of: datetime) -> Rows:
        """Rows as arrays; one that is older than the view's ttl as of this moment is not there.

        Raises RowUnreadable.
        """
        unpacked = self.layout.unpack(rows)
        if (limit := self.oldest(as_of)) is None:
            return unpacked
        expired = unpacked.found & (unpacked.event_time < limit)
        if not expired.any():
            return unpacked
        return self.layout.unpack([None if old else row for row, old in zip(rows, expired, strict=True)])

    def oldest(self, as_of: datetime) -> int | None:
        """The event time, in microseconds, of the oldest row that holds at this moment; None where each does."""
        return microseconds(as_of - self.ttl) if self.ttl else None


class Lookup(NamedTuple):
    """What is asked of one view: join key -> its value for each entity, all of them text."""

    view: PackedView
    keys: Mapping[str, Sequence[str]]


def read_rows(database: Database, lookups: Sequence[Lookup], *, as_of: datetime) -> list[Rows]:
    """Of each lookup the entities' rows, in their order: one round trip for all (SQLite: one query a view).

    as_of: aware; what expires does so at this moment.  Raises RowUnreadable, and what the database's driver raises.
    """
    known: list[tuple[Mapping[str, Sequence[str]], list[bytes]]] = []  # views of one entity are asked by the same keys
    asked = []
    for view, keys in lookups:
        encoded = next((held for same, held in known if same == keys), None)
        if encoded is None:
            encoded = entity_keys(keys)
            known.append((keys, encoded))
        asked.append(Asked(view.table, encoded))
    return [view.unpack(rows, as_of) for (view, _), rows in zip(lookups, database.read(asked), strict=True)]


def delete_expired(database: Database, views: Sequence[PackedView], *, as_of: datetime) -> dict[str, int]:
    """Delete the rows that have expired by this moment: by table, how many."""
    limits = {view.table: view.oldest(as_of) for view in views}
    return {table: database.delete_before(table, limit) for table, limit in limits.items() if limit is not None}


def microseconds(moment: datetime) -> int:
    """Since 1970. A moment without a zone is UTC, as Feast has it."""
    since: Any = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH
    return int((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def times(moments: Sequence[datetime | None], absent: int) -> np.ndarray:
    """Moments as (N,) int64 microseconds since 1970."""
    numbers = (absent if moment is None else microseconds(moment) for moment in moments)
    return np.fromiter(numbers, np.int64, len(moments))
