"""The sequences stage by DuckDB and by Spark against bare duckdb and polars: the same events, the same tables.

    python tests/bench/sequences.py --events 2000000 --events 20000000 --folder DIR --write docs/benchmarks/sequences.md

Bare duckdb and polars make the tables and no more: nothing is counted, sorted, or kept of what is rejected. Each engine
runs in a process of its own on two threads, one after the other on this machine. Events already drawn in DIR are used
again. `--engines floor` is what Spark takes to read the events, shuffle and sort them by request and by user, and write
them twice: no less is left of its job with every rule taken out.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import duckdb
import psutil
import typer
from rich.console import Console
from rich.table import Table

from jobs.config import SequencesConfig
from jobs.raw.canonical import canonical_table

THREADS = 2
BARE = ("bare duckdb", "polars")
FLOOR = "floor"
ENGINES = ("duckdb", "spark", *BARE)
NAMES = {FLOOR: "bare Spark: read, two shuffles, write"}
# What must be equal, in types that all three write alike: moments as microseconds since 1970.
COMPARED = {
    "impressions": "request_id, user_id, item_id, epoch_us(request_time), epoch_us(shown_at), position::int, "
    "clicked::int, period",
    "page_views": "request_id, user_id, epoch_us(request_time), period, item_ids, labels::int[], history_item_ids",
    "histories": "user_id, epoch_us(event_timestamp), history_item_ids, history_clicked_at",
    "clicks": "user_id, item_id, epoch_us(event_time), request_id",
}
console = Console(stderr=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one engine took: seconds of work (the start of Spark's session apart), CPU seconds, bytes at the peak."""

    events: int
    engine: str
    seconds: float
    start: float
    cpu: float
    peak: int
    tables: Mapping[str, tuple[int, int]]  # name -> rows, sum of the rows' hashes

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds


# --- one engine, in a process of its own ----------------------------------------------------------------------------


def build(engine: str, raw: Path, out: Path) -> dict[str, float]:
    """Make the tables of `raw` under `out`; returns the seconds of work, and those of the session's start."""
    began = time.monotonic()
    makers = {"spark": _spark, "duckdb": _duckdb, "bare duckdb": _bare_duckdb, "polars": _polars, FLOOR: _floor}
    work = makers[engine](raw, out)
    started = time.monotonic()
    work()
    return {"seconds": time.monotonic() - started, "start": started - began}


def _spark(raw: Path, out: Path) -> Callable[[], object]:
    from jobs.engines.spark_session import spark_session
    from jobs.sequences.spark.behavior_sequences import build as build_sequences

    spark_session("bench", master=f"local[{THREADS}]", large=True)
    return lambda: build_sequences(**_of(raw), out=out, config=SequencesConfig())


def _of(raw: Path) -> dict[str, Any]:
    return {"events": canonical_table(raw, "events"), "sampled_negatives": False, "inputs": {}}


def _floor(raw: Path, out: Path) -> Callable[[], object]:
    from jobs.engines.parquet_parts import write_parts
    from jobs.engines.spark_session import spark_session

    spark = spark_session("bench", master=f"local[{THREADS}]", large=True)
    out.mkdir()

    def work() -> None:
        for key in ("request_id", "user_id"):
            events = spark.read.parquet(f"file://{raw.absolute()}/events")
            write_parts(events, out / key, by=[key], then=["event_time", "position", "item_id"])

    return work


def _duckdb(raw: Path, out: Path) -> Callable[[], object]:
    from jobs.sequences.duckdb.behavior_sequences import build as build_sequences

    return lambda: build_sequences(**_of(raw), out=out, config=SequencesConfig(), threads=THREADS)


def _bare_duckdb(raw: Path, out: Path) -> Callable[[], object]:
    import by_duckdb

    out.mkdir()
    return lambda: by_duckdb.build(raw, out, SequencesConfig(), threads=THREADS)


def _polars(raw: Path, out: Path) -> Callable[[], object]:
    import by_polars

    out.mkdir()
    return lambda: by_polars.build(raw, out, SequencesConfig())


# --- measuring it ---------------------------------------------------------------------------------------------------


def measured(events: int, engine: str, raw: Path, out: Path) -> Run:
    """Run one engine and watch its process tree. Raises CalledProcessError where it fails."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, "--engine", engine, "--raw", str(raw), "--out", str(out)]
    environment = os.environ | {"POLARS_MAX_THREADS": str(THREADS), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    ended = Event()
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(_watch, psutil.Process(process.pid), ended)
        said, _ = process.communicate()
        ended.set()
        peak, cpu = watching.result()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    took = json.loads(said.splitlines()[-1])
    return Run(events=events, engine=engine, peak=peak, cpu=cpu, tables={} if engine == FLOOR else _tables(out), **took)


def _watch(process: psutil.Process, ended: Event) -> tuple[int, float]:
    """The peak of the resident memory of a process and its children together, in bytes, and their CPU seconds."""
    peak, spent = 0, dict[int, float]()
    while not ended.wait(0.1):
        resident = 0
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # they come and go while we look
            for one in [process, *process.children(recursive=True)]:
                resident += one.memory_info().rss
                spent[one.pid] = sum(one.cpu_times()[:2])
        peak = max(peak, resident)
    return peak, sum(spent.values())


def _tables(out: Path) -> dict[str, tuple[int, int]]:
    """The rows of each table, and the sum of their hashes: the same for the same rows in any order."""
    db = duckdb.connect()
    db.execute(f"set timezone = 'UTC'; set threads = {THREADS}")
    found = {}
    for name, columns in COMPARED.items():
        files = f"{out}/{name}/*.parquet" if (out / name).is_dir() else f"{out}/{name}.parquet"
        rows = db.execute(f"select count(*), sum(hash(({columns}))::hugeint) from read_parquet('{files}')").fetchall()
        found[name] = rows[0]
    return found


# --- telling it -----------------------------------------------------------------------------------------------------


PAGE = """# The sequences stage by DuckDB and by Spark against bare duckdb and polars

