"""Build sequences of events as they come, from a folder that grows or from Kafka: the program.

Run it as `python -m jobs.sequences.beam.stream --from SOURCE --out DIR`, with any Beam option after it. It is the
pipeline of jobs.sequences.beam.behavior_sequences behind a source that does not end: each UTC day is let go when the
watermark has passed its end, the days that its rows wait for (docs/decisions/0006) and the allowed lateness.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import apache_beam as beam
import structlog
import typer
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from jobs.config import SequencesConfig
from jobs.engines import beam_progress as progress
from jobs.engines import beam_runner as running
from jobs.features.click_stream import sources as click_sources
from jobs.features.click_stream.sources import ReadGrowingFolder, ReadRow
from jobs.raw.beam_rows import Raw
from jobs.raw.folder import RawTableMissing
from jobs.rules.events import Event
from jobs.sequences.beam.day_parts import ALL, LATE, UNDATED, WriteDayParts, dated
from jobs.sequences.beam.tables import Row, rejected_row
from jobs.sequences.beam.transforms import BuildSequences, tables
from jobs.sequences.options import with_config
from model.errors import CourierError

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

REJECTED: Final = "rejected"
READ: Final = "read"


class StreamRefused(CourierError):
    """A stream cannot be begun as asked; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the pipeline depends on beside its source and the config."""

    out: Path
    lateness: timedelta = timedelta(hours=6)  # after the end of its UTC day, that an event may still come
    shards: int = 4  # parts of each day that are written at once
    gather_seconds: int | None = 60  # that rows of a day are gathered into one part; None: until the source ends


class PartUnreadable(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Part rows from what stands for a file that could not be read; outputs `rows`, and (Raw, reason) at `rejected`."""

    def expand(self, read: Any) -> Any:
        """PCollection of ReadRow -> outputs of Raw and (Raw, str)."""
        return read | "Part" >> beam.FlatMap(_part).with_outputs(REJECTED, main="rows")


def _part(read: ReadRow) -> Iterator[Any]:
    row, flaw = read
    Metrics.counter("stream", READ).inc()
    yield row if flaw is None else TaggedOutput(REJECTED, (row, flaw))


def _rejected(row: Raw | Event, reason: str) -> tuple[str, Row]:
    Metrics.counter("stream", f"{REJECTED}_{reason}").inc()
    return row.day.isoformat() if isinstance(row, Event) else UNDATED, rejected_row(row, reason)


def _late(one: Event) -> tuple[str, Row]:
    return one.day.isoformat(), {name: getattr(one, name) for name in ALL[LATE].columns}


def wire(read: Any, settings: Settings, config: SequencesConfig, as_of: datetime | None) -> None:
    """Put the transforms together behind a source of ReadRow. as_of: as BuildSequences has it."""
    parted = read | "PartUnreadable" >> PartUnreadable()
    made = parted.rows | "BuildSequences" >> BuildSequences(config, as_of=as_of, allowed_lateness=settings.lateness)
    refused = (made.rejected, parted.rejected) | "AllRejected" >> beam.Flatten()
    rows = {
        name: rows | f"Dated_{name}" >> beam.Map(dated, table=name)
        for name, rows in tables(made, config, None).items()
        if name != REJECTED
    }
    rows[REJECTED] = refused | "RejectedRow" >> beam.MapTuple(_rejected)
    rows[LATE] = made.late | "LateRow" >> beam.Map(_late)
    for name, some in rows.items():
        some | f"Write_{name}" >> WriteDayParts(
            name, settings.out, shards=settings.shards, seconds=settings.gather_seconds
        )


def stream(source: Any, settings: Settings, config: SequencesConfig, options: PipelineOptions) -> dict[str, int]:
    """Build sequences of a source until it ends or the job is cancelled; what was counted."""
    pipeline = beam.Pipeline(options=running.stream(options))
    with running.quiet():
        wire(pipeline | "Read" >> source, settings, config, as_of=None)
    return progress.counters(running.wait(pipeline))


