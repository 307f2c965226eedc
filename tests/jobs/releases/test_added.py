"""What was added to a release: the newest wins, gc keeps what no run took up, a server takes it up, damage is said."""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from recorded_releases import build_release, drawn_vectors, write_stages

from jobs.releases.added import faults, indexed_items, since_release
from jobs.releases.garbage import find, remove
from model import additions, artifact, releases
from model.additions import Addition
from model.release_database import reading, url_in, writing
from model.releases import Release
from serving.additions import read_additions
from serving.current import Current
from serving.ranker import Ranker
from serving.release import open_release
from serving.routes import World
from serving.visual_search import load_search

NOW = datetime(2024, 6, 1, tzinfo=UTC)
FORKING = multiprocessing.get_context("fork")


@pytest.fixture
def released(tmp_path: Path) -> Release:
    """A release of i1 to i4, which answers."""
    release_id = build_release(tmp_path, write_stages(tmp_path, "000000000001"), "000000000001")
    with writing(url_in(tmp_path)) as session:
        return releases.promote(session, release_id, now=NOW, by="ann")


def add(workspace: Path, name: str, vectors: dict[str, np.ndarray], *, space: str = "s0") -> Addition:
    """Add items with these vectors, as `courier add-items` does but for the online store."""
    told = {"category": None, "title": name, "price": None, "created_at": None, "image": b"png", "cluster_id": 3}
    rows = [told | {"item_id": item, "image_id": f"{name}-{item}", "image_uri": f"{item}.png"} for item in vectors]
    folder = workspace / additions.KIND / name
    additions.write_addition(folder, rows, np.stack(list(vectors.values())), space_id=space, codebook_id="c1")
    addition = Addition(
        addition_id=name,
        created_at=NOW,
        space_id=space,
        codebook_id="c1",
        path=f"{additions.KIND}/{name}",
        digest=artifact.digest(folder),
        items=len(rows),
        done_by="ann",
    )
    with writing(url_in(workspace)) as session:
        additions.record(session, addition)
    return addition


def listed(workspace: Path, space: str | None = "s0") -> list[Addition]:
    with reading(url_in(workspace)) as session:
        return additions.list_additions(session, space)


def test_an_item_added_again_is_as_it_was_added_last(tmp_path: Path, released: Release) -> None:
    one, other = drawn_vectors(7, 2)
    first = add(tmp_path, "a", {"n1": one})
    second = add(tmp_path, "b", {"n1": other})
    assert listed(tmp_path) == [first, second]
    [newest] = additions.read_added(tmp_path, listed(tmp_path), released.space_id).vectors
    assert newest.tolist() == other.tolist()
    add(tmp_path, "a", {"n1": one})  # the first picture once more
    [newest] = additions.read_added(tmp_path, listed(tmp_path), released.space_id).vectors
    assert newest.tolist() == one.tolist()
    assert len(listed(tmp_path)) == 2


def test_search_merges_what_was_added_and_leaves_the_release_s_own_index_alone(
    tmp_path: Path, released: Release
) -> None:
    opened = open_release(tmp_path)
    own = load_search(opened)
    near = own.index.vector("i2")
    add(tmp_path, "a", {"n1": near, "i3": near})  # the release has i3: its own vector holds
    items = read_additions(listed(tmp_path), released.space_id, tmp_path)
    found = own.with_added(items)
    assert (len(found), len(own)) == (5, 4)
    assert found.index is own.index
    assert [hit.item_id for hit in found.by_item("n1", 1)] == ["i2"]
    assert next(hit.item_id for hit in found.by_item("i2", 4)) == "n1"
    scores = [hit.score for hit in found.by_item("i2", 4)]
    assert scores == sorted(scores, reverse=True)
    assert found.by_item("i1", 3)[0].score == max(own.by_item("i1", 1)[0].score, found.by_item("i1", 3)[0].score)


def test_a_running_server_finds_what_was_added_and_what_was_taken_away_again(tmp_path: Path, released: Release) -> None:
    class Nothing:
        """Neither features nor model: nobody ranks here."""

    def load() -> World:
        opened = open_release(tmp_path)
        return World(opened.release, load_search(opened), Ranker(Nothing(), Nothing(), "s", "c"), 10)  # type: ignore[arg-type]

    def take_up(world: World, found: object) -> World:
        some = list(found)  # type: ignore[call-overload]
        return world.with_added(tuple(one.digest for one in some), read_additions(some, "s0", tmp_path))

    current = Current(load(), load, url_in(tmp_path), add=take_up)
    index = current.world.search.index
    assert current.world.release == released
    assert not current.refresh()
    add(tmp_path, "a", {"n1": drawn_vectors(7, 1)[0]})
    assert current.refresh()
    assert current.world.search.by_item("n1", 1)
    assert current.world.search.index is index, "the release was not loaded again"
    assert not current.refresh()
    with writing(url_in(tmp_path)) as session:
        additions.remove(session, ["a"])
    assert current.refresh()
    assert len(current.world.search) == 4
    current.stop()


