"""Which features an online store holds: begun, loaded whole, asked for; one row a store in the database of releases."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from model.errors import CourierError
from model.release_database import StoredFeaturesRow


class LoadOvertaken(CourierError):
    """Another load of the same store has begun meanwhile; the message says what to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFeatures:
    """What an online store holds.

    store: its identity, as whoever loads it names it.  features: the digest of the features artifact.
    as_of: the moment that the features are of.  loaded_at: when the load ended; None while one goes on or was killed.
    """

    store: str
    features: str
    as_of: datetime
    begun_at: datetime
    loaded_at: datetime | None

    @property
    def whole(self) -> bool:
        """Whether the store holds all of them."""
        return self.loaded_at is not None


def mark_loading(session: Session, store: str, *, features: str, as_of: datetime, now: datetime) -> None:
    """Say that `store` is being loaded with these features from `now` on: until it is done it holds nothing whole.

    store: at most 200 characters.  features: a digest, 64 hex digits.
    """
    row = session.get(StoredFeaturesRow, store)
    if row is None:
        row = StoredFeaturesRow(store=store)
        session.add(row)
    row.features, row.as_of, row.begun_at, row.loaded_at = features, as_of, now, None
    session.flush()


def mark_loaded(session: Session, store: str, *, features: str, now: datetime) -> None:
    """Say that the load that `mark_loading` announced has ended.

    Raises LoadOvertaken where another one was announced since, or none.
    """
    row = session.get(StoredFeaturesRow, store)
    if row is None or row.features != features:
        raise LoadOvertaken(
            f"another load of the online store {store} began before this one ended: run `courier materialize` again"
        )
    row.loaded_at = now
    session.flush()


def rename_features(session: Session, digests: Mapping[str, str]) -> None:
    """Say that features of these digests are now known by others: rows were deleted, from the stores as well."""
    for row in session.scalars(sa.select(StoredFeaturesRow)):
        row.features = digests.get(row.features, row.features)
    session.flush()


def held_features(session: Session, store: str) -> StoredFeatures | None:
    """What this online store holds or is being loaded with; None where nobody has loaded it."""
    row = session.get(StoredFeaturesRow, store)
    if row is None:
        return None
    return StoredFeatures(
        store=row.store, features=row.features, as_of=row.as_of, begun_at=row.begun_at, loaded_at=row.loaded_at
    )
