"""How fresh the views are that the online store was loaded with."""

from datetime import UTC, datetime, timedelta

from feature_repo.contract import VIEWS
from jobs.features.freshness import ViewFreshness, freshness
from model import artifact

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
NAMES = [view.name for view in VIEWS]


def load(workspace, version, newest):
    """Features whose views' newest rows are these, and the artifact that says that they were loaded."""
    with artifact.write(workspace / "features" / version, kind="features", inputs={}, config={}) as draft:
        moments = {name: at and at.isoformat() for name, at in newest.items()}
        draft.facts = {"rows": dict.fromkeys(newest, 7), "newest": moments}
    features = artifact.digest(workspace / "features" / version)
    with artifact.write(workspace / "materialize" / version, kind="materialize", inputs={}, config={}) as draft:
        draft.facts = {"features": features}


def test_what_was_loaded_last_is_told_and_not_what_was_built_last(tmp_path):
    assert freshness(tmp_path) == []
    old, new = (dict.fromkeys(NAMES, at) for at in (NOON, NOON + timedelta(days=1)))
    load(tmp_path, "a", new)
    load(tmp_path, "b", old | {"item_cluster": None})
    with artifact.write(tmp_path / "features" / "c", kind="features", inputs={}, config={}) as draft:
        draft.facts = {"rows": dict.fromkeys(NAMES, 9), "newest": {}}
    found = {one.view: one for one in freshness(tmp_path)}
    assert list(found) == NAMES
    assert found["item_profile"] == ViewFreshness(view="item_profile", rows=7, newest=NOON)
    assert found["item_cluster"].newest is None


def test_the_age_is_that_of_the_newest_row(tmp_path):
    load(tmp_path, "a", dict.fromkeys(NAMES, NOON) | {"item_cluster": None})
    told = {one.view: one.facts(NOON + timedelta(hours=3)) for one in freshness(tmp_path)}
    assert told["user_history"] == {
        "view": "user_history",
        "rows": 7,
        "newest": "2024-03-01T12:00:00+00:00",
        "age_seconds": 3 * 3600,
    }
    assert (told["item_cluster"]["newest"], told["item_cluster"]["age_seconds"]) == (None, None)


def test_features_that_are_gone_are_told_nothing_of(tmp_path):
    load(tmp_path, "a", dict.fromkeys(NAMES, NOON))
    artifact.remove_folder(tmp_path / "features" / "a")
    assert freshness(tmp_path) == []
