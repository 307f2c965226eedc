"""DuckDB is opened with the same settings on every machine, spills where it is told to, and leaves nothing behind."""

import time
from datetime import UTC, datetime

import duckdb
import pytest

from jobs.engines.duckdb_session import connect, literal


@pytest.fixture
def somewhere_else(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("somewhere_else")
def test_days_are_those_of_utc_whatever_the_zone_of_the_process(tmp_path) -> None:
    with connect(tmp_path / "spill") as db:
        [(day, text)] = db.execute(
            "SELECT moment::DATE::VARCHAR, moment::VARCHAR FROM (SELECT make_timestamptz(0) AS moment)"
        ).fetchall()
    assert (day, text) == ("1970-01-01", "1970-01-01 00:00:00+00")


def test_what_does_not_fit_into_its_memory_is_spilled_to_the_folder_and_the_folder_is_removed(tmp_path) -> None:
    spill = tmp_path / "it's" / "spill"
    with connect(spill, memory=64 * 2**20, threads=1) as db:
        db.execute("CREATE TEMP TABLE wide AS SELECT range AS n, hash(range)::VARCHAR AS text FROM range(5_000_000)")
        assert sum(file.stat().st_size for file in spill.iterdir()) > 10**6
        assert db.execute("SELECT count(*) FROM wide").fetchall() == [(5_000_000,)]
    assert not spill.exists()


def test_the_folder_is_removed_after_a_failure_too(tmp_path) -> None:
    with pytest.raises(duckdb.ParserException), connect(tmp_path / "spill") as db:
        db.execute("SELEKT")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_downloaded_to_read_what_duckdb_has_no_reader_for(tmp_path) -> None:
    with connect(tmp_path / "spill") as db, pytest.raises(duckdb.Error, match=r"httpfs|extension"):
        db.execute("SELECT * FROM read_parquet('s3://bucket/a.parquet')")


@pytest.mark.parametrize("text", ["", "it's", "''", "a\\'b", "\n", "é", datetime(2024, 3, 1, tzinfo=UTC)])
def test_a_literal_is_the_text_itself(tmp_path, text) -> None:
    with connect(tmp_path / "spill") as db:
        assert db.execute(f"SELECT {literal(text)}").fetchall() == [(str(text),)]
