"""Show how far a pipeline is: a bar where the runner works in this process, metrics in the log where it does not."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

log = structlog.get_logger()

REFRESH_SECONDS: Final = 0.25
REPORT_SECONDS: Final = 10.0


@dataclass(slots=True)
class Tally:
    """What the DoFns of this process have done so far. Beam tells no metrics before an in-process run has ended."""

    read: int = 0
    done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, read: int = 0, done: int = 0) -> None:
        """Count rows that were read, and rows whose fate is known."""
        with self._lock:
            self.read += read
            self.done += done

    def clear(self) -> None:
        """Start again from nothing."""
        with self._lock:
            self.read = self.done = 0


TALLY: Final = (
    Tally()
)  # one per process, as DoFns are copied and cannot carry it; on a remote worker nobody looks at it


@contextmanager
def bar(title: str, tally: Tally) -> Iterator[None]:
    """A progress bar on stderr that follows a tally until the block ends; the total grows while rows are being read."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s"),
        TimeElapsedColumn(),
    )
    tally.clear()
    ended = threading.Event()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None, rate=0.0)
        follower = threading.Thread(target=_follow, args=(progress, task, tally, ended), daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


def _follow(progress: Progress, task: Any, tally: Tally, ended: threading.Event) -> None:
    started: float | None = None
    while True:
        last = ended.wait(REFRESH_SECONDS)
        started = started or (time.monotonic() if tally.done else None)
        took = time.monotonic() - started if started else 0.0
        progress.update(task, completed=tally.done, total=tally.read or None, rate=tally.done / took if took else 0.0)
        if last:
            return


@contextmanager
def report(result: Any) -> Iterator[None]:
    """Log the counters of a run elsewhere from time to time, until the block ends."""
    ended = threading.Event()
    reporter = threading.Thread(target=_report, args=(result, ended), daemon=True)
    reporter.start()
    try:
        yield
    finally:
        ended.set()
        reporter.join()


def _report(result: Any, ended: threading.Event) -> None:
    while not ended.wait(REPORT_SECONDS):
        log.info("pipeline_running", state=str(result.state), **counters(result))


def counters(result: Any) -> dict[str, int]:
    """Every counter of a run, name -> value: committed where the runner knows, else attempted."""
    found = result.metrics().query()["counters"]
    return {one.key.metric.name: int(one.result) for one in found}