{facts}.

{table}

Seconds without the start of Spark's session; ratio: to bare duckdb; memory: the resident peak of the process tree;
growth: to the same engine's smallest run. duckdb and spark are the stage, with rejected rows, conversions and facts,
its parts sorted; bare duckdb and polars make four of its tables and count nothing. Those four are equal.
"""
COLUMNS = ("events", "engine", "seconds", "events/s", "ratio", "CPU s", "peak MiB", "session s", "growth")


def rows(runs: list[Run]) -> list[tuple[str, ...]]:
    """COLUMNS of all runs; `ratio` is to bare duckdb on the same events."""
    return [
        (
            f"{run.events:,}",
            NAMES.get(run.engine, run.engine),
            f"{run.seconds:.1f}",
            f"{run.rate:,.0f}",
            _ratio(run, runs),
            f"{run.cpu:.1f}",
            f"{run.peak >> 20:,}",
            f"{run.start:.1f}" if run.engine in ("spark", FLOOR) else "",
            _growth(run, runs),
        )
        for run in runs
    ]


def _ratio(run: Run, runs: list[Run]) -> str:
    bare = [other.seconds for other in runs if other.events == run.events and other.engine == "bare duckdb"]
    return f"{run.seconds / bare[0]:.2f}" if bare else ""


def _growth(run: Run, runs: list[Run]) -> str:
    small = min((other for other in runs if other.engine == run.engine), key=lambda other: other.events)
    return f"{run.seconds / small.seconds:.1f}" if run.events != small.events else ""


def report(runs: list[Run]) -> Table:
    """The table of all runs, for the terminal."""
    table = Table(*COLUMNS)
    for cells in rows(runs):
        table.add_row(*cells)
    return table


def page(runs: list[Run], seed: int) -> str:
    """The table of all runs as markdown, with the command, commit, seed and machine it was measured with."""
    lines = [" | ".join(cells) for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows(runs))]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB"
    facts = (
        f"`python {shlex.join(sys.argv)}`",
        f"commit {commit.stdout.strip()}",
        f"seed {seed}",
        f"{datetime.now(UTC):%Y-%m-%d}",
        f"{machine}, {THREADS} threads",
    )
    return PAGE.format(facts=", ".join(facts), table="\n".join(f"| {line} |" for line in lines))


def unequal(runs: list[Run]) -> list[str]:
    """The tables that the engines do not agree on."""
    return [
        f"{name} of {events:,} events: " + ", ".join(f"{run.engine} {run.tables[name]}" for run in of_size)
        for events in sorted({run.events for run in runs})
        for of_size in [[run for run in runs if run.events == events and run.tables]]
        for name in COMPARED
        if len({run.tables[name] for run in of_size}) > 1
    ]


def bench(
    events: Annotated[list[int], typer.Option(help="How many events; may be said several times.")] = (2_000_000,),
    engines: Annotated[
        list[str], typer.Option("--only", help=f"One of {', '.join(ENGINES)}; may be said twice.")
    ] = ENGINES,
    folder: Annotated[Path, typer.Option(help="Where events and tables are kept.")] = Path("workspace/bench"),
    seed: Annotated[int, typer.Option()] = 0,
    bot: Annotated[float, typer.Option(help="The share of all clicks that one user makes.")] = 0.0,
    write: Annotated[Path | None, typer.Option(help="A page of markdown to write the table to.")] = None,
    engine: Annotated[str, typer.Option(hidden=True)] = "",
    raw: Annotated[Path, typer.Option(hidden=True)] = Path(),
    out: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Make the sequences tables with each engine, check that they are equal, and say what each took."""
    if engine:
        print(json.dumps(build(engine, raw, out)))
        return
    from drawn_events import crowd, write_raw

    runs = []
    for count in events:
        drawn = crowd(count, seed=seed, bot=bot)
        source = folder / f"raw-{count}-{seed}-{bot}"
        if not source.exists():
            console.print(f"drawing {asdict(drawn)}")
            write_raw(source, drawn)
        for one in engines:
            console.print(f"{one}, {count:,} events, load {os.getloadavg()[0]:.1f}")
            runs.append(measured(count, one, source, folder / f"{one.replace(' ', '-')}-{count}"))
    Console(width=120).print(report(runs))
    if differences := unequal(runs):
        sys.exit("\n".join(["the engines disagree:", *differences]))
    tables = next((run.tables for run in reversed(runs) if run.tables), {})
    console.print("all tables are equal: " + ", ".join(f"{name} {count:,}" for name, (count, _) in tables.items()))
    if write is not None:
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(page(runs, seed), "utf-8")


if __name__ == "__main__":
    typer.run(bench)
