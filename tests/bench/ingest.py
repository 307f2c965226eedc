"""Ingesting events against DuckDB's bare reading of the same file: seconds and the peak of memory, form by form.

    python tests/bench/ingest.py --events 20000000 --write docs/benchmarks/ingest.md

Bare: DuckDB guesses the dialect and the types and copies the rows to parquet, without a look at any value. Each runs in
a process of its own on two threads, one after the other; `again` is a second run of ingesting over the same files.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Annotated

import duckdb
import psutil
import typer

from jobs.config import IngestConfig
from jobs.raw.ingest import read_tables

THREADS = 2
DRAWN = """
SELECT 'u' || (hash(n // 11) % 100000)::VARCHAR AS user_id, (10000 + hash(n * 7) % 90000)::VARCHAR AS item_id,
  make_timestamptz(1772440000000000 + n * 700000) AS event_time,
  CASE WHEN n % 11 = 10 THEN 'click' ELSE 'impression' END AS event_type,
  'r' || (n // 11)::VARCHAR AS request_id, (n % 11)::INTEGER AS position
FROM range({events}) numbers(n)
"""
TEXT = "SELECT * REPLACE (strftime(event_time, '%Y-%m-%dT%H:%M:%S.%fZ') AS event_time) FROM ({drawn})"
SHUFFLED = "SELECT * FROM ({text}) ORDER BY hash(request_id)"
FORMS = ("canonical.parquet", "text.parquet", "events.csv", "shuffled.csv", "events.csv.gz", "events.jsonl")


def draw(folder: Path, events: int) -> None:
    """The same events in every form, each a raw folder of its own."""
    drawn = DRAWN.replace("{events}", str(events))
    text = TEXT.replace("{drawn}", drawn)
    queries = {"canonical.parquet": drawn, "shuffled.csv": SHUFFLED.replace("{text}", text)}
    with duckdb.connect() as db:
        db.execute(f"SET TimeZone = 'UTC'; SET threads = {THREADS}; SET preserve_insertion_order = true")
        for form in FORMS:
            raw = folder / form
            raw.mkdir()
            kind = "(FORMAT json)" if "json" in form else "(HEADER)" if "csv" in form else "(FORMAT parquet)"
            end = form.partition(".")[2]
            db.execute(f"COPY ({queries.get(form, text)}) TO '{raw}/events.{end}' {kind}")


def ingest(raw: Path, out: Path) -> None:
    """As courier does."""
    read_tables(
        raw=raw, raw_digest="", out=out / "ingest" / "one", config=IngestConfig(), threads=THREADS, workspace=out
    )


def again(raw: Path, out: Path) -> None:
    """As courier does when nothing has changed."""
    read_tables(
        raw=raw, raw_digest="", out=out / "ingest" / "two", config=IngestConfig(), threads=THREADS, workspace=out
    )


def bare(raw: Path, out: Path) -> None:
    """As DuckDB does by itself."""
    out.mkdir(exist_ok=True)
    [file] = raw.iterdir()
    with duckdb.connect() as db:
        db.execute(f"SET TimeZone = 'UTC'; SET threads = {THREADS}; SET memory_limit = '50%'")
        db.execute(f"COPY (FROM '{file}') TO '{out}/bare.parquet'")


RUNS: dict[str, Callable[[Path, Path], None]] = {"bare": bare, "ingest": ingest, "again": again}


def measured(run: str, raw: Path, out: Path) -> tuple[float, float, int]:
    """Seconds, CPU seconds and the resident peak in bytes of one run in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--one", run, "--raw", str(raw), "--out", str(out)], stdout=subprocess.PIPE
    )
    peak, ended = [0], Event()

    def watch() -> None:
        watched = psutil.Process(process.pid)
        while not ended.wait(0.05):
            try:
                peak[0] = max(peak[0], watched.memory_info().rss)
            except psutil.NoSuchProcess:
                return

    thread = Thread(target=watch)
    thread.start()
    said, _ = process.communicate()
    ended.set()
    thread.join()
    if process.returncode:
        raise RuntimeError(f"{run} of {raw} failed")
    return (*json.loads(said), peak[0])


def main(
    events: int = 2_000_000,
    write: Annotated[Path | None, typer.Option(help="Where the table is written.")] = None,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
    raw: Annotated[Path, typer.Option(hidden=True)] = Path(),
    out: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Measure every form."""
    if one:
        began, cpu = time.monotonic(), time.process_time()
        RUNS[one](raw, out)
        print(json.dumps([time.monotonic() - began, time.process_time() - cpu]))
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        "# Ingesting events, against DuckDB's bare reading of the same file",
        "",
        f"`python {' '.join(sys.argv)}`, commit {commit}, {datetime.now(UTC):%Y-%m-%d}, {THREADS} threads.",
        "",
        "| events | form | MB | run | seconds | of bare | CPU s | peak MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), events)
        for form in FORMS:
            source = Path(folder) / form
            size = sum(file.stat().st_size for file in source.iterdir()) / 1e6
            floor = 0.0
            for run in RUNS:
                seconds, cpu, peak = measured(run, source, Path(folder) / f"{form}.out")
                floor = floor or seconds
                row = f"{size:,.0f} | {run} | {seconds:.1f} | {seconds / floor:.2f} | {cpu:.1f} | {peak / 2**20:,.0f}"
                lines.append(f"| {events:,} | {form} | {row} |")
                print(lines[-1], flush=True)
    if write:
        write.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
