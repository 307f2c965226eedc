"""The stage `sequences` runs on the engine that is asked for or fits, and says which."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import SequencesConfig
from jobs.raw.canonical import canonical_table
from jobs.rules.events import Event
from jobs.sequences import build as stage
from jobs.sequences.build import EngineRefused, build, choose, daily_engine

ROOT = Path(__file__).parents[3]
SHOWN = Event(
    user_id="u", item_id="i", event_time=datetime(2024, 3, 1, tzinfo=UTC), event_type="impression", request_id="r",
    position=0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def not_submitted(monkeypatch):
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)


@pytest.mark.parametrize(
    ("asked", "master", "chosen"),
    [
        (None, None, "duckdb"),
        (None, "local[2]", "spark"),
        ("spark", None, "spark"),
        ("spark", "yarn", "spark"),
        ("duckdb", None, "duckdb"),
        ("beam", None, "beam"),
    ],
)
def test_it_is_duckdb_unless_another_is_asked_for_or_a_master_named(asked, master, chosen) -> None:
    assert choose(asked, master)[0] == chosen


def test_under_spark_submit_it_is_spark(monkeypatch) -> None:
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    assert choose() == ("spark", "spark-submit runs this")


def test_a_master_for_an_engine_without_one_an_unknown_engine_and_days_by_beam_are_refused(tmp_path) -> None:
    for asked in (("duckdb", "yarn"), ("beam", "yarn"), ("polars", None)):
        with pytest.raises(EngineRefused, match=r"leave out|say duckdb, spark, beam"):
            choose(*asked)
    with pytest.raises(EngineRefused, match="--engine duckdb"):
        daily_engine(tmp_path, "beam")


@pytest.mark.parametrize("many", [6, 7])
def test_spark_is_recommended_from_very_many_events_on(write_events, tmp_path, monkeypatch, capsys, many) -> None:
    monkeypatch.setattr(stage, "MANY_EVENTS", many)
    stage.tell(canonical_table(write_events(tmp_path, [SHOWN] * 7), "events"))
    said = "".join(capsys.readouterr())
    assert "no Spark master is named" in said
    assert ("name a Spark --master" in said) == (many == 6)


def test_sequences_and_statistics_are_made_where_neither_java_nor_pyspark_can_be_had(write_events, tmp_path) -> None:
    write_events(tmp_path / "raw", [SHOWN])
    program = f"""
import sys
sys.modules["pyspark"] = None
from pathlib import Path
from jobs.config import SequencesConfig
from jobs.raw.canonical import canonical_table
from jobs.features.offline import _write_statistics
from jobs.sequences.build import build
here = Path({str(tmp_path)!r})
raw = here / "raw"
build(ingest=raw, raw=raw, workspace=here / "ws", out=here / "out", config=SequencesConfig())
(here / "statistics").mkdir()
_write_statistics(here / "out", here / "statistics", None)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": "", "JAVA_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert pq.read_table(tmp_path / "out" / "impressions").num_rows == 1
    assert pq.read_table(tmp_path / "statistics" / "item_statistics").schema.field("item_ctr_1d").type == pa.float64()


def test_beam_makes_the_same_rows_where_it_is_asked_for(write_events, tmp_path) -> None:
    raw = write_events(tmp_path / "raw", [SHOWN])
    for engine in ("duckdb", "beam"):
        given = {"ingest": raw, "raw": raw, "workspace": tmp_path / "ws", "config": SequencesConfig()}
        build(**given, out=tmp_path / engine, engine=engine)
    rows = [pq.read_table(tmp_path / engine / "page_views").to_pylist() for engine in ("duckdb", "beam")]
    assert rows[0] == rows[1]
