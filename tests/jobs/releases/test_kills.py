"""Promotions and garbage collection killed by SIGKILL at random moments leave a database and artifacts that agree."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from recorded_releases import STAGES, build_release, write_stages

from jobs.releases.garbage import find, remove
from model import artifact, releases
from model.release_database import reading, url_in, writing

NOW = datetime(2024, 6, 1, tzinfo=UTC)
KEYS = [f"{number:012x}" for number in range(1, 4)]
KILLS = 25
# A process that has imported everything already, so that a kill hits work.
FORKING = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Three releases, of which the last answers."""
    folder = tmp_path_factory.mktemp("three")
    made = [build_release(folder, write_stages(folder, key, seed=seed), key) for seed, key in enumerate(KEYS)]
    for release_id in made:
        switch(folder, release_id)
    return folder, made


@pytest.fixture
def three(tmp_path: Path, template: tuple[Path, list[str]]) -> list[str]:
    shutil.copytree(template[0], tmp_path, dirs_exist_ok=True)
    return template[1]


def switch(workspace: Path, release_id: str) -> None:
    with writing(url_in(workspace)) as session:
        releases.promote(session, release_id, now=NOW, by="ann")


def killed(work: Callable[[], None], after: float) -> None:
    """Do some work in a process of its own, and kill it so many seconds later, if it has not ended by then."""
    process = FORKING.Process(target=work)
    process.start()
    time.sleep(after)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


def test_a_promotion_that_is_killed_happened_with_its_entry_in_the_history_or_not_at_all(
    tmp_path: Path, three: list[str]
) -> None:
    draw = random.Random(0)

    def promote_for_ever() -> None:
        for number in range(10_000):
            switch(tmp_path, three[number % 3])

    for _ in range(KILLS):
        killed(promote_for_ever, draw.uniform(0.0, 0.08))
        with reading(url_in(tmp_path)) as session:
            now, before = releases.current_id(session), releases.previous_id(session)
            acts = [act for act in releases.acts(session, now or "") if act.act == "promoted"]
            assert (acts[-1].release_id, acts[-1].previous_id) == (now, before)
            assert len(releases.list_releases(session)) == 3
    switch(tmp_path, three[0])
    found = releases.current(url_in(tmp_path))
    assert found is not None
    assert found.release_id == three[0]


def test_garbage_collection_that_is_killed_comes_to_its_end_when_run_again(
    tmp_path: Path, template: tuple[Path, list[str]]
) -> None:
    draw = random.Random(0)
    for number in range(KILLS // 2):
        workspace = Path(shutil.copytree(template[0], tmp_path / str(number)))

        def collect(workspace: Path = workspace) -> None:
            remove(workspace, find(workspace, set(), keep=1), now=NOW, by="ann")

        killed(collect, draw.uniform(0.0, 0.1))
        for stage in STAGES:  # what stays is whole at every moment
            for key in KEYS[1:]:
                artifact.read(workspace / stage / key, kind=stage)
        collect()
        with reading(url_in(workspace)) as session:
            assert [one.release_id for one in releases.list_releases(session) if one.retired_at] == template[1][:1]
        for stage in STAGES:
            assert {path.name for path in (workspace / stage).iterdir()} == set(KEYS[1:])
