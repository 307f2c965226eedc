"""The acts on releases, over SQLite and PostgreSQL: recording, promoting, rolling back, holding back, retiring."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from infra.migrations.migrate import migrate
from model import releases
from model.release_database import (
    CATALOGUE_FILE,
    CatalogueUnreadable,
    CurrentRow,
    NoRelease,
    reading,
    url_in,
    writing,
)
from model.releases import Release, ReleaseRefused

NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)
ANN = {"by": "ann", "now": NOON}


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
def made(releases_url: str) -> str:
    migrate(releases_url)
    return releases_url


@pytest.fixture
def session(made: str) -> Iterator[Session]:
    with writing(made) as session:
        yield session


def recorded(session: Session, *names: str) -> None:
    for hours, name in enumerate(names):
        releases.record(session, release(name, hours), by="ann")


def record_then_promote(url: str, made: str, promoted: str) -> None:
    with writing(url) as session:
        recorded(session, made)
        releases.promote(session, promoted, **ANN)


def done(session: Session, release_id: str) -> list[tuple[str, str, str | None, str]]:
    return [(act.act, act.release_id, act.previous_id, act.done_by) for act in releases.acts(session, release_id)]


def test_a_release_is_recorded_once_and_as_it_was_first(session: Session) -> None:
    assert releases.record(session, release("r1"), by="ann", why="first") == release("r1")
    assert releases.record(session, release("r1", hours=5), by="bob") == release("r1")
    assert releases.list_releases(session) == [release("r1")]
    [act] = releases.acts(session, "r1")
    assert (act.act, act.done_by, act.why, act.done_at) == ("created", "ann", "first", NOON)


def test_nothing_answers_before_the_first_promotion(session: Session) -> None:
    recorded(session, "r1")
    assert releases.answering(session) is None
    assert releases.previous_id(session) is None


def test_the_promoted_release_answers_and_there_is_one_row(session: Session) -> None:
    recorded(session, "r1", "r2")
    for name in ("r1", "r2"):
        assert releases.promote(session, name, **ANN).release_id == name
        assert releases.current_id(session) == name
    row = session.scalars(sa.select(CurrentRow)).one()
    assert (row.release_id, row.previous_id, row.since) == ("r2", "r1", NOON)


def test_promoting_what_answers_already_changes_nothing(session: Session) -> None:
    recorded(session, "r1", "r2")
    for name in ("r1", "r2"):
        releases.promote(session, name, **ANN)
    before = done(session, "r2")
    releases.promote(session, "r2", now=NOON + timedelta(days=1), by="bob")
    row = session.scalars(sa.select(CurrentRow)).one()
    assert (row.previous_id, row.since) == ("r1", NOON)
    assert done(session, "r2") == before


def test_rolling_back_returns_to_what_answered_before_even_if_others_were_recorded_since(session: Session) -> None:
    for hours, name in enumerate(("good", "bad", "worse")):
        releases.record(session, release(name, hours), by="ann")
        releases.promote(session, name, **ANN)
        if name == "bad":
            assert releases.roll_back(session, **ANN).release_id == "good"
    assert releases.roll_back(session, **ANN).release_id == "good"
    assert releases.answering(session) == release("good")


def test_there_is_one_step_back_and_then_a_clear_sentence(session: Session) -> None:
    with pytest.raises(NoRelease, match="no release to roll back to"):
        releases.roll_back(session, **ANN)
    recorded(session, "r1", "r2")
    for name in ("r1", "r2"):
        releases.promote(session, name, **ANN)
    releases.roll_back(session, **ANN)
    with pytest.raises(NoRelease, match="promote one by its id"):
        releases.roll_back(session, **ANN)


def test_every_act_is_remembered_with_who_and_why_and_what_answered_before(session: Session) -> None:
    recorded(session, "r1", "r2")
    releases.hold_back(session, "r1", gates={"recall": "recall is low", "collapse": None}, now=NOON, by="ann")
    releases.promote(session, "r1", now=NOON, by="bob", why="looked at it", gates={"recall": None})
    releases.promote(session, "r2", now=NOON, by="cid")
    releases.roll_back(session, now=NOON, by="dee", why="clicks fell")
    releases.retire(session, "r2", now=NOON, by="eve")
    assert done(session, "r1") == [
        ("created", "r1", None, "ann"),
        ("held_back", "r1", None, "ann"),
        ("promoted", "r1", None, "bob"),
        ("promoted", "r2", "r1", "cid"),
        ("rolled_back", "r1", "r2", "dee"),
    ]
    assert [act[0] for act in done(session, "r2")] == ["created", "promoted", "rolled_back", "retired"]
    _, held, promoted, *_, back = releases.acts(session, "r1")
    assert (held.why, held.gates) == ("recall is low", {"recall": "recall is low", "collapse": None})
    assert (promoted.why, promoted.gates) == ("looked at it", {"recall": None})
    assert (back.why, back.gates) == ("clicks fell", None)


def test_a_retired_release_answers_no_more_until_it_is_made_again(session: Session) -> None:
    recorded(session, "r1")
    releases.retire(session, "r1", **ANN)
    assert releases.find(session, "r1").retired_at == NOON
    with pytest.raises(ReleaseRefused, match="r1 was retired on 2024-06-01"):
        releases.promote(session, "r1", **ANN)
    elsewhere = replace(release("r1", 9), artifacts={"index": {"path": "index/abc-1", "digest": "d"}})
    assert releases.record(session, elsewhere, by="ann").artifacts == elsewhere.artifacts
    assert releases.promote(session, "r1", **ANN).retired_at is None


def test_the_current_release_and_the_one_before_cannot_be_retired(session: Session) -> None:
    recorded(session, "r1", "r2", "r3")
    for name in ("r1", "r2", "r3"):
        releases.promote(session, name, **ANN)
    with pytest.raises(ReleaseRefused, match="r3 is the current release"):
        releases.retire(session, "r3", **ANN)
    with pytest.raises(ReleaseRefused, match="r2 is what a rollback leads to"):
        releases.retire(session, "r2", **ANN)
    assert releases.retire(session, "r1", **ANN).retired_at == NOON
    assert releases.retire(session, "r1", now=NOON + timedelta(1), by="bob").retired_at == NOON


def test_an_unknown_release_cannot_be_promoted_and_the_transaction_leaves_nothing(made: str) -> None:
    with writing(made) as session:
        recorded(session, "r1")
        releases.promote(session, "r1", **ANN)
    with pytest.raises(NoRelease, match="no release 'r9'"):
        record_then_promote(made, "r2", "r9")
    with reading(made) as session:
        assert [one.release_id for one in releases.list_releases(session)] == ["r1"]
    found = releases.current(made)
    assert found is not None
    assert found.release_id == "r1"


def test_promotions_at_once_follow_one_another_and_none_is_lost(made: str) -> None:
    names = [f"r{number}" for number in range(8)]
    with writing(made) as session:
        recorded(session, *names)

    def promote(name: str) -> None:
        with writing(made) as session:
            releases.promote(session, name, **ANN)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(promote, names))
    with reading(made) as session:
        switches = [act for name in names for act in releases.acts(session, name) if act.act == "promoted"]
        came_after = {act.previous_id: act.release_id for act in switches}
        chain = [came_after[None]]
        while chain[-1] in came_after:
            chain.append(came_after[chain[-1]])
        assert sorted(chain) == names
        assert (releases.previous_id(session), releases.current_id(session)) == (chain[-2], chain[-1])


def test_releases_are_listed_newest_first(session: Session) -> None:
    for hours, name in ((2, "b"), (1, "a"), (3, "c")):
        releases.record(session, release(name, hours), by="ann")
    assert [one.release_id for one in releases.list_releases(session)] == ["c", "b", "a"]


def test_moments_come_back_in_utc_whatever_their_zone_was(session: Session) -> None:
    cet = timezone(timedelta(hours=2))
    releases.record(session, replace(release("r1"), created_at=NOON.astimezone(cet)), by="ann")
    session.expire_all()
    found = releases.find(session, "r1").created_at
    assert (found, found.tzinfo) == (NOON, UTC)


def test_a_moment_without_a_zone_is_refused(made: str) -> None:
    with pytest.raises(sa.exc.StatementError, match="has no time zone"), writing(made) as session:
        releases.record(session, replace(release("r1"), created_at=datetime(2024, 1, 1)), by="ann")  # noqa: DTZ001


# --- what is no database ---------------------------------------------------------------------------------------------


def test_a_database_without_tables_has_no_current_release(releases_url: str) -> None:
    assert releases.current(releases_url) is None
    with pytest.raises(NoRelease, match="`courier run RAW` makes one"), reading(releases_url):
        pass


def test_looking_at_a_workspace_makes_no_database(tmp_path: Path) -> None:
    assert releases.current(url_in(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


def test_a_database_whose_tables_were_never_made_has_no_current_release(tmp_path: Path) -> None:
    (tmp_path / CATALOGUE_FILE).touch()
    assert releases.current(url_in(tmp_path)) is None


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / CATALOGUE_FILE).write_text("hello, I am a text file, and not a database at all", "utf-8")
    with pytest.raises(CatalogueUnreadable, match="cannot be read"):
        releases.current(url_in(tmp_path))


@pytest.mark.parametrize("url", ["nonsense", "oracle+nothing://host/name", "mysql+pymysql://host/name"])
def test_a_url_that_leads_nowhere_is_one_sentence_with_one_that_does(url: str) -> None:
    with pytest.raises(CatalogueUnreadable, match="give an SQLAlchemy URL with an installed driver"):
        releases.current(url)


def test_a_server_that_does_not_answer_is_one_sentence_without_the_password() -> None:
    url = "postgresql+psycopg://ann:secret@127.0.0.1:1/courier?connect_timeout=2"
    with pytest.raises(CatalogueUnreadable, match="cannot be read") as refused:
        releases.current(url)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
