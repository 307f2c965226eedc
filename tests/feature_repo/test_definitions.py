"""The Feast repository says what the contract says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from feature_repo.contract import EVENT_TIME, VIEWS
from feature_repo.definitions import feast_objects, open_store, source_path

REPOSITORY = Path(__file__).parents[2] / "feature_repo"


@pytest.fixture(scope="module")
def store(loaded_shop):
    return open_store(loaded_shop.workspace)


def test_no_feature_of_the_applied_registry_expires(store):
    assert not any(view.ttl for view in store.list_feature_views())


def test_every_source_is_a_folder_of_the_workspace(store, loaded_shop):
    for view in VIEWS:
        source = store.get_feature_view(view.name).batch_source
        assert Path(source.path) == source_path(loaded_shop.workspace, view)
        assert source.timestamp_field == EVENT_TIME


def test_the_applied_registry_says_what_each_thing_is_and_who_answers_for_it(store):
    for view in VIEWS:
        applied = store.get_feature_view(view.name)
        assert (applied.description, applied.owner, applied.tags) == (view.description, view.owner, view.tags)
        assert {one.name: one.description for one in applied.features} == {
            one.name: one.description for one in view.features
        }
    others = (*store.list_entities(), *store.list_data_sources(), *store.list_feature_services())
    assert all(one.description and one.owner for one in others if one.name != "__dummy")
    assert {view.name for view in store.list_feature_views(tags={"fixed": "true"})} == {
        "item_cluster",
        "item_embedding",
    }


def test_feast_finds_in_the_folder_exactly_the_objects_that_the_jobs_apply(monkeypatch, tmp_path):
    from feast.repo_operations import parse_repo

    monkeypatch.setenv("COURIER_WORKSPACE", str(tmp_path))
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.syspath_prepend(str(REPOSITORY))
    monkeypatch.delitem(sys.modules, "definitions", raising=False)
    found = parse_repo(REPOSITORY)
    monkeypatch.delitem(sys.modules, "definitions", raising=False)
    names = {
        item.name
        for item in (*found.entities, *found.data_sources, *found.feature_views, *found.feature_services)
        if item.name != "__dummy"
    }
    assert names == {item.name for item in feast_objects(tmp_path).values()}


def test_the_plain_feast_command_lists_the_workspaces_views(loaded_shop):
    environment = {**os.environ, "COURIER_WORKSPACE": str(loaded_shop.workspace)}
    command = [sys.executable, "-m", "feast.cli.cli", "feature-views", "list"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert all(view.name in done.stdout for view in VIEWS)


PROGRAM = """
import atexit, sys
from pathlib import Path
atexit.register(lambda: print("the last word", file=sys.stderr))  # runs after what is registered later
from feature_repo.definitions import open_store
store = open_store(Path(sys.argv[1]))
asked = "SELECT 'u1' AS user_id, TIMESTAMPTZ '2024-03-05' AS event_timestamp"
assert len(store.get_historical_features(asked, ["user_statistics:user_clicks_1d"]).to_df()) == 1
"""


def test_a_process_that_joined_ends_without_noise_and_with_its_stderr_open(loaded_shop):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(loaded_shop.workspace)]
    done = subprocess.run(command, cwd=REPOSITORY.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "the last word\n"
