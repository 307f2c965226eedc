"""PostgreSQL and Redis on free ports of the loopback: fixtures of tests/conftest.py."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

PATIENCE = 120  # seconds for a server to answer, on a machine with other work


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_answer(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{server.args} does not answer on port {port}")


def await_ready(question: Sequence[str | Path]) -> None:
    """PostgreSQL listens before it takes connections."""
    deadline = time.monotonic() + PATIENCE
    while subprocess.run(question, stdout=subprocess.DEVNULL).returncode and time.monotonic() < deadline:
        time.sleep(0.05)


def stop(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGINT)  # at SIGTERM PostgreSQL waits for whoever is connected
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The address of a Redis server of its own; skips where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("REDIS IS NOT TESTED HERE: install redis-server")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        settings = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        server = subprocess.Popen([program, *settings], stdout=subprocess.DEVNULL)
        try:
            await_answer(port, server)
            yield f"redis://127.0.0.1:{port}"
        finally:
            stop(server)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The address of a PostgreSQL server of its own, without a database; skips where there is none.

    It refuses to run as root: then it runs as the user that Debian's package makes.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not programs:
        pytest.skip("POSTGRESQL IS NOT TESTED HERE: install postgresql")
    runs_as = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    port, owner = free_port(), pwd.getpwnam(runs_as)
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        as_owner = {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}}
        if os.geteuid() == 0:
            as_owner |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        initdb = [programs[-1] / "initdb", "-D", f"{folder}/data", "-U", "tester", "-A", "trust", "-N"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **as_owner)
        settings = ["-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F", "-c", "max_connections=200"]
        server = subprocess.Popen(
            [programs[-1] / "postgres", "-D", f"{folder}/data", *settings], stderr=subprocess.DEVNULL, **as_owner
        )
        try:
            await_answer(port, server)
            await_ready([programs[-1] / "pg_isready", "-h", "127.0.0.1", "-p", str(port)])
            yield f"postgresql://tester@127.0.0.1:{port}"
        finally:
            stop(server)


@pytest.fixture(params=["sqlite", "postgresql"])
def releases_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The SQLAlchemy URL of a database of releases of each kind, new and without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalogue.db'}"
    import psycopg

    address, name = request.getfixturevalue("postgresql_server"), f"d{uuid.uuid4().hex}"
    with psycopg.connect(f"{address}/postgres", autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    return f"{address.replace('postgresql:', 'postgresql+psycopg:')}/{name}"
