"""Update the users' online histories from clicks in files, in a folder that grows, or in Kafka: the program.

Run it as `python -m jobs.features.click_stream.program WORKSPACE --from SOURCE`, with any Beam option after it. Workers
on other machines need Feast and a workspace (or FEAST_FS_YAML_FILE_PATH) that they all see.
"""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import apache_beam as beam
import structlog
import typer
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared
from apache_beam.utils.timestamp import MAX_TIMESTAMP
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jobs.engines import beam_progress, beam_runner
from jobs.features.click_stream import sources
from jobs.features.click_stream.sources import ReadFiles, ReadGrowingFolder, Stamp
from jobs.features.click_stream.transforms import (
    REFUSED_FILES,
    TALLY,
    VANISHED_FILES,
    Settings,
    open_once,
    report,
    wire,
)
from jobs.paths import local_folder
from jobs.raw.folder import RawTableMissing, RawTableUnusable
from model import strict_json

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

STORE: Final = Shared()  # one open feature store for all passes of this process
FILES_IN_A_PASS: Final = 64  # a follower that finds many files shows what it has between two passes
REFRESH_SECONDS: Final = 0.25

Seen = dict[Path, Stamp | None]  # file -> what it was when it was read; None where it was gone before that


class Stop(threading.Event):
    """Set when the stream is to end."""

    def on_signals(self) -> None:
        """End in order at the first Ctrl-C or SIGTERM; the second Ctrl-C ends at once."""

        def stop(number: int, _: Any) -> None:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
            self.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)


def run_once(files: Sequence[Path], settings: Settings, options: PipelineOptions) -> Counter[str]:
    """Bring the clicks of these files into the online store, in this process; what was counted."""
    pipeline = beam.Pipeline(options=options)
    wire(pipeline | "ReadFiles" >> ReadFiles(files), settings, STORE, datetime.now(UTC))
    with beam_runner.quiet():
        return Counter(beam_progress.counters(pipeline.run()))


def follow(folder: Path, settings: Settings, options: PipelineOptions, stop: Stop, *, every: float) -> Counter[str]:
    """Bring in what lies in the folder, and each file that appears, until `stop` is set.

    Repeated passes over the files that are new: the local runner cannot wait for a source (it polls in a busy loop and
    ends). What one pass knows of the others is the online store itself, and as a replay changes nothing, a file that is
    read again, by this process or by the next, does no harm.
    """
    counted: Counter[str] = Counter()
    seen: Seen = {}
    while not stop.is_set():
        found = _new_files(folder, seen, counted)
        usable = [file for file in found if _is_usable(file, seen, counted)]
        if usable:
            counted += run_once(usable, settings, options)
        if len(found) < FILES_IN_A_PASS:
            stop.wait(every)
    return counted


def _new_files(folder: Path, seen: Seen, counted: Counter[str]) -> list[Path]:
    """FILES_IN_A_PASS of the files that were not there, or were others, when they were last read.

    They are noted in `seen`; so is, and counted, what is gone again before it could be looked at.
    """
    found: list[Path] = []
    for file, stamp in sources.stamps(folder).items():
        if stamp is None:
            _note_gone(file, seen, counted)
        elif seen.get(file) != stamp and len(found) < FILES_IN_A_PASS:
            found.append(file)
            seen[file] = stamp
    return found


def _note_gone(file: Path, seen: Seen, counted: Counter[str]) -> None:
    if seen.get(file, ...) is not None:  # what stays away is told once
        log.warning("file_vanished", file=str(file))
        counted[VANISHED_FILES] += 1
    seen[file] = None


def _is_usable(file: Path, seen: Seen, counted: Counter[str]) -> bool:
    try:
        sources.check([file])
    except (FileNotFoundError, RawTableUnusable) as refusal:  # one bad file must not end a stream
        if file.exists():
            log.warning("file_refused", why=str(refusal))
            counted[REFUSED_FILES] += 1
        else:
            _note_gone(file, seen, counted)
        return False
    return True


def run_elsewhere(source: Any, settings: Settings, options: PipelineOptions) -> Counter[str]:
    """Run the pipeline on the runner that the options name, and follow its counters in the log until it ends."""
    pipeline = beam.Pipeline(options=options)
    rows = pipeline | "Read" >> source
    wire(rows, settings, STORE, datetime.now(UTC) if rows.is_bounded else None)
    result = pipeline.run()
    with beam_progress.report(result):
        result.wait_until_finish()
    return Counter(beam_progress.counters(result))


