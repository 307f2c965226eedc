"""The catalogue on a real SQLite file: recording, promoting, rolling back, and the migration that makes its tables."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.ddl.impl import DefaultImpl
from alembic.migration import MigrationContext
from sqlalchemy.orm import Session

from jobs.releases.build import migrate
from model import releases
from model.releases import CatalogueUnreadable, CurrentRow, NoRelease, Release

NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)


def release(name: str, hours: int = 0) -> Release:
    return Release(
        release_id=name,
        created_at=NOON + timedelta(hours=hours),
        space_id="s1",
        ctr_model="neural/cluster_id",
        artifacts={"index": {"path": "index/abc", "digest": "d"}},
        metrics={"auc": 0.7},
    )


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = releases.connect(releases.url_in(tmp_path))
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[Session]:
    with Session(engine) as session, session.begin():
        yield session


def test_the_migrations_make_exactly_the_tables_of_the_model(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), releases.Base.metadata) == []


def test_migrating_twice_changes_nothing_and_keeps_the_rows(engine: sa.Engine) -> None:
    with Session(engine) as session, session.begin():
        releases.record(session, release("r1"))
    migrate(engine)
    with Session(engine) as session:
        assert releases.history(session) == [release("r1")]


def test_a_migration_that_dies_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = releases.connect(releases.url_in(tmp_path))
    made = DefaultImpl.create_table

    def die_halfway(self: DefaultImpl, table: sa.Table, **more: object) -> None:
        made(self, table, **more)
        if table.name == "release":
            raise KeyboardInterrupt

    monkeypatch.setattr(DefaultImpl, "create_table", die_halfway)
    with pytest.raises(KeyboardInterrupt):
        migrate(engine)
    assert sa.inspect(engine).get_table_names() == []
    monkeypatch.undo()
    migrate(engine)
    assert set(sa.inspect(engine).get_table_names()) == {"release", "current_release", "alembic_version"}


def test_a_release_is_recorded_once_and_as_it_was_first(session: Session) -> None:
    assert releases.record(session, release("r1")) == release("r1")
    assert releases.record(session, release("r1", hours=5)) == release("r1")
    assert releases.history(session) == [release("r1")]


def test_nothing_answers_before_the_first_promotion(session: Session) -> None:
    releases.record(session, release("r1"))
    assert releases.answering(session) is None


def test_the_promoted_release_answers_and_there_is_one_row(session: Session) -> None:
    for name in ("r1", "r2"):
        releases.record(session, release(name))
        assert releases.promote(session, name, now=NOON).release_id == name
        assert releases.answering(session) == release(name)
    row = session.scalars(sa.select(CurrentRow)).one()
    assert (row.release_id, row.previous_id, row.since) == ("r2", "r1", NOON)


def test_promoting_what_answers_already_changes_nothing(session: Session) -> None:
    for name in ("r1", "r2"):
        releases.record(session, release(name))
        releases.promote(session, name, now=NOON)
    releases.promote(session, "r2", now=NOON + timedelta(days=1))
    row = session.scalars(sa.select(CurrentRow)).one()
    assert (row.previous_id, row.since) == ("r1", NOON)


def test_rolling_back_returns_to_what_answered_before_even_if_others_were_recorded_since(session: Session) -> None:
    for hours, name in enumerate(("good", "bad", "worse")):
        releases.record(session, release(name, hours))
        releases.promote(session, name, now=NOON)
        if name == "bad":
            assert releases.roll_back(session, now=NOON).release_id == "good"
    assert releases.roll_back(session, now=NOON).release_id == "good"
    assert releases.answering(session) == release("good")


def test_there_is_one_step_back_and_then_a_clear_sentence(session: Session) -> None:
    with pytest.raises(NoRelease, match="no release to roll back to"):
        releases.roll_back(session, now=NOON)
    for name in ("r1", "r2"):
        releases.record(session, release(name))
        releases.promote(session, name, now=NOON)
    releases.roll_back(session, now=NOON)
    with pytest.raises(NoRelease, match="promote one by its id"):
        releases.roll_back(session, now=NOON)


def test_an_unknown_release_cannot_be_promoted_and_leaves_the_current_one(engine: sa.Engine) -> None:
    with Session(engine) as session, session.begin():
        releases.record(session, release("r1"))
        releases.promote(session, "r1", now=NOON)
    with pytest.raises(NoRelease, match="no release 'r9'"):
        _record_then_promote(engine, "r2", "r9")
    with Session(engine) as session:
        assert releases.answering(session) == release("r1")
        assert [one.release_id for one in releases.history(session)] == ["r1"]


def test_history_is_newest_first(session: Session) -> None:
    for hours, name in ((2, "b"), (1, "a"), (3, "c")):
        releases.record(session, release(name, hours))
    assert [one.release_id for one in releases.history(session)] == ["c", "b", "a"]


def test_moments_come_back_in_utc_whatever_their_zone_was(session: Session) -> None:
    cet = timezone(timedelta(hours=2))
    there = Release(**{**_fields(release("r1")), "created_at": NOON.astimezone(cet)})
    releases.record(session, there)
    session.expire_all()
    found = releases.find(session, "r1").created_at
    assert (found, found.tzinfo) == (NOON, UTC)


def test_a_moment_without_a_zone_is_refused(session: Session) -> None:
    with pytest.raises(sa.exc.StatementError, match="has no time zone"):
        releases.record(session, Release(**{**_fields(release("r1")), "created_at": datetime(2024, 1, 1)}))  # noqa: DTZ001


def test_looking_at_a_workspace_makes_no_catalogue(tmp_path: Path) -> None:
    assert releases.current(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_catalogue_whose_tables_were_never_made_has_no_current_release(tmp_path: Path) -> None:
    (tmp_path / releases.CATALOGUE_FILE).touch()
    assert releases.current(tmp_path) is None


def test_a_file_that_is_no_catalogue_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / releases.CATALOGUE_FILE).write_text("hello, I am a text file, and not a database at all", "utf-8")
    with pytest.raises(CatalogueUnreadable, match="cannot be read"):
        releases.current(tmp_path)


def _record_then_promote(engine: sa.Engine, recorded: str, promoted: str) -> None:
    with Session(engine) as session, session.begin():
        releases.record(session, release(recorded))
        releases.promote(session, promoted, now=NOON)


def _fields(one: Release) -> dict[str, object]:
    return {name: getattr(one, name) for name in Release.__slots__}
