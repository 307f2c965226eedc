"""Which features an online store holds: never said to be whole while it is not."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from infra.migrations.migrate import migrate
from model.release_database import url_in, writing
from model.stored_features import LoadOvertaken, held_features, mark_loaded, mark_loading

NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)
ONE, OTHER = "1" * 64, "2" * 64


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    migrate(url_in(tmp_path))
    with writing(url_in(tmp_path)) as session:
        yield session


def test_a_store_that_nobody_loaded_holds_nothing(session: Session) -> None:
    assert held_features(session, "redis") is None


def test_a_store_holds_features_whole_only_once_their_load_has_ended(session: Session) -> None:
    mark_loading(session, "redis", features=ONE, as_of=NOON, now=NOON)
    held = held_features(session, "redis")
    assert held is not None
    assert (held.features, held.as_of, held.whole) == (ONE, NOON, False)
    mark_loaded(session, "redis", features=ONE, now=NOON + timedelta(minutes=1))
    held = held_features(session, "redis")
    assert held is not None
    assert (held.whole, held.loaded_at) == (True, NOON + timedelta(minutes=1))


def test_a_new_load_takes_back_that_the_store_is_whole(session: Session) -> None:
    for features in (ONE, ONE, OTHER):
        mark_loading(session, "redis", features=features, as_of=NOON, now=NOON)
        held = held_features(session, "redis")
        assert held is not None
        assert not held.whole
        mark_loaded(session, "redis", features=features, now=NOON)


def test_a_load_that_another_overtook_does_not_call_itself_done(session: Session) -> None:
    with pytest.raises(LoadOvertaken, match="run `courier materialize` again"):
        mark_loaded(session, "redis", features=ONE, now=NOON)
    mark_loading(session, "redis", features=ONE, as_of=NOON, now=NOON)
    mark_loading(session, "redis", features=OTHER, as_of=NOON, now=NOON)
    with pytest.raises(LoadOvertaken, match="the online store redis"):
        mark_loaded(session, "redis", features=ONE, now=NOON)
    held = held_features(session, "redis")
    assert held is not None
    assert (held.features, held.whole) == (OTHER, False)


def test_stores_do_not_mix(session: Session) -> None:
    mark_loading(session, "redis", features=ONE, as_of=NOON, now=NOON)
    mark_loading(session, "sqlite", features=OTHER, as_of=NOON, now=NOON)
    mark_loaded(session, "sqlite", features=OTHER, now=NOON)
    held = [held_features(session, store) for store in ("redis", "sqlite")]
    assert [(one.features, one.whole) for one in held if one] == [(ONE, False), (OTHER, True)]
