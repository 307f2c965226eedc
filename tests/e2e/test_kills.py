"""Commands killed at random moments: after the next one store, index and database agree, and nothing is lost."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.features.materialize import is_loaded
from jobs.pipeline import stage_states
from jobs.workspace import open_workspace

ROOT = Path(__file__).resolve().parents[2]
COURIER = [sys.executable, str(ROOT / "courier.py")]
AT = ("--workspace", "ws")
KILLS = int(os.environ.get("COURIER_KILLS", "3"))  # of each command; 50 take most of an hour
SEED = 20_261_130
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@dataclass(frozen=True)
class Shop:
    """A workspace with three releases. answers: by release id, what it ranks for one user."""

    folder: Path
    old: str
    new: str
    answers: dict[str, list[Any]]


def courier(*argv: str, cwd: Path) -> str:
    done = subprocess.run([*COURIER, *argv], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"courier {' '.join(argv)}: {done.stderr[-2000:]}"
    return done.stdout


def rank(folder: Path) -> tuple[str, list[Any]]:
    """The release that answers, and what it ranks."""
    asked = ["rank", *AT, "--user", "u00001", "--as-of", "2030-01-01T00:00Z", "--json"]
    items = [word for number in range(8) for word in ("--items", f"i{number:05}")]
    found = json.loads(courier(*asked, *items, cwd=folder))
    assert found["degraded"] is None or "unknown" in found["degraded"]
    return found["release"], found["results"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Three releases of a tiny shop with CTR models of their own; the last answers, the first is needed no more."""
    folder = tmp_path_factory.mktemp("kills")
    courier("world", "raw", "--items", "120", "--users", "60", "--requests", "1000", cwd=folder)
    answers = {}
    for seed in ("1", "2", "0"):
        courier("run", "raw", *AT, "--preset", "tiny", "--set", f"ctr.seed={seed}", "--promote", "force", cwd=folder)
        release, ranked = rank(folder)
        answers[release] = ranked
    _, old, new = answers
    return Shop(folder, old, new, answers)


def agree(folder: Path, shop: Shop) -> str:
    """The release that answers: all of its bytes are there, it ranks as it always did, the store holds its features."""
    release, ranked = rank(folder)
    assert ranked == shop.answers[release]
    courier("release", "verify", release, *AT, cwd=folder)
    workspace = open_workspace(folder / "ws")
    states = stage_states(workspace)
    assert {name for name, state in states.items() if not state.fresh} == set()
    assert states["features"].folder is not None
    assert is_loaded(folder / "ws", states["features"].folder)
    return release


def seconds_of(argv: Sequence[str], cwd: Path) -> float:
    begun = time.monotonic()
    courier(*argv, cwd=cwd)
    return time.monotonic() - begun


def kill_at(argv: Sequence[str], after: float, cwd: Path) -> bool:
    """Run a command and kill it and all that it started after so many seconds; whether it was still at work."""
    process = subprocess.Popen([*COURIER, *argv], cwd=cwd, stdout=-3, stderr=-3, start_new_session=True)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def killed_often(shop: Shop, tmp_path: Path, argv: Sequence[str], ended: Callable[[Path], None]) -> None:
    """Kill a command at KILLS random moments, each time in a workspace as it was, then run it to its end."""

    def fresh(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(shop.folder, folder, symlinks=True)
        return folder

    measured = fresh("measured")
    lasts = seconds_of(argv, measured)
    ended(measured)
    drawn, killed = random.Random(SEED), 0
    for number in range(4 * KILLS):  # on a machine with other work a command may end before its time
        folder = fresh(str(number))
        killed += kill_at(argv, drawn.uniform(0.2, 1.0) * lasts, folder)
        courier(*argv, cwd=folder)
        ended(folder)
        shutil.rmtree(folder)
        if killed == KILLS:
            return
    raise AssertionError(f"of {4 * KILLS} commands {killed} were killed before they ended")


def test_materialize_killed_at_any_moment_leaves_a_store_that_the_next_one_makes_whole(
    shop: Shop, tmp_path: Path
) -> None:
    def ended(folder: Path) -> None:
        assert agree(folder, shop) == shop.new

    killed_often(shop, tmp_path, ["run", "raw", *AT, "--preset", "tiny", "--only", "materialize"], ended)


def test_promote_killed_at_any_moment_leaves_one_release_or_the_other(shop: Shop, tmp_path: Path) -> None:
    def ended(folder: Path) -> None:
        assert agree(folder, shop) == shop.old

    killed_often(shop, tmp_path, ["release", "promote", shop.old, *AT], ended)


def test_gc_killed_at_any_moment_takes_nothing_that_a_kept_release_needs(shop: Shop, tmp_path: Path) -> None:
    def ended(folder: Path) -> None:
        assert agree(folder, shop) == shop.new
        left = json.loads(courier("gc", *AT, "--keep", "1", "--dry-run", "--json", cwd=folder))
        assert (left["retired"], left["freed_bytes_in_all"]) == ([], 0)
        courier("release", "rollback", *AT, cwd=folder)
        assert agree(folder, shop) == shop.old

    killed_often(shop, tmp_path, ["gc", *AT, "--keep", "1"], ended)


def test_add_items_killed_at_any_moment_has_added_all_of_them_after_the_next_one(shop: Shop, tmp_path: Path) -> None:
    drawn = random.Random(SEED).randbytes(6 * 6 * 3)
    Image.frombytes("RGB", (6, 6), drawn).resize((96, 96)).save(shop.folder / "new.png")
    (shop.folder / "new.csv").write_text("item_id,image_uri,category\nn0,new.png,c\nn1,new.png,c\n", "utf-8")

    def ended(folder: Path) -> None:
        found = json.loads(courier("search", *AT, "--item", "n0", "-k", "1", "--json", cwd=folder))
        assert [(one["item_id"], one["same_image"]) for one in found["results"]] == [("n1", True)]
        asked = ["--user", "u00001", "--items", "n0", "--items", "n1", "--json"]
        assert all(one["known"] for one in json.loads(courier("rank", *AT, *asked, cwd=folder))["results"])
        assert agree(folder, shop) == shop.new

    killed_often(shop, tmp_path, ["add-items", "new.csv", *AT], ended)


def test_forget_killed_at_any_moment_leaves_nothing_after_the_next_one(shop: Shop, tmp_path: Path) -> None:
    command = ["forget", "--item", "i00100", *AT]

    def ended(folder: Path) -> None:
        release, ranked = rank(folder)
        assert (release, ranked) == (shop.new, shop.answers[shop.new])
        courier("release", "verify", *AT, cwd=folder)
        again = json.loads(courier(*command, "--json", cwd=folder))
        assert {place["where"]: place["found"] for place in again["places"] if place["found"]} == {}

    killed_often(shop, tmp_path, command, ended)
