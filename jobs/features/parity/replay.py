"""Send page views to a server of the workspace, which logs them: `courier parity --replay` has something to compare."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from feature_repo.contract import ITEM_PROFILE
from jobs.features.offline import connect, read_parquet
from jobs.features.parity.causes import loads_of
from model import artifact, strict_json
from model.artifact import ArtifactMissing
from model.errors import CourierError

HOST: Final = "127.0.0.1"
PageView = tuple[str, list[str]]  # user_id, item_ids


class ReplayFailed(CourierError):
    """The workspace's server did not answer as it should; the message carries its own words."""


def replay(workspace: Path, log: Path, requests: int) -> int:
    """Let `courier serve`, a process of its own, rank this many of the newest page views, and log them into `log`.

    They are asked as of now, or of the load's moment where that is later: the store holds nothing of before.
    Returns how many there were.  Raises ReplayFailed, ArtifactMissing.
    """
    page_views = newest_page_views(workspace, requests)
    moment = max([datetime.now(UTC), *(load.as_of for load in loads_of(workspace)[-1:])])
    with _server(workspace, log) as port, closing(http.client.HTTPConnection(HOST, port)) as connection:
        for user_id, item_ids in page_views:
            asked = {"user_id": user_id, "item_ids": item_ids, "as_of": moment.isoformat()}
            body = strict_json.dumps(asked)
            connection.request("POST", "/rank", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            told = answer.read().decode()
            if answer.status != http.client.OK:
                raise ReplayFailed(f"a page view of user {user_id!r} was refused: look at {told}")
    return len(page_views)


def newest_page_views(workspace: Path, count: int) -> list[PageView]:
    """The page views that the loaded features were made from, newest first. Raises ArtifactMissing."""
    from feature_repo.definitions import source_path  # Feast's import costs seconds

    features = artifact.read(source_path(workspace, ITEM_PROFILE).parent.resolve(), kind="features")
    for manifest in (workspace / "sequences").glob(f"*/{artifact.MANIFEST}"):
        if artifact.digest(manifest.parent) == features.inputs.get("sequences"):
            return _page_views(manifest.parent / "impressions", count)
    raise ArtifactMissing(f"{workspace} holds no page views that its features were made from: run `courier run`")


def _page_views(impressions: Path, count: int) -> list[PageView]:
    query = f"""
        SELECT user_id, list(DISTINCT item_id ORDER BY item_id) FROM {read_parquet(impressions)}
        GROUP BY user_id, request_id, request_time ORDER BY request_time DESC, request_id, user_id LIMIT {count}
    """
    with closing(connect()) as connection:
        found: list[PageView] = connection.execute(query).fetchall()
    return found


@contextmanager
def _server(workspace: Path, log: Path) -> Iterator[int]:
    # The port of a server that answers; its log is on disk once the block has ended.
    with closing(socket.socket()) as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
    told = {"COURIER_REQUEST_LOG": str(log), "COURIER_REQUEST_LOG_RATE": "1"}
    command = [sys.executable, "-m", "courier", "serve", "--workspace", str(workspace), "--port", str(port)]
    words = log.with_suffix(".txt")
    with words.open("wb") as stream:
        server = subprocess.Popen(command, env=os.environ | told, stdout=stream, stderr=stream)
    try:
        while not _is_ready(port):
            if server.poll() is not None:
                raise ReplayFailed(f"`courier serve` ended: look at {_last(words)}")
            time.sleep(0.1)
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def _is_ready(port: int) -> bool:
    try:
        with closing(http.client.HTTPConnection(HOST, port, timeout=5)) as connection:
            connection.request("GET", "/readyz")
            return bool(json.loads(connection.getresponse().read())["status"] == "ready")
    except OSError:
        return False


def _last(words: Path) -> str:
    lines: Sequence[Any] = words.read_text("utf-8", "replace").strip().splitlines()
    return str(lines[-1]) if lines else "no word of its"
