"""What is logged of ranking requests: every value used, whole files alone, no more than there is room for."""

import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from model.artifact import PARTIAL
from model.ctr.inputs.request_log import (
    CANDIDATE_FEATURES,
    LOG_SCHEMA,
    REQUEST_FEATURES,
    hashed_user,
    log_key,
    log_row,
    logged_candidates,
    logged_requests,
)
from model.ctr.inputs.rows import FEATURE_COLUMNS, ROW_COLUMNS
from model.releases import Release
from serving.app import create_app
from serving.ranker import Ranker
from serving.request_log import LoggedFeatures, RequestLog, open_request_log
from serving.routes import World
from serving.settings import SettingsRefused, read_settings

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2024, 6, 1, tzinfo=UTC)
KEY = log_key("a secret of this test")
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=4)
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): TEXT,
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(),
    pa.list_(pa.string()): st.lists(TEXT, max_size=3),
    pa.list_(pa.int64()): st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    pa.list_(pa.int32()): st.lists(st.integers(-1, 2**30), max_size=3),
}
COLUMNS = ("user_id", "item_id", "request_time", *FEATURE_COLUMNS)


def rows_of(user: str, items: Sequence[str], at: datetime = NOW, **features: Any) -> pa.Table:
    """A request's rows: these features of every candidate, of the others something of their type."""
    plain: dict[pa.DataType, Any] = {pa.string(): "x", pa.int64(): 1, pa.float64(): 0.5}
    given = {name: features.get(name, plain.get(kind, [])) for name, kind in FEATURE_COLUMNS.items()}
    rows = [{"user_id": user, "item_id": item, "request_time": at, **given} for item in items]
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, ROW_COLUMNS[name]) for name in COLUMNS]))


@functools.cache
def one_candidate() -> pa.Table:
    return rows_of("u1", ["a"])


@st.composite
def requests(draw: st.DrawFn) -> pa.Table:
    user = {name: draw(VALUES[FEATURE_COLUMNS[name]]) for name in REQUEST_FEATURES}
    items = draw(st.lists(TEXT, min_size=1, max_size=4))
    rows = [
        {"user_id": "u1", "item_id": item, "request_time": NOW, **user}
        | {name: draw(VALUES[FEATURE_COLUMNS[name]]) for name in CANDIDATE_FEATURES}
        for item in items
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, ROW_COLUMNS[name]) for name in COLUMNS]))


def offer(log: RequestLog, user: str, items: Sequence[str], at: datetime = NOW) -> None:
    rows = one_candidate().set_column(0, "user_id", pa.array([user])) if list(items) == ["a"] else rows_of(user, items)
    log.offer(rows, user, items, at, release_id="r1", space_id="s1", codebook_id="c1")


def logged(folder: Path) -> pa.Table:
    files = sorted(folder.glob("*.parquet"))
    return pa.concat_tables([LOG_SCHEMA.empty_table(), *(pq.read_table(path, schema=LOG_SCHEMA) for path in files)])


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RequestLog]:
    log = RequestLog(tmp_path, rate=1, total_bytes=10**9)
    yield log
    log.close()


@given(st.lists(requests(), min_size=1, max_size=3))
def test_requests_and_their_candidates_are_the_rows_that_were_logged(tables: list[pa.Table]) -> None:
    of = {"release_id": "r1", "space_id": "s1", "codebook_id": "c1"}
    stamp = {"request_id": "q", "logged_at": NOW, "hashed": None, **of}
    log = pa.concat_tables([log_row(table, **stamp) for table in tables])
    of_requests, candidates = logged_requests(log), logged_candidates(log)
    again = of_requests.take(candidates.column("request"))
    columns = {name: (candidates if name in candidates.column_names else again).column(name) for name in COLUMNS}
    assert str(pa.table(columns).to_pylist()) == str(pa.concat_tables(tables).to_pylist())  # as text: NaN


def test_a_logged_request_holds_its_users_features_once() -> None:
    long = rows_of("u1", [f"i{n}" for n in range(500)], history_item_ids=["i1"] * 50)
    of = {"release_id": "r1", "space_id": "s1", "codebook_id": "c1"}
    stamp = {"request_id": "q", "logged_at": NOW, "hashed": None, **of}
    row = log_row(long, **stamp)
    assert row.get_total_buffer_size() < long.get_total_buffer_size() / 2
    assert row.column("history_item_ids").combine_chunks().get_total_buffer_size() < 1_000


