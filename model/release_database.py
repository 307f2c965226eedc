"""The database of releases: its tables, how it is spoken to, and which migration this courier reads.

It is SQLite in the workspace, or any that SQLAlchemy speaks to, so that servers on several hosts share it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from model.errors import CourierError

CATALOGUE_FILE: Final = "catalogue.db"
SCHEMA: Final = "0004"  # the newest of infra/migrations, which a process that only reads need not have
LONGEST_NAME: Final = 200  # of who did something, and of an online store
WRITERS: Final = 0x636F7572  # the advisory lock that PostgreSQL's writers hold one after the other


class NoRelease(CourierError):
    """The database holds no such release; the message says how to get one."""


class CatalogueUnreadable(CourierError):
    """The database does not answer, or holds other tables; the message carries its own words."""


class SchemaMismatch(CourierError):
    """The database's tables are those of an older or newer courier; the message says how to move them."""


class OlderSchema(SchemaMismatch):
    """They are those of an older courier, so that this one can move them."""


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
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
        },
    )


class ReleaseRow(Base):
    """A release as it was recorded, but for whether it is retired, and the artifacts that rows were deleted from."""

    __tablename__ = "release"

    release_id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(Instant())
    space_id: Mapped[str] = mapped_column(sa.String(64))
    codebook_id: Mapped[str | None] = mapped_column(sa.String(64))
    ctr_model: Mapped[str] = mapped_column(sa.String(64))
    artifacts: Mapped[dict[str, Any]] = mapped_column(sa.JSON())
    metrics: Mapped[dict[str, Any]] = mapped_column(sa.JSON())
    retired_at: Mapped[datetime | None] = mapped_column(Instant())


class StoredFeaturesRow(Base):
    """Which features an online store holds, or is being loaded with."""

    __tablename__ = "stored_features"

    store: Mapped[str] = mapped_column(sa.String(LONGEST_NAME), primary_key=True)
    features: Mapped[str] = mapped_column(sa.String(64))
    as_of: Mapped[datetime] = mapped_column(Instant())
    begun_at: Mapped[datetime] = mapped_column(Instant())
    loaded_at: Mapped[datetime | None] = mapped_column(Instant())


class CurrentRow(Base):
    """The one row that says which release answers, and which one answered before it."""

    __tablename__ = "current_release"

    row: Mapped[int] = mapped_column(sa.Integer(), primary_key=True, autoincrement=False)
    release_id: Mapped[str] = mapped_column(sa.ForeignKey("release.release_id"))
    previous_id: Mapped[str | None] = mapped_column(sa.ForeignKey("release.release_id"))
    since: Mapped[datetime] = mapped_column(Instant())


class ActRow(Base):
    """Something that was done to a release; only ever added."""

    __tablename__ = "release_act"

    number: Mapped[int] = mapped_column(sa.Integer(), primary_key=True)
    act: Mapped[str] = mapped_column(sa.String(16))
    release_id: Mapped[str] = mapped_column(sa.ForeignKey("release.release_id"))
    previous_id: Mapped[str | None] = mapped_column(sa.ForeignKey("release.release_id"))
    done_at: Mapped[datetime] = mapped_column(Instant())
    done_by: Mapped[str] = mapped_column(sa.String(LONGEST_NAME))
    why: Mapped[str] = mapped_column(sa.Text())
    gates: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))


