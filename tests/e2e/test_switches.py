"""A real server that is asked 200 requests a second while releases are promoted and rolled back."""

import http.client
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from model import releases
from model.release_database import url_in, writing

COURIER = [sys.executable, str(Path(__file__).resolve().parents[2] / "courier.py")]
AT = ("--workspace", "ws")
SWITCHES, CLIENTS, RATE = 20, 8, 200  # requests a second, of all clients together
ASKED = {"user_id": "u00001", "item_ids": [f"i{n:05}" for n in range(12)], "as_of": "2030-01-01T00:00:00Z"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def courier(*argv: str, cwd: Path) -> str:
    return subprocess.run([*COURIER, *argv], cwd=cwd, check=True, capture_output=True, text=True, timeout=600).stdout


def test_twenty_switches_while_two_hundred_requests_a_second_are_asked_give_no_error_and_no_mixture(
    tmp_path: Path,
) -> None:
    courier("world", "raw", "--items", "120", "--users", "60", "--requests", "1000", cwd=tmp_path)
    expected: dict[str, Any] = {}
    for seed in ("1", "2"):  # CTR models of their own
        courier("run", "raw", *AT, "--preset", "tiny", "--set", f"ctr.seed={seed}", "--promote", "force", cwd=tmp_path)
        items = [word for item in ASKED["item_ids"] for word in ("--items", item)]
        said = courier("rank", *AT, "--user", "u00001", *items, "--as-of", ASKED["as_of"], "--json", cwd=tmp_path)
        ranked = json.loads(said)
        expected[ranked["release"]] = ranked["results"]
    assert len({json.dumps(one) for one in expected.values()}) == len(expected) == 2
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    server = subprocess.Popen([*COURIER, "serve", *AT, "--port", str(port)], cwd=tmp_path, stdout=-3, stderr=-3)
    ended, answered, late = Event(), Counter[str](), Counter[bool]()

    def client(number: int) -> None:
        """Ask in time, whether or not the answers before came in time."""
        connection, asked = http.client.HTTPConnection("127.0.0.1", port, timeout=30), json.dumps(ASKED)
        due = time.monotonic() + number / RATE
        while not ended.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            connection.request("POST", "/rank", asked, {"content-type": "application/json"})
            response = connection.getresponse()
            said = json.loads(response.read())
            assert response.status == 200, said
            assert said["results"] == expected[said["release"]], said["release"]
            answered[said["release"]] += 1
            late[time.monotonic() > due + CLIENTS / RATE] += 1
            due += CLIENTS / RATE

    try:
        while _is_closed(port):
            assert server.poll() is None
            time.sleep(0.2)
        with ThreadPoolExecutor(CLIENTS) as pool:
            begun, clients = time.monotonic(), [pool.submit(client, number) for number in range(CLIENTS)]
            try:
                for number in range(SWITCHES):
                    with writing(url_in(tmp_path / "ws")) as session:  # as the commands do
                        if number % 2:
                            releases.promote(session, [*expected][1], now=datetime.now(UTC), by="ann")
                        else:
                            releases.roll_back(session, now=datetime.now(UTC), by="ann")
                    time.sleep(1.5)  # a server looks each second
            finally:
                ended.set()
            for one in clients:
                one.result()
            seconds = time.monotonic() - begun
    finally:
        server.terminate()
        server.wait()
    assert min(answered[release] for release in expected) > 0
    print(f"{answered.total() / seconds:.0f} answers/s in {seconds:.0f} s, {late[True]} late, {dict(answered)}")


def _is_closed(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0