def test_what_was_offered_is_on_disk_once_the_log_is_closed(tmp_path: Path, log: RequestLog) -> None:
    offer(log, "u1", ["a", "b"])
    offer(log, "u2", ["c"])
    log.close()
    table = logged(tmp_path)
    assert table.column("user_id").to_pylist() == ["u1", "u2"]
    assert table.column("item_id").to_pylist() == [["a", "b"], ["c"]]
    assert {*table.column("release_id").to_pylist(), *table.column("space_id").to_pylist()} == {"r1", "s1"}
    assert (log.written, log.dropped) == (2, 0)


def test_a_closed_log_drops_and_counts(log: RequestLog) -> None:
    log.close()
    offer(log, "u1", ["a"])
    assert (log.written, log.dropped) == (0, 1)


def test_a_file_is_written_when_enough_is_gathered_and_when_enough_time_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, settings in {"bytes": {"file_bytes": 1}, "seconds": {"seconds": 1e-9}}.items():
        log = RequestLog(tmp_path / name, rate=1, total_bytes=10**9, **settings)
        written = threading.Event()
        write = log._write_file
        monkeypatch.setattr(log, "_write_file", lambda rows, write=write, done=written: (write(rows), done.set()))
        offer(log, "u1", ["a"])
        assert written.wait(60)
        assert logged(log.folder).num_rows == 1
        log.close()


def test_the_same_requests_are_in_the_sample_of_every_server(tmp_path: Path) -> None:
    found = []
    for name in ("one", "other"):
        log = RequestLog(tmp_path / name, rate=0.25, total_bytes=10**9)
        for number in range(400):
            offer(log, f"u{number}", ["a"], NOW + timedelta(seconds=number))
        log.close()
        found.append(logged(log.folder).column("user_id").to_pylist())
        assert log.dropped == 0
    assert found[0] == found[1]
    assert 60 < len(found[0]) < 140  # 100 are expected, with a standard deviation of 9


def test_a_log_that_must_not_name_users_holds_their_hashes_and_nothing_to_try_names_with(tmp_path: Path) -> None:
    for name, key in (("hashed", KEY), ("other", log_key("another secret")), ("plain", b"")):
        log = RequestLog(tmp_path / name, rate=1, total_bytes=10**9, key=key)
        offer(log, "a user's name", ["a"])
        log.close()
    hashed, other, plain = (logged(tmp_path / name).to_pylist()[0] for name in ("hashed", "other", "plain"))
    assert hashed["user_id"] == hashed_user("a user's name", KEY) != other["user_id"]
    assert (hashed["user_hashed"], plain["user_hashed"], plain["user_id"]) == (True, False, "a user's name")
    assert len({one["request_id"] for one in (hashed, other, plain)}) == 3
    assert b"a user's name" not in b"".join(path.read_bytes() for path in (tmp_path / "hashed").iterdir())


def test_what_waits_to_be_written_is_bounded_and_the_rest_dropped_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RequestLog(tmp_path, rate=1, total_bytes=10**9, file_bytes=1, held_bytes=20_000)
    disk, begun = threading.Event(), threading.Event()
    write = log._write_file
    monkeypatch.setattr(log, "_write_file", lambda rows: (begun.set(), disk.wait(60), write(rows)))
    offer(log, "u0", ["a"])
    assert begun.wait(60)
    for number in range(1, 1_000):
        offer(log, f"u{number}", ["a"])
    assert log._held <= 20_000
    assert log.dropped > 900
    disk.set()
    log.close()
    assert log.written + log.dropped == 1_000
    assert logged(tmp_path).num_rows == log.written


def test_the_files_together_are_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, rate=1, total_bytes=10**9)
    offer(log, "u0", ["a"])
    log.close()
    [size] = [path.stat().st_size for path in tmp_path.glob("*.parquet")]
    for number in range(1, 8):
        log = RequestLog(tmp_path, rate=1, total_bytes=3 * size + 200)
        offer(log, f"u{number}", ["a"])
        log.close()
    assert logged(tmp_path).column("user_id").to_pylist() == ["u5", "u6", "u7"]


def test_a_disk_that_refuses_costs_the_log_and_no_request(tmp_path: Path, log: RequestLog) -> None:
    tmp_path.rename(tmp_path.with_name("moved"))
    offer(log, "u1", ["a"])
    log.close()
    assert (log.written, log.dropped) == (0, 1)


