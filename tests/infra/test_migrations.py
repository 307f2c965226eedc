"""The migrations up and down with rows in the tables, on SQLite and PostgreSQL; other migrations are refused."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.ddl.impl import DefaultImpl
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from infra.migrations import migrate as migrations
from infra.migrations.migrate import NoMigration, migrate
from model import releases, stored_features
from model.release_database import SCHEMA, Base, NoRelease, SchemaMismatch, connect, reading, url_in, writing
from model.releases import Release

NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)
TABLES = {"release", "current_release", "release_act", "stored_features", "addition", "alembic_version"}


def release(name: str, codebook_id: str | None = "c1") -> Release:
    return Release(
        release_id=name,
        created_at=NOON,
        space_id="s1",
        codebook_id=codebook_id,
        ctr_model="neural/none",
        artifacts={"index": {"path": "index/abc", "digest": "d"}},
        metrics={"auc": 0.7},
    )


def filled(url: str) -> None:
    """Two releases at the newest migration, the second of which answers, and a store that is loaded."""
    migrate(url)
    with writing(url) as session:
        for name in ("r1", "r2"):
            releases.record(session, release(name), by="ann")
            releases.promote(session, name, now=NOON, by="ann", why="good")
        stored_features.mark_loading(session, "redis", features="f" * 64, as_of=NOON, now=NOON)


def test_the_newest_migration_is_the_one_that_the_model_reads(tmp_path: Path) -> None:
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert script.get_heads() == [SCHEMA]
    assert migrate(url_in(tmp_path)) == SCHEMA


def test_the_migrations_make_exactly_the_tables_of_the_model(releases_url: str) -> None:
    migrate(releases_url)
    with connect(releases_url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_migrating_twice_changes_nothing_and_keeps_the_rows(releases_url: str) -> None:
    filled(releases_url)
    migrate(releases_url)
    with reading(releases_url) as session:
        assert releases.list_releases(session) == [release("r1"), release("r2")]
        assert len(releases.acts(session, "r1")) == 3


def test_down_and_up_again_keeps_every_release_and_which_one_answers(releases_url: str) -> None:
    filled(releases_url)
    migrate(releases_url, "0001")
    with connect(releases_url).connect() as connection:
        held = connection.execute(sa.text("SELECT release_id, previous_id FROM current_release")).all()
        columns = {column["name"] for column in sa.inspect(connection).get_columns("release")}
    assert held == [("r2", "r1")]
    assert "retired_at" not in columns
    migrate(releases_url)
    with reading(releases_url) as session:
        assert releases.list_releases(session) == [release("r1", None), release("r2", None)]
        assert (releases.current_id(session), releases.previous_id(session)) == ("r2", "r1")
        [act] = releases.acts(session, "r2")
        assert (act.act, act.previous_id, act.done_by, act.done_at) == ("promoted", "r1", "unknown", NOON)
        assert stored_features.held_features(session, "redis") is None
    with writing(releases_url) as session:
        assert releases.roll_back(session, now=NOON, by="ann").release_id == "r1"


def test_one_step_down_and_up_again_loses_the_names_of_codebooks_alone(releases_url: str) -> None:
    filled(releases_url)
    migrate(releases_url, "0002")
    migrate(releases_url)
    with reading(releases_url) as session:
        assert releases.list_releases(session) == [release("r1", None), release("r2", None)]
        assert len(releases.acts(session, "r1")) == 3
        assert stored_features.held_features(session, "redis") is not None


def test_a_migration_that_dies_leaves_nothing_behind(releases_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = DefaultImpl.create_table

    def die_halfway(self: DefaultImpl, table: sa.Table, **more: object) -> None:
        made(self, table, **more)
        if table.name == "release_act":
            raise KeyboardInterrupt

    monkeypatch.setattr(DefaultImpl, "create_table", die_halfway)
    with pytest.raises(KeyboardInterrupt):
        migrate(releases_url)
    assert sa.inspect(connect(releases_url)).get_table_names() == []
    monkeypatch.undo()
    migrate(releases_url)
    assert set(sa.inspect(connect(releases_url)).get_table_names()) == TABLES


def test_an_older_migration_is_refused_with_the_command_that_moves_it(releases_url: str) -> None:
    filled(releases_url)
    migrate(releases_url, "0001")
    for opened in (reading, writing):
        with pytest.raises(SchemaMismatch, match=r"at migration 0001.*reads 0004: run `courier release migrate`$"):
            opened(releases_url).__enter__()


def test_a_newer_migration_is_refused_by_readers_and_by_the_migrations_themselves(releases_url: str) -> None:
    filled(releases_url)
    with connect(releases_url, writes=True).begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0099'"))
    with pytest.raises(SchemaMismatch, match=r"at migration 0099.*reads 0004: install the courier that moved it$"):
        reading(releases_url).__enter__()
    with pytest.raises(NoMigration, match="0099, which a newer courier made: install that one"):
        migrate(releases_url)


def test_an_unknown_migration_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(NoMigration, match="no migration '7': choose among 0001, 0002, 0003, 0004"):
        migrate(url_in(tmp_path), "7")
    with pytest.raises(NoRelease):
        reading(url_in(tmp_path)).__enter__()
