"""A server follows the database: it switches under load without mixing, and what it cannot load leaves the old one."""

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import uvicorn
from recorded_releases import ITEMS, build_release, write_stages
from structlog.testing import capture_logs

from infra.migrations.migrate import migrate
from model import releases
from model.release_database import url_in, writing
from serving.app import create_app
from serving.current import RETRY_SECONDS, Current
from serving.ranker import Ranker
from serving.release import OpenRelease, open_release
from serving.routes import World
from serving.visual_search import load_search

NOW = datetime(2024, 6, 1, tzinfo=UTC)
SWITCHES, CLIENTS = 20, 4


@dataclass
class Rows:
    """What a feature source answers."""

    table: pa.Table
    known_user: bool
    known_items: list[bool]
    vectors: None = None


class EveryItem:
    """A feature store that knows whoever is asked for."""

    def ranking_rows(self, user_id: str, item_ids: Sequence[str], *_: str, **__: Any) -> Rows:
        del user_id
        return Rows(pa.table({"item_id": list(item_ids)}), True, [True] * len(item_ids))


@dataclass
class ByWeights:
    """A model whose scores follow from the bytes of its release's artifact."""

    weights: bytes
    images: str = "none"

    def predict(self, table: pa.Table, vectors: object = None) -> np.ndarray:
        del vectors
        time.sleep(0.002)  # so that switches fall into requests
        return np.array([_score(item, self.weights) for item in table["item_id"].to_pylist()], np.float32)


def _score(item: str, weights: bytes) -> float:
    return (sum(item.encode()) * 31 + sum(weights) * 17) % 97 / 97


def world_of(opened: OpenRelease) -> World:
    weights = (opened.folders["ctr"] / "weights").read_bytes()
    ranker = Ranker(EveryItem(), ByWeights(weights), "s", "c")
    return World(opened.release, load_search(opened), ranker, 10_000, lambda: NOW)


def loader(workspace: Path, url: str | None = None) -> Callable[[], World]:
    return lambda: world_of(open_release(workspace, url))


def promote(url: str, release_id: str) -> None:
    with writing(url) as session:
        releases.promote(session, release_id, now=NOW, by="ann")


def roll_back(url: str) -> None:
    with writing(url) as session:
        releases.roll_back(session, now=NOW, by="ann")


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """Two releases of other vectors and another model, the first of which answers."""
    one, other = (
        build_release(tmp_path, write_stages(tmp_path, name, seed=seed), name) for seed, name in enumerate("ab")
    )
    promote(url_in(tmp_path), one)
    return one, other


