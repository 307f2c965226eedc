"""`courier check` says what raw tables hold and fails where one cannot be used; a missing Java is said before Spark."""

import json
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from jobs.logic.events import Event
from jobs.sources.raw import RawTableUnusable

AT = datetime(2024, 3, 1, 12, tzinfo=UTC)
SHOWN = Event(user_id="u", item_id="a", event_time=AT, event_type="impression", request_id="r", position=0)
NOWHERE = Event(user_id="u", item_id="", event_time=AT, event_type="impression", request_id="r", position=0)


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture
def app() -> typer.Typer:
    from jobs.check import app

    return app


@pytest.fixture
def raw(spark, tmp_path, write_events):  # noqa: ARG001 (the check runs in this Spark)
    nothing = {
        name: pa.array([None], pa.string()) for name in ("image_uri", "category", "title", "price", "created_at")
    }
    pq.write_table(pa.table({"item_id": ["a"]} | nothing), tmp_path / "items.parquet")
    return write_events(tmp_path, [SHOWN, SHOWN, NOWHERE])


def test_the_answer_counts_rows_read_accepted_repeated_and_rejected(runner, app, raw) -> None:
    result = runner.invoke(app, [str(raw), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "events": {"read": 3, "accepted": 2, "rejected": {"null_item_id": 1}, "duplicates": 1},
        "items": {"read": 1, "accepted": 1, "rejected": {}, "duplicates": 0},
    }


def test_the_table_names_each_reason(runner, app, raw) -> None:
    shown = runner.invoke(app, [str(raw)]).stdout
    assert "rejected: null_item_id" in shown


def test_a_table_without_a_usable_row_fails(runner, app, raw, write_events) -> None:
    write_events(raw, [NOWHERE])
    result = runner.invoke(app, [str(raw)])
    assert result.exit_code == 1
    assert isinstance(result.exception, RawTableUnusable)
    assert "none of 1 rows can be used (most often: null_item_id)" in str(result.exception)


def test_a_missing_table_fails(runner, app, raw) -> None:
    (raw / "items.parquet").unlink()
    result = runner.invoke(app, [str(raw)])
    assert result.exit_code == 1
    assert "holds no table items" in str(result.exception)


@pytest.mark.parametrize(
    ("said", "version"),
    [('openjdk version "17.0.15" 2025-04-15', 17), ('java version "1.8.0_292"', 8), ("command not found", None)],
)
def test_the_version_of_java_is_read(said, version) -> None:
    from jobs.spark.session import java_version

    assert java_version(said) == version


def test_a_machine_without_java_is_told_the_cure(monkeypatch, tmp_path) -> None:
    from jobs.spark.session import JavaMissing, require_java

    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(JavaMissing, match=r"Java 17\+ and JAVA_HOME.*install Java 17"):
        require_java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JavaMissing, match="no java on the PATH"):
        require_java()


def test_a_java_too_old_is_told_the_cure(monkeypatch, tmp_path) -> None:
    from jobs.spark.session import JavaMissing, require_java

    (tmp_path / "bin").mkdir()
    java = tmp_path / "bin" / "java"
    java.write_text("#!/bin/sh\necho 'java version \"1.8.0_292\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(JavaMissing, match="is 8: install Java 17"):
        require_java()