def report(counted: dict[str, int]) -> dict[str, Any]:
    """The counters of a run as its answer. read = all rejected + late + accepted events, once and again."""
    reasons = {name.removeprefix(f"{REJECTED}_"): n for name, n in counted.items() if name.startswith(f"{REJECTED}_")}
    rows = {name: counted.get(f"rows_{name}", 0) for name in ALL}
    parts = sum(counted.get(f"parts_{name}", 0) for name in ALL)
    return {READ: counted.get(READ, 0), REJECTED: dict(sorted(reasons.items())), "rows": rows, "parts": parts}


# --- as a program ---------------------------------------------------------------------------------------------------


def source_of(
    address: str, options: PipelineOptions, *, every: float, seconds: float | None, group: str, service: str | None
) -> Any:
    """What reads the folder or the topic that an address names.

    Raises RawTableMissing, KafkaUnavailable, and StreamRefused where nothing would ever be let go.
    """
    local = running.is_local(options)
    if address.startswith("kafka:"):
        return click_sources.kafka_source(click_sources.kafka_topic(address, group, service), local=local)
    if not Path(address).is_dir():
        raise RawTableMissing(
            f"{address} is not a folder: a stream reads a folder that grows, or kafka://host:port/topic"
        )
    if local and seconds is None:
        raise StreamRefused(
            "the local runner lets no day go before its source ends: say for how long with --seconds, or name a runner "
            "that streams, as in --runner=FlinkRunner"
        )
    end = MAX_TIMESTAMP if seconds is None else Timestamp.now() + seconds
    return ReadGrowingFolder(Path(address), every, end)


@app.command(**running.COMMAND)
@with_config
def sequence_stream(
    context: typer.Context,
    source: Annotated[str, typer.Option("--from", help="A folder of events that grows, or kafka://host:port/topic.")],
    out: Annotated[Path, typer.Option(help="Parts are written to OUT/TABLE/DAY; a new folder.")],
    config: SequencesConfig,
    lateness_hours: Annotated[
        float, typer.Option(min=0, help="How long after the end of its UTC day an event may still come.")
    ] = 6.0,
    seconds: Annotated[float | None, typer.Option(min=0, help="Watch the folder for so long, then end.")] = None,
    every: Annotated[float, typer.Option(min=0.01, help="Seconds between two looks at the folder.")] = 10.0,
    shards: Annotated[int, typer.Option(min=1, help="Parts of a day that are written at once.")] = 4,
    gather_seconds: Annotated[int, typer.Option(min=1, help="Gather rows of a day for so long.")] = 60,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in OUT, from the runner's savepoint.")] = False,
    group: Annotated[str, typer.Option(help="Kafka's consumer group.")] = "courier",
    expansion_service: Annotated[str | None, typer.Option(help="host:port of Beam's, for Kafka.")] = None,
) -> None:
    """Sequences of events as they come: a part of each table and day as soon as the day is settled.

    The watermark of a folder is the clock, that of Kafka the records' own time: a folder is for events that come as
    they happen, and what lies in it for days already is for the batch (jobs.sequences.beam.behavior_sequences). Events
    that come too late are counted and kept in OUT/late. The tables have no period: only a whole log is divided.

    The local runner is for trying it out: it reads for --seconds and lets all days go at the end, so nothing is late.
    Days that are let go one by one need a runner that streams, and Kafka one that runs Java: Flink or Dataflow.
    """
    options, began = running.options(running.beam_args(context)), time.monotonic()
    if not resume and any((out / name).is_dir() for name in ALL):
        raise StreamRefused(f"{out} holds parts already: give a new folder, or --resume with the runner's savepoint")
    gathered = None if running.is_local(options) else gather_seconds
    settings = Settings(
        out=out.absolute(), lateness=timedelta(hours=lateness_hours), shards=shards, gather_seconds=gathered
    )
    reads = source_of(source, options, every=every, seconds=seconds, group=group, service=expansion_service)
    counted = stream(reads, settings, config, options)
    typer.echo(json.dumps({**report(counted), "seconds": round(time.monotonic() - began, 1)}))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; its answer on stdout, its log on stderr."""
    running.main(app, argv)


if __name__ == "__main__":
    main()
