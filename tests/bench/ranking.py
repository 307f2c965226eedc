"""Many clients at once against `courier serve`: answers a second, and how long each waits.

    python tests/bench/ranking.py WORKSPACE --clients 32 --candidates 100 --seconds 30 --write FILE

WORKSPACE is what `courier run` or `courier demo` left: the released model ranks, users and candidates are drawn from
the features it was loaded with. Server and clients share the machine; who has an answer sends the next request.
"""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import pyarrow.dataset as ds
import typer

PATIENCE: Final = 300  # seconds for the server to load its release
WARM_UP: Final = 5  # requests of each client that are not counted


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def entities(workspace: Path, view: str, key: str) -> list[str]:
    """The distinct entities of a view's offline rows."""
    column = ds.dataset(workspace / "feast" / "sources" / view, format="parquet").to_table(columns=[key])[key]
    return sorted(column.unique().to_pylist())


def wait_until_ready(server: "subprocess.Popen[bytes]", port: int) -> None:
    """Return when the server says that it is ready."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if ask(http.client.HTTPConnection("127.0.0.1", port, timeout=5), "GET", "/readyz")[0] == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("courier serve did not get ready: see above")


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of an answer."""
    connection.request(method, path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def client(port: int, bodies: Sequence[bytes], until: float, took: list[float], degraded: list[str]) -> None:
    """Ask again and again until the clock says `until`, noting how long each answer took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for number in range(1_000_000_000):
        started = time.perf_counter()
        status, answer = ask(connection, "POST", "/rank", bodies[number % len(bodies)])
        ended = time.perf_counter()
        said = json.loads(answer)
        assert status == 200, said
        degraded += [said["degraded"]] if said["degraded"] else []
        if number >= WARM_UP:
            took.append(ended - started)
        if ended > until:
            return


def main(
    workspace: Path,
    clients: int = 32,
    candidates: int = 100,
    seconds: float = 30.0,
    write: Annotated[Path | None, typer.Option(help="Where the table is written.")] = None,
) -> None:
    """Start the server, let the clients ask, and tell."""
    rng = np.random.default_rng(0)
    users, items = entities(workspace, "user_history", "user_id"), entities(workspace, "item_profile", "item_id")
    asked = min(candidates, len(items))

    def body() -> bytes:
        one = {"user_id": str(rng.choice(users)), "item_ids": rng.choice(items, asked, replace=False).tolist()}
        return json.dumps(one).encode()

    port = free_port()
    server = subprocess.Popen([Path(sys.executable).with_name("courier"), "serve", "--workspace", workspace,
                               "--port", str(port)], stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        wait_until_ready(server, port)
        took: list[list[float]] = [[] for _ in range(clients)]
        degraded: list[str] = []
        until = time.perf_counter() + seconds
        threads = [
            threading.Thread(target=client, args=(port, [body() for _ in range(20)], until, mine, degraded))
            for mine in took
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - started
    finally:
        server.terminate()
        server.wait()
    each = 1_000 * np.array([one for mine in took for one in mine])
    rate = (len(each) + WARM_UP * clients) / wall
    p50, p99 = np.percentile(each, [50, 99])
    row = f"| {clients} | {asked} | {rate:,.1f} | {p50:.1f} | {p99:.1f} | {len(degraded)} |"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        "# Many clients against the ranker",
        "",
        f"`python {' '.join(sys.argv)}`, commit {commit}, {datetime.now(UTC):%Y-%m-%d}, {len(items):,} items.",
        "",
        "| clients | candidates | answers/s | p50 ms | p99 ms | degraded |",
        "| --- | --- | --- | --- | --- | --- |",
        row,
    ]
    print("\n".join(lines))
    if write:
        write.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
