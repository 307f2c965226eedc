"""`courier add-items` against a real server: one new item is found and ranked within seconds, without a restart."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

COURIER = [sys.executable, str(Path(__file__).resolve().parents[2] / "courier.py")]
CPU_SECONDS = 5.0  # of the command, for one item: what it takes on a core of its own
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def post(address: str, body: bytes, kind: str = "application/x-www-form-urlencoded") -> dict[str, Any] | None:
    """The answer; None while there is none."""
    try:
        request = urllib.request.Request(address, body, {"content-type": kind})
        found: dict[str, Any] = json.load(urllib.request.urlopen(request, timeout=30))
    except (urllib.error.URLError, TimeoutError):
        return None
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_running_server_finds_and_ranks_a_new_item_within_five_seconds(tmp_path: Path) -> None:
    world = ["world", "raw", "--items", "120", "--users", "60", "--requests", "1000"]
    road = ["run", "raw", "--workspace", "ws", "--preset", "tiny", "--promote", "force"]
    for argv in (world, road):
        subprocess.run([*COURIER, *argv], cwd=tmp_path, check=True, capture_output=True)
    drawn = np.random.default_rng(5).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(drawn).resize((128, 128)).save(tmp_path / "new.png")
    (tmp_path / "new.csv").write_text("item_id,image_uri,category\nn0,new.png,dress\nn1,missing.png,\n", "utf-8")
    port = free_port()
    server = subprocess.Popen([*COURIER, "serve", "--workspace", "ws", "--port", str(port)], cwd=tmp_path, stderr=-3)
    try:
        while post(f"http://127.0.0.1:{port}/search", b"item_id=i00003&k=1") is None:
            assert server.poll() is None
            time.sleep(0.2)
        before = os.times()
        add = [*COURIER, "add-items", "new.csv", "--workspace", "ws", "--json"]
        done = subprocess.run(add, cwd=tmp_path, check=True, capture_output=True, text=True)
        after = os.times()
        ended = time.monotonic()
        while post(f"http://127.0.0.1:{port}/search", b"item_id=n0&k=1") is None:
            assert time.monotonic() < ended + 10, "the server took nothing up"
            time.sleep(0.05)
        asked = json.dumps({"user_id": "u00001", "item_ids": ["n0", "i00003"]}).encode()
        ranked = post(f"http://127.0.0.1:{port}/rank", asked, "application/json")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    report = json.loads(done.stdout)
    assert (report["added"], report["left_out"]) == (["n0"], [["n1", "not_found"]])
    assert ranked is not None
    assert {one["item_id"]: one["known"] for one in ranked["results"]}["n0"]
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < CPU_SECONDS, f"{spent:.1f} s of CPU, by stage {report['seconds']}"
    again = json.loads(subprocess.run(add, cwd=tmp_path, check=True, capture_output=True, text=True).stdout)
    assert (again["added"], again["addition_id"]) == ([], None)