def test_rows_that_cannot_be_logged_cost_no_request(log: RequestLog) -> None:
    log.offer(pa.table({"item_id": ["a"]}), "u1", ["a"], NOW, release_id="r1", space_id="s1", codebook_id="c1")
    assert log.dropped == 1


def test_what_killed_servers_left_half_written_is_never_read_and_goes_after_a_while(tmp_path: Path) -> None:
    old, young = (tmp_path / f".{name}.parquet-x{PARTIAL}" for name in ("old", "young"))
    for path, age in ((old, 7_200), (young, 60)):
        path.write_bytes(b"half")
        os.utime(path, (datetime.now(UTC).timestamp() - age,) * 2)
    log = RequestLog(tmp_path, rate=1, total_bytes=10**9)
    offer(log, "u1", ["a"])
    log.close()
    assert logged(tmp_path).num_rows == 1
    assert (old.exists(), young.exists()) == (False, True)


KILLED = """
import sys
from datetime import datetime, timedelta
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from test_request_log import NOW, offer
from serving.request_log import RequestLog

log = RequestLog(Path(sys.argv[1]), rate=1, total_bytes=10**9, file_bytes=2_000)
number = 0
while True:
    offer(log, f"u{{number}}", ["a"], NOW + timedelta(seconds=number))
    number += 1
    if log.written > 20:
        print(log.written, file=sys.stderr, flush=True)
"""


def test_a_server_killed_at_any_moment_leaves_whole_files_of_all_that_it_had_written(tmp_path: Path) -> None:
    program = KILLED.format(root=str(ROOT), tests=str(Path(__file__).parent))
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        written = int(server.stderr.readline())
        server.send_signal(signal.SIGKILL)
    users = logged(tmp_path).column("user_id").to_pylist()
    assert len(users) >= written
    assert users == [f"u{number}" for number in range(len(users))]


@dataclass
class Source:
    """Answers every request with the same rows."""

    table: pa.Table
    known_user: bool = True
    known_items: tuple[bool, ...] = (True, True)
    vectors: None = None

    def ranking_rows(self, *_: Any, **__: Any) -> "Source":
        return self


class AllAlike:
    """A model that prefers nothing."""

    images = "none"

    def predict(self, table: pa.Table, vectors: object = None) -> npt.NDArray[np.float32]:
        del vectors
        return np.zeros(table.num_rows, np.float32)


def test_the_service_logs_the_rows_that_it_ranked_and_they_are_on_disk_when_it_ends(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, rate=1, total_bytes=10**9)
    source = Source(rows_of("u1", ["a", "b"]))
    release = Release(
        release_id="r7", created_at=NOW, space_id="s1", ctr_model="lightgbm/none", artifacts={}, metrics={}
    )
    ranker = Ranker(LoggedFeatures(source, log, release.release_id), AllAlike(), "s1", "c1")
    with TestClient(create_app(World(release, None, ranker, 1_000, lambda: NOW), log)) as client:
        answer = client.post("/rank", json={"user_id": "u1", "item_ids": ["a", "b"]})
    assert [one["item_id"] for one in answer.json()["results"]] == ["a", "b"]
    table = logged(tmp_path)
    again = logged_requests(table).take(logged_candidates(table).column("request"))
    columns = {
        name: (again if name in again.column_names else logged_candidates(table)).column(name) for name in COLUMNS
    }
    assert pa.table(columns).equals(source.table)
    assert (table.column("release_id").to_pylist(), table.column("space_id").to_pylist()) == (["r7"], ["s1"])


def test_nothing_is_logged_unless_a_setting_asks_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert open_request_log(read_settings(workspace=tmp_path)) is None
    monkeypatch.setenv("COURIER_REQUEST_LOG_RATE", "0.5")
    monkeypatch.setenv("COURIER_REQUEST_LOG_KEY", "a secret of this test")
    log = open_request_log(read_settings(workspace=tmp_path))
    assert log is not None
    log.close()
    assert (log.folder, log.rate, log._key) == (tmp_path / "request_log", 0.5, KEY)


@pytest.mark.parametrize(("name", "value"), [("RATE", "1.5"), ("KEY", ""), ("BYTES", "0"), ("SECONDS", "0")])
def test_a_setting_of_the_log_that_cannot_be_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"COURIER_REQUEST_LOG_{name}", value)
    with pytest.raises(SettingsRefused, match=f"COURIER_REQUEST_LOG_{name}"):
        read_settings()
