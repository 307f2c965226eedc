"""Build the stage `sequences`, by the engine that is asked for or fits: DuckDB, Spark or Beam, to the same rows."""

import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import structlog

from jobs.config import SequencesConfig
from jobs.raw.canonical import CanonicalTable, canonical_table, has_sampled_negatives, inputs_of
from jobs.sequences.daily import log as daily_log
from jobs.sequences.daily.engine import DailyEngine
from model.artifact import AnyPath, Manifest
from model.errors import CourierError

log = structlog.get_logger()

DUCKDB, SPARK, BEAM = "duckdb", "spark", "beam"
ENGINES: Final = (DUCKDB, SPARK, BEAM)
MANY_EVENTS: Final = 100_000_000  # from about here on one machine works for an hour; docs/benchmarks/sequences.md


class EngineRefused(CourierError):
    """The sequences cannot be built by the engine that was asked for; the message says by which they can."""


def build(
    *,
    ingest: AnyPath,
    raw: AnyPath,
    workspace: AnyPath,
    out: AnyPath,
    config: SequencesConfig,
    engine: str | None = None,
    master: str | None = None,
    beam_args: Sequence[str] = (),
    as_of: datetime | None = None,
) -> Manifest:
    """The sequences artifact: of the workspace's daily log where one has been begun, else of all raw events.

    ingest: the ingest artifact of `raw`, or itself where it holds canonical parquet.
    engine, master: as of `choose`.  beam_args: where Beam runs.
    as_of: the clock that says which events lie in the future; None: that of this machine, now. A log keeps the one
    that its last days were added with.
    Raises EngineRefused, DailyLogError, RawTableMissing, RawTableUnusable, JavaMissing.
    """
    mark = daily_log.read_watermark(workspace)
    events = canonical_table(ingest, "events", raw) if mark is None else None
    tell(events, engine, master)
    if mark is not None:
        from jobs.sequences.daily.build import assemble

        return assemble(workspace, mark, daily_engine(workspace, engine, master), out=out, config=config)
    chosen, _ = choose(engine, master)
    given: dict[str, Any] = {
        "events": events,
        "sampled_negatives": has_sampled_negatives(ingest),
        "inputs": inputs_of(ingest, "events"),
        "out": out,
        "config": config,
        "as_of": as_of,
    }
    if chosen == SPARK:
        from jobs.sequences.spark.behavior_sequences import build as build_on_spark  # pyspark, which no other needs

        return build_on_spark(**given, master=master)
    if chosen == BEAM:
        from jobs.sequences.beam.behavior_sequences import build as build_on_beam

        return build_on_beam(**given, beam_args=beam_args)
    from jobs.sequences.duckdb.behavior_sequences import build as build_here

    return build_here(**given)


def daily_engine(workspace: AnyPath, engine: str | None = None, master: str | None = None) -> DailyEngine:
    """What computes the days of a workspace's daily log.  engine, master: as of `choose`.

    Raises EngineRefused for Beam, which knows no days.
    """
    chosen, _ = choose(engine, master)
    if chosen == BEAM:
        raise EngineRefused("Beam adds no days to a daily log: say --engine duckdb, or --master for Spark")
    if chosen == SPARK:
        from jobs.sequences.spark.daily_log import SparkEngine

        return SparkEngine(master)
    from jobs.sequences.duckdb.daily_log import DuckdbEngine

    return DuckdbEngine(daily_log.log_folder(workspace))


def choose(engine: str | None = None, master: str | None = None) -> tuple[str, str]:
    """One of ENGINES, and why: that which is asked for; else Spark where there is a master; else DuckDB.

    master: where Spark runs; spark-submit names one without us.
    Raises EngineRefused for an engine that there is not, or a master that it has no use for.
    """
    if engine not in (None, *ENGINES):
        raise EngineRefused(f"there is no engine {engine!r}: say {', '.join(ENGINES)}")
    if engine in (DUCKDB, BEAM) and master:
        raise EngineRefused(f"--engine {engine} runs on no Spark master: leave out one of the two")
    if engine is not None:
        return engine, "it was asked for"
    if master:
        return SPARK, f"the Spark master is {master}"
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # spark-submit has started Java and chosen the master
        return SPARK, "spark-submit runs this"
    return DUCKDB, "no Spark master is named"


def tell(events: CanonicalTable | None, engine: str | None = None, master: str | None = None) -> None:
    """Say which engine is chosen and why; and that Spark would suit where DuckDB is to read very many events."""
    chosen, why = choose(engine, master)
    log.info("engine_chosen", engine=chosen, why=why)
    if chosen == DUCKDB and events is not None and events.rows > MANY_EVENTS:
        log.warning(
            "many_events", events=events.rows, said="these are many events for one machine: name a Spark --master"
        )