@contextmanager
def served(current: Current) -> Iterator[str]:
    """The address of the real app over HTTP."""
    server = uvicorn.Server(uvicorn.Config(create_app(current), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def ask(address: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A ranking and a search, which must succeed."""
    body = json.dumps({"user_id": "u", "item_ids": list(ITEMS)}).encode()
    requests = (
        urllib.request.Request(f"{address}/rank", body, {"content-type": "application/json"}),
        urllib.request.Request(f"{address}/search", b"item_id=i1&k=3"),
    )
    ranked, found = (json.load(urllib.request.urlopen(request)) for request in requests)
    return ranked, found


def test_twenty_switches_under_load_give_no_error_and_no_answer_that_mixes(
    tmp_path: Path, two: tuple[str, str]
) -> None:
    url = url_in(tmp_path)
    current = Current(loader(tmp_path)(), loader(tmp_path), url, poll_seconds=0.005)
    ended, answers = threading.Event(), []

    def client(address: str) -> None:
        while not ended.is_set():
            answers.extend(ask(address))

    current.start()
    with served(current) as address, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, address) for _ in range(CLIENTS)]
        try:
            for number in range(SWITCHES):
                promote(url, two[1]) if number % 2 == 0 else roll_back(url)
                wanted, counted = two[(number + 1) % 2], len(answers)
                while current.world.release.release_id != wanted or len(answers) < counted + CLIENTS:
                    assert not any(one.done() for one in clients), [one.exception() for one in clients if one.done()]
                    time.sleep(0.002)
        finally:
            ended.set()
        for one in clients:
            one.result()
    current.stop()
    expected = {}
    for release_id in two:
        promote(url, release_id)
        alone = Current(loader(tmp_path)(), loader(tmp_path), url)
        with served(alone) as address:
            expected[release_id] = ask(address)
        alone.stop()
    assert expected[two[0]] != expected[two[1]]
    assert {answer["release"] for answer in answers} == set(two)
    mixed = [answer for answer in answers if answer not in expected[answer["release"]]]
    assert mixed == []


def test_a_request_finishes_on_the_release_that_it_began_with(tmp_path: Path, two: tuple[str, str]) -> None:
    current = Current(loader(tmp_path)(), loader(tmp_path), url_in(tmp_path))
    begun = current.world
    promote(url_in(tmp_path), two[1])
    assert current.refresh()
    assert (begun.release.release_id, current.world.release.release_id) == two
    assert begun.search.by_item("i1", 2) != current.world.search.by_item("i1", 2)
    assert not current.refresh()


def damage_truncated(folders: dict[str, Path]) -> None:
    path = folders["index"] / "index.faiss"
    path.write_bytes(path.read_bytes()[:-100])


def damage_one_byte(folders: dict[str, Path]) -> None:
    data = bytearray((folders["index"] / "index.faiss").read_bytes())
    data[-1] ^= 1
    (folders["index"] / "index.faiss").write_bytes(data)


def damage_swapped(folders: dict[str, Path]) -> None:
    shutil.rmtree(folders["index"])
    shutil.copytree(folders["index"].with_name("a"), folders["index"])


def damage_half_written(folders: dict[str, Path]) -> None:
    (folders["ctr"] / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_truncated, "index.faiss is missing or was changed after it was built"),
        (damage_one_byte, "index.faiss has other bytes than when it was built"),
        (damage_swapped, "was rebuilt after r"),
        (damage_half_written, "no finished ctr artifact"),
    ],
)
def test_a_release_that_cannot_be_loaded_is_said_once_and_the_old_one_goes_on_answering(
    tmp_path: Path, two: tuple[str, str], damage: Callable[[dict[str, Path]], None], sentence: str
) -> None:
    moment = [0.0]
    current = Current(loader(tmp_path)(), loader(tmp_path), url_in(tmp_path), clock=lambda: moment[0])
    damage({stage: tmp_path / stage / "b" for stage in ("index", "ctr")})
    promote(url_in(tmp_path), two[1])
    with capture_logs() as logs:
        for _ in range(5):
            assert not current.refresh()
            moment[0] += RETRY_SECONDS / 2
    [entry] = logs
    assert (entry["event"], entry["still"]) == ("release_not_loaded", two[0])
    assert sentence in entry["error"]
    assert current.world.release.release_id == two[0]


def test_what_could_not_be_loaded_is_tried_again_later_and_when_asked_to(tmp_path: Path, two: tuple[str, str]) -> None:
    loads, moment = [], [0.0]

    def load() -> World:
        loads.append(moment[0])
        return loader(tmp_path)()

    current = Current(loader(tmp_path)(), load, url_in(tmp_path), clock=lambda: moment[0])
    manifest = tmp_path / "ctr" / "b" / "manifest.json"
    manifest.rename(manifest.with_suffix(".aside"))
    promote(url_in(tmp_path), two[1])
    for moment[0] in (0.0, 1.0, RETRY_SECONDS, RETRY_SECONDS + 1):
        assert not current.refresh()
    assert loads == [0.0, RETRY_SECONDS]
    manifest.with_suffix(".aside").rename(manifest)
    assert not current.refresh()
    current.look()
    assert current.refresh()
    assert current.world.release.release_id == two[1]


def test_a_database_that_is_away_or_was_moved_on_leaves_the_old_release_answering(
    tmp_path: Path, two: tuple[str, str]
) -> None:
    current = Current(loader(tmp_path)(), loader(tmp_path), url_in(tmp_path))
    migrate(url_in(tmp_path), "0001")
    with capture_logs() as logs:
        assert not current.refresh()
        assert not current.refresh()
    assert [entry["error"].rpartition(": ")[2] for entry in logs] == ["run `courier release migrate`"]
    migrate(url_in(tmp_path))
    promote(url_in(tmp_path), two[1])
    assert current.refresh()


def test_of_two_servers_the_one_whose_host_lacks_the_release_stays_and_the_other_switches(
    tmp_path: Path, releases_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COURIER_RELEASES", releases_url)
    one = build_release(tmp_path / "a", write_stages(tmp_path / "a", "a"), "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other = build_release(tmp_path / "a", write_stages(tmp_path / "a", "b", seed=1), "b")
    promote(releases_url, one)
    here, there = (
        Current(load(), load, releases_url) for load in (loader(tmp_path / host, releases_url) for host in ("a", "b"))
    )
    promote(releases_url, other)
    with capture_logs() as logs:
        assert here.refresh()
        assert not there.refresh()
    assert "no finished images artifact at" in logs[-1]["error"]
    assert [server.world.release.release_id for server in (here, there)] == [other, one]
    with writing(releases_url) as session:
        releases.roll_back(session, now=NOW, by="ann")
    assert here.refresh()
    assert not there.refresh()
    assert {server.world.release.release_id for server in (here, there)} == {one}
