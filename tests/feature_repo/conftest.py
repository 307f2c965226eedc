"""PostgreSQL and Redis on free ports of the loopback, for the tests of the online store."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

DATABASES = ("sqlite", "postgresql", "redis")
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


def stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
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
            yield f"postgresql://tester@127.0.0.1:{port}"
        finally:
            stop(server)


@pytest.fixture(scope="module", params=DATABASES)
def connection(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The connection string of a database of each kind, empty when the module begins."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/online.db"
    address = request.getfixturevalue(f"{request.param}_server")
    if request.param == "redis":
        return empty_redis(address)
    import psycopg

    name = f"d{uuid.uuid4().hex}"
    with psycopg.connect(f"{address}/postgres", autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    return f"{address}/{name}"


def empty_redis(address: str) -> str:
    import redis

    with redis.Redis.from_url(address) as client:
        number = client.incr("databases") % 15 + 1  # database 0 counts
    with redis.Redis.from_url(f"{address}/{number}") as client:
        client.flushdb()
    return f"{address}/{number}"
