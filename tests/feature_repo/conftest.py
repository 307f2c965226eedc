"""The databases that the tests of the online store run on."""

import uuid

import pytest

DATABASES = ("sqlite", "postgresql", "redis")


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
