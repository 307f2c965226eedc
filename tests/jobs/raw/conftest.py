"""Where the modules that the tests of raw tables share are found, and the engines that read raw tables."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports tests as files, without a place for what they import

from raw_readers import DuckDB, Spark

from jobs.engines.duckdb_session import connect


@pytest.fixture
def duck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDB]:
    """DuckDB as our jobs open it."""
    with connect(tmp_path_factory.mktemp("duckdb") / "spill") as connection:
        yield DuckDB(connection)


@pytest.fixture(params=["duckdb", "spark"])
def engine(request: pytest.FixtureRequest) -> DuckDB | Spark:
    """Each of the engines that read raw tables."""
    if request.param == "duckdb":
        return request.getfixturevalue("duck")
    return Spark(request.getfixturevalue("spark"))