class AdditionRow(Base):
    """Items that were added since a release; only ever added, and removed once no kept release lacks them."""

    __tablename__ = "addition"

    number: Mapped[int] = mapped_column(sa.Integer(), primary_key=True)
    addition_id: Mapped[str] = mapped_column(sa.String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(Instant())
    space_id: Mapped[str] = mapped_column(sa.String(64))
    codebook_id: Mapped[str] = mapped_column(sa.String(64))
    path: Mapped[str] = mapped_column(sa.String(LONGEST_NAME))
    digest: Mapped[str] = mapped_column(sa.String(64))
    items: Mapped[int] = mapped_column(sa.Integer())
    done_by: Mapped[str] = mapped_column(sa.String(LONGEST_NAME))


def url_in(workspace: Path) -> str:
    """The database URL of the SQLite file that lies in a workspace."""
    return f"sqlite:///{(workspace / CATALOGUE_FILE).absolute()}"


def connect(url: str, *, writes: bool = False) -> sa.Engine:
    """An engine that speaks to the database at `url`. Nothing is opened yet.

    writes: its transactions wait for each other from their beginning, so none reads what another is changing.
    Raises CatalogueUnreadable for what is no URL, or one whose driver is not installed.
    """
    try:
        engine = sa.create_engine(url, pool_pre_ping=True)  # a database that was started again is spoken to anew
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise CatalogueUnreadable(
            f"the database of releases cannot be spoken to ({error}): give an SQLAlchemy URL with an installed driver, "
            "as postgresql+psycopg://user@host/name"
        ) from None
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        begin = "BEGIN IMMEDIATE" if writes else "BEGIN"
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    elif engine.dialect.name == "postgresql" and writes:
        # Promotions are rare and short: one after the other costs nothing, and the first of them has no row to lock.
        lock = sa.select(sa.func.pg_advisory_xact_lock(WRITERS))
        sa.event.listen(engine, "begin", lambda connection: connection.execute(lock))
    return engine


@contextmanager
def reading(url: str) -> Iterator[Session]:
    """A transaction that reads. Raises NoRelease where nothing was made yet, SchemaMismatch, CatalogueUnreadable."""
    with _transaction(url, writes=False) as session:
        yield session


@contextmanager
def writing(url: str) -> Iterator[Session]:
    """A transaction that writes, all of it or nothing. Raises as `reading`."""
    with _transaction(url, writes=True) as session:
        yield session


@contextmanager
def _transaction(url: str, *, writes: bool) -> Iterator[Session]:
    if not is_made(url):
        raise NoRelease(f"{shown(url)} holds no release: `courier run RAW` makes one")
    engine = connect(url, writes=writes)
    try:
        with Session(engine) as session, session.begin():
            require_schema(session)
            yield session
    except sa.exc.DBAPIError as error:
        raise unreadable(url, error) from None
    finally:
        engine.dispose()


def is_made(url: str) -> bool:
    """Whether there are tables; a SQLite file that does not exist is not made. Raises CatalogueUnreadable."""
    engine = connect(url)
    try:
        file = engine.url.database
        if engine.dialect.name == "sqlite" and not (file and Path(file).is_file()):
            return False
        with engine.connect() as connection:
            # A run that was killed before the tables were made leaves an empty file.
            return bool(sa.inspect(connection).has_table(CurrentRow.__tablename__))
    except sa.exc.DBAPIError as error:
        raise unreadable(url, error) from None
    finally:
        engine.dispose()


def require_schema(session: Session) -> None:
    """Raise SchemaMismatch unless the tables are those of this courier."""
    found = session.scalar(sa.text("SELECT version_num FROM alembic_version"))
    if found == SCHEMA:
        return
    where = shown(session.get_bind().engine.url.render_as_string(hide_password=False))
    if found is None or found < SCHEMA:
        raise OlderSchema(
            f"{where} is at migration {found or 'none'}, this courier reads {SCHEMA}: run `courier release migrate`"
        )
    raise SchemaMismatch(
        f"{where} is at migration {found}, this courier reads {SCHEMA}: install the courier that moved it"
    )


def shown(url: str) -> str:
    """The database's name for messages, without a password."""
    return f"the database of releases {sa.make_url(url).render_as_string(hide_password=True)}"


def unreadable(url: str, error: sa.exc.DBAPIError) -> CatalogueUnreadable:
    """The error of a driver as one sentence."""
    words = " ".join(str(error.orig).split())
    return CatalogueUnreadable(f"{shown(url)} cannot be read ({words}): look whether it is there and whole")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Python's driver commits CREATE TABLE at once; a migration that is killed must leave nothing behind.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")  # SQLite checks them only when told to