@contextmanager
def _progress() -> Iterator[None]:
    """Rows read, and users settled a second, on stderr until the block ends."""
    TALLY.clear()
    ended, started = threading.Event(), time.monotonic()

    def show(shown: Progress, task: Any) -> None:
        while True:
            last = ended.wait(REFRESH_SECONDS)
            rate = TALLY.done / (time.monotonic() - started)
            shown.update(task, completed=TALLY.done, read=TALLY.read, rate=rate)
            if last:
                return

    words = "{task.fields[read]:,} events read, {task.completed:,.0f} users updated ({task.fields[rate]:,.0f}/s)"
    with Progress(SpinnerColumn(), TextColumn(words), TimeElapsedColumn(), console=Console(stderr=True)) as shown:
        task = shown.add_task("clicks", total=None, read=0, rate=0.0)
        watcher = threading.Thread(target=show, args=(shown, task), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


# --- as a program ---------------------------------------------------------------------------------------------------


def stream(
    address: str, settings: Settings, options: PipelineOptions, *, following: bool, every: float
) -> Counter[str]:
    """Bring in what the address names, here or on another runner, and count.

    Raises RawTableMissing, RawTableUnusable, KafkaUnavailable, StoreNotReady.
    """
    local = beam_runner.is_local(options)
    files = sources.event_files(Path(address))
    if following and not Path(address).is_dir():
        raise RawTableMissing(f"{address} is not a folder: only a folder or Kafka can be followed")
    if not following:
        sources.check(files)
        if not files:
            raise RawTableMissing(f"{address} holds no file of events: put some there, or wait for them by --follow")
    open_once(STORE, settings.workspace)
    if not local:
        if following:
            return run_elsewhere(
                ReadGrowingFolder(Path(address), every, MAX_TIMESTAMP), settings, beam_runner.stream(options)
            )
        return run_elsewhere(ReadFiles(files), settings, options)
    with _progress():
        if not following:
            return run_once(files, settings, options)
        stop = Stop()
        stop.on_signals()
        return follow(Path(address), settings, options, stop, every=every)


def stream_kafka(topic: sources.KafkaTopic, settings: Settings, options: PipelineOptions) -> Counter[str]:
    """Bring in a Kafka topic until the job is cancelled. Raises KafkaUnavailable."""
    source = sources.kafka_source(topic, local=beam_runner.is_local(options))
    return run_elsewhere(source, settings, beam_runner.stream(options))


@app.command(**beam_runner.COMMAND)
def click_stream(
    context: typer.Context,
    workspace: Annotated[
        Path, typer.Argument(parser=local_folder, metavar="FOLDER", help="The workspace whose online store is updated.")
    ],
    source: Annotated[str, typer.Option("--from", help="A file or a folder of events, or kafka://host:port/topic.")],
    following: Annotated[
        bool, typer.Option("--follow", help="Wait for new files in the folder, until Ctrl-C.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.01, help="Seconds between two looks at the folder.")] = 2.0,
    rejected: Annotated[Path | None, typer.Option(help="A folder for rejected rows; else in the workspace.")] = None,
    group: Annotated[str, typer.Option(help="Kafka's consumer group.")] = "courier",
    expansion_service: Annotated[str | None, typer.Option(help="host:port of Beam's, for Kafka.")] = None,
) -> None:
    """Clicks into the users' online histories."""
    settings = Settings(
        workspace=str(workspace.absolute()),
        rejected=str((rejected or workspace / "feast" / "rejected_clicks").absolute()),
    )
    options, started = beam_runner.options(beam_runner.beam_args(context)), time.monotonic()
    if source.startswith("kafka:"):
        topic = sources.kafka_topic(source, group, expansion_service)
        counted = stream_kafka(topic, settings, options)
    else:
        counted = stream(source, settings, options, following=following, every=every)
    typer.echo(strict_json.dumps({**report(counted), "seconds": round(time.monotonic() - started, 2)}))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; its answer on stdout, its log and progress on stderr."""
    beam_runner.main(app, argv, "courier click-stream")


if __name__ == "__main__":
    main()
