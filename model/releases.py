"""Which releases exist, and which one answers: two tables, and the acts of recording, promoting and rolling back.

It lies in the model because both wings need it: jobs record and promote, serving reads. `current` is one row, switched
in one transaction, so promoting and rolling back are the same cheap act.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from model.errors import CourierError

CATALOGUE_FILE = "catalogue.db"
ONLY_ROW = 1


class NoRelease(CourierError):
    """The catalogue holds no such release; the message says how to get one."""


class CatalogueUnreadable(CourierError):
    """The database does not answer, or holds other tables; the message carries its own words."""


class Instant(sa.TypeDecorator[datetime]):
    """An aware UTC moment; SQLite keeps no zone, so it is taken off on the way in and put back on the way out."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Store UTC without a zone. Raises ValueError for a moment without one."""
        del dialect
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(UTC).replace(tzinfo=None) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Give the moment its zone back."""
        del dialect
        return value.replace(tzinfo=UTC) if value is not None else None


class Base(DeclarativeBase):
    """The tables that Alembic keeps (infra/migrations)."""

    metadata = sa.MetaData(
        naming_convention={"pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s_%(column_0_name)s"},
    )


class ReleaseRow(Base):
    """A release, as it was recorded; never changed afterwards."""

    __tablename__ = "release"

    release_id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(Instant())
    space_id: Mapped[str] = mapped_column(sa.String(64))
    ctr_model: Mapped[str] = mapped_column(sa.String(64))
    artifacts: Mapped[dict[str, Any]] = mapped_column(sa.JSON())
    metrics: Mapped[dict[str, Any]] = mapped_column(sa.JSON())


class CurrentRow(Base):
    """The one row that says which release answers, and which one answered before it."""

    __tablename__ = "current_release"

    row: Mapped[int] = mapped_column(sa.Integer(), primary_key=True, autoincrement=False)
    release_id: Mapped[str] = mapped_column(sa.ForeignKey("release.release_id"))
    previous_id: Mapped[str | None] = mapped_column(sa.ForeignKey("release.release_id"))
    since: Mapped[datetime] = mapped_column(Instant())


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What answers together: one space, its codebook, its index and its CTR model.

    artifacts: stage -> {"path": relative to the workspace, "digest": of the manifest there}.
    ctr_model: "<model>/<images>", the variant of the ctr artifact that ranks.
    metrics: what was measured of it offline.
    """

    release_id: str
    created_at: datetime
    space_id: str
    ctr_model: str
    artifacts: Mapping[str, Mapping[str, str]]
    metrics: Mapping[str, Any]


def url_in(workspace: Path) -> str:
    """The database URL of the catalogue that lies in a workspace."""
    return f"sqlite:///{(workspace / CATALOGUE_FILE).absolute()}"


def connect(url: str) -> sa.Engine:
    """An engine that speaks to the catalogue at `url`. Nothing is opened yet."""
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def record(session: Session, release: Release) -> Release:
    """Write `release` down unless it is there already; returns it as it was first recorded."""
    row = session.get(ReleaseRow, release.release_id)
    if row is None:
        row = ReleaseRow(**_columns(release))
        session.add(row)
        session.flush()
    return _release(row)


def promote(session: Session, release_id: str, *, now: datetime) -> Release:
    """Let this release answer from `now` on; a no-op where it does already. Raises NoRelease for an unknown id."""
    release = find(session, release_id)
    # One statement reads and writes the row, so two promotions at once cannot lose the release in between.
    switched = session.execute(
        sa.update(CurrentRow)
        .where(CurrentRow.release_id != release_id)
        .values(previous_id=CurrentRow.release_id, release_id=release_id, since=now)
        .execution_options(synchronize_session=False)
    )
    if not _rows_changed(switched) and session.scalar(sa.select(CurrentRow.row)) is None:
        session.add(CurrentRow(row=ONLY_ROW, release_id=release_id, previous_id=None, since=now))
        session.flush()
    return release


def roll_back(session: Session, *, now: datetime) -> Release:
    """Let the release that answered before the current one answer again.

    One step: after it, an older release is promoted by its id. Raises NoRelease where nothing answered before.
    """
    previous = session.scalar(sa.select(CurrentRow.previous_id))
    if previous is None:
        raise NoRelease("there is no release to roll back to: promote one by its id")
    session.execute(
        sa.update(CurrentRow)
        .values(release_id=previous, previous_id=None, since=now)
        .execution_options(synchronize_session=False)
    )
    return find(session, previous)


def answering(session: Session) -> Release | None:
    """The current release; None where none was ever promoted."""
    row = session.scalar(sa.select(ReleaseRow).join(CurrentRow, CurrentRow.release_id == ReleaseRow.release_id))
    return _release(row) if row is not None else None


def find(session: Session, release_id: str) -> Release:
    """The release of this id. Raises NoRelease."""
    row = session.get(ReleaseRow, release_id)
    if row is None:
        raise NoRelease(f"the catalogue holds no release {release_id!r}: `courier releases` lists them")
    return _release(row)


def history(session: Session) -> list[Release]:
    """Every release, newest first."""
    rows = session.scalars(sa.select(ReleaseRow).order_by(ReleaseRow.created_at.desc(), ReleaseRow.release_id))
    return [_release(row) for row in rows]


def current(workspace: Path) -> Release | None:
    """The current release of a workspace, only read: a catalogue that does not exist is not made.

    Returns None where nothing was released yet.  Raises CatalogueUnreadable.
    """
    if not (workspace / CATALOGUE_FILE).is_file():
        return None
    engine = connect(url_in(workspace))
    try:
        with Session(engine) as session:
            # A run that was killed before the tables were made leaves an empty file.
            made = sa.inspect(session.connection()).has_table(CurrentRow.__tablename__)
            return answering(session) if made else None
    except sa.exc.DBAPIError as error:
        raise CatalogueUnreadable(f"the catalogue of {workspace} cannot be read ({error.orig})") from None
    finally:
        engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Python's driver commits CREATE TABLE at once; a migration that is killed must leave nothing behind.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")  # SQLite checks them only when told to


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _rows_changed(result: sa.Result[Any]) -> int:
    return int(getattr(result, "rowcount", 0))


def _columns(release: Release) -> dict[str, Any]:
    return {
        "release_id": release.release_id,
        "created_at": release.created_at,
        "space_id": release.space_id,
        "ctr_model": release.ctr_model,
        "artifacts": {stage: dict(where) for stage, where in release.artifacts.items()},
        "metrics": dict(release.metrics),
    }


def _release(row: ReleaseRow) -> Release:
    return Release(
        release_id=row.release_id,
        created_at=row.created_at,
        space_id=row.space_id,
        ctr_model=row.ctr_model,
        artifacts=row.artifacts,
        metrics=row.metrics,
    )