def test_gc_keeps_an_addition_while_a_kept_release_of_its_space_lacks_an_item(
    tmp_path: Path, released: Release
) -> None:
    vectors = drawn_vectors(7, 2)
    needed = add(tmp_path, "needed", {"n1": vectors[0], "i1": vectors[1]})
    add(tmp_path, "taken-up", {"i1": vectors[0], "i4": vectors[1]})
    add(tmp_path, "elsewhere", {"n1": vectors[0]}, space="s9")
    unknown = tmp_path / additions.KIND / "unknown"
    unknown.mkdir()
    garbage = find(tmp_path, set(), keep=1)
    assert garbage.bytes_by_stage()[additions.KIND] > 0
    remove(tmp_path, garbage, now=NOW, by="ann")
    assert listed(tmp_path, None) == [needed]
    assert [path.name for path in (tmp_path / additions.KIND).iterdir()] == ["needed"]
    assert indexed_items(tmp_path, released) == {"i1", "i2", "i3", "i4"}


def test_status_counts_items_that_the_release_lacks(tmp_path: Path, released: Release) -> None:
    assert released.space_id == "s0"
    assert since_release(tmp_path) is None
    vectors = drawn_vectors(7, 2)
    add(tmp_path, "a", {"n1": vectors[0], "i1": vectors[1]})
    add(tmp_path, "b", {"n1": vectors[1]})
    found = since_release(tmp_path)
    assert found is not None
    assert found["items"] == 1
    assert "put them into the raw items table before the next `courier run`" in found["said"]


def test_a_damaged_addition_is_said_and_not_served(tmp_path: Path, released: Release) -> None:
    added = add(tmp_path, "a", {"n1": drawn_vectors(7, 1)[0]})
    with reading(url_in(tmp_path)) as session:
        assert faults(tmp_path, session, released) == []
    with writing(url_in(tmp_path)) as session:
        additions.record(session, replace(added, digest="0" * 64))
    with reading(url_in(tmp_path)) as session:
        [said] = faults(tmp_path, session, released)
    assert "is another artifact than the database of releases names: add its items again" in said
    with pytest.raises(artifact.ArtifactMismatch):
        read_additions(listed(tmp_path), "s0", tmp_path)


def test_another_host_fetches_what_was_added_and_what_it_became(tmp_path: Path, released: Release) -> None:
    first = add(tmp_path, "a", {"n1": drawn_vectors(7, 1)[0]})
    there, store = tmp_path / "there", tmp_path / "store"
    artifact.copy(tmp_path / first.path, store / first.path, kind=additions.KIND)
    assert read_additions([first], "s0", there, str(store)).table["item_id"].to_pylist() == ["n1"]
    other = add(tmp_path, "a", {"n2": drawn_vectors(8, 1)[0]})
    artifact.copy(tmp_path / other.path, store / other.path, kind=additions.KIND)
    assert read_additions([other], "s0", there, str(store)).table["item_id"].to_pylist() == ["n2"]
    assert released.space_id == "s0"


def test_an_addition_killed_at_any_moment_is_whole_or_not_there(tmp_path: Path, released: Release) -> None:
    draw, vector = random.Random(0), drawn_vectors(7, 1)[0]

    def add_for_ever() -> None:
        for number in range(10_000):
            add(tmp_path, f"a{number % 3}", {f"n{number}": vector})

    for _ in range(6):
        process = FORKING.Process(target=add_for_ever)
        process.start()
        time.sleep(draw.uniform(0.0, 0.1))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        for number in range(3):  # the command run again, which ends what was begun
            add(tmp_path, f"a{number}", {f"n{number}": vector})
        with reading(url_in(tmp_path)) as session:
            assert faults(tmp_path, session, released) == []
        items = additions.read_added(tmp_path, listed(tmp_path), "s0")
        assert sorted(items.table["item_id"].to_pylist()) == ["n0", "n1", "n2"]
