"""Training rows by our offline store, by Feast's own DuckDB store and by a bare ASOF query: the same rows.

    python tests/bench/rows.py --impressions 1000000 --write docs/benchmarks/rows.md

Impressions at any moment of the years are joined with the statistics of their item, a row for every day, and of their
user, a row for every day on which the user came. The bare query keeps no order and knows neither Feast nor a limit of
memory. Feast's store pairs a key with all earlier rows, so it is asked for a part of the impressions, and ours too once
more. Each runs in a process of its own, one after the other; its imports and its frame are not counted.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any

import duckdb
import psutil
import pyarrow as pa
import typer

from feature_repo.contract import ITEM_STATISTICS, USER_STATISTICS, View

DAY_US = 86_400_000_000
START_US = 1_078_099_200_000_000  # 2004-03-01
OURS, FEASTS, BARE = "ours", "Feast's duckdb", "bare ASOF query"
STORES = {OURS: "feature_repo.offline_store.AsofOfflineStore", FEASTS: "duckdb"}
VIEWS = (ITEM_STATISTICS, USER_STATISTICS)

IMPRESSIONS = """
SELECT 'u' || hash(n, {seed}) % {users} AS user_id, 'i' || hash(n, {seed} + 1) % {items} AS item_id,
    make_timestamptz(({start} + (hash(n, {seed} + 2) % ({days} * {day}::UBIGINT))::BIGINT)) AS event_timestamp
FROM range({impressions}) AS numbers(n)
"""
DAILY = """
SELECT 'i' || i AS item_id, make_timestamptz({start} + d * {day}) AS event_timestamp, {features}
FROM range({items}) AS items(i), range({days}) AS days(d) ORDER BY ALL
"""
# A user who came at a day has statistics from the midnight after it.
CAME = """
SELECT user_id, event_timestamp, {features} FROM (
    SELECT DISTINCT user_id, make_timestamptz((epoch_us(event_timestamp) // {day} + 1) * {day}) AS event_timestamp,
        hash(user_id) % 1000 AS i, epoch_us(event_timestamp) // {day} AS d
    FROM read_parquet('{impressions}')
) ORDER BY user_id, event_timestamp
"""


def draw(folder: Path, **numbers: int) -> None:
    """Write impressions and the histories of both views under `folder`."""
    told = numbers | {"start": START_US, "day": DAY_US}
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        impressions = folder / "impressions.parquet"
        db.execute(f"COPY ({IMPRESSIONS.format(**told)}) TO '{impressions}'")
        for view, query in ((ITEM_STATISTICS, DAILY), (USER_STATISTICS, CAME)):
            (folder / view.name).mkdir()
            rows = query.format(**told | {"impressions": impressions}, features=_drawn(view))
            db.execute(f"COPY ({rows}) TO '{folder / view.name}/part-00000.parquet'")


def _drawn(view: View) -> str:
    numbers = (f"(hash(i, d, {n}) % 1000)" for n in range(len(view.features)))
    kinds = {"int": "::BIGINT", "float": "::DOUBLE / 1000"}
    return ", ".join(f"{n}{kinds[f.kind]} AS {f.name}" for n, f in zip(numbers, view.features, strict=True))


# --- one of them, in a process of its own ---------------------------------------------------------------------------


def bare(folder: Path, impressions: int) -> Callable[[], pa.Table]:
    """One query by DuckDB alone."""
    joins = "".join(
        f" ASOF LEFT JOIN read_parquet('{folder}/{view.name}/*.parquet') AS {view.name} "
        f"ON asked.{view.keys[0]} = {view.name}.{view.keys[0]} "
        f"AND asked.event_timestamp >= {view.name}.event_timestamp"
        for view in VIEWS
    )
    features = ", ".join(feature.name for view in VIEWS for feature in view.features)
    asked = f"(FROM read_parquet('{folder}/impressions.parquet') LIMIT {impressions})"
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
    return lambda: db.sql(f"SELECT asked.*, {features} FROM {asked} AS asked {joins}").to_arrow_table()


def by_feast(folder: Path, impressions: int, type_: str) -> Callable[[], pa.Table]:
    """get_historical_features of one of the stores."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import String

    from feature_repo.definitions import FEAST_TYPES

    def feature_view(view: View) -> FeatureView:
        fields = [Field(name=feature.name, dtype=FEAST_TYPES[feature.kind]) for feature in view.features]
        path, kind = str(folder / view.name), ParquetFormat()
        source = FileSource(name=f"{view.name}_source", path=path, file_format=kind, timestamp_field="event_timestamp")
        keys = [Field(name=view.keys[0], dtype=String)]
        entity = entities[view.keys[0]]
        return FeatureView(name=view.name, entities=[entity], ttl=timedelta(0), source=source, schema=[*keys, *fields])

    scratch = Path(tempfile.mkdtemp(dir=folder))
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(scratch / "registry.db"),
        offline_store={"type": type_} | ({"spill": str(scratch)} if type_ != "duckdb" else {}),
        online_store={"type": "sqlite", "path": str(scratch / "online.db")},
        entity_key_serialization_version=3,
        repo_path=scratch,
    )
    entities = {
        view.keys[0]: Entity(name=view.keys[0], join_keys=list(view.keys), value_type=ValueType.STRING)
        for view in VIEWS
    }
    store = FeatureStore(config=config)
    store.apply([*entities.values(), *map(feature_view, VIEWS)])
    frame = duckdb.sql(f"FROM read_parquet('{folder}/impressions.parquet') LIMIT {impressions}").df()
    features = [f"{view.name}:{feature.name}" for view in VIEWS for feature in view.features]
    return lambda: store.get_historical_features(frame, features).to_arrow()


def one(run: str, folder: Path, impressions: int) -> dict[str, Any]:
    """Seconds, CPU seconds, rows, and the sum of the rows' hashes: the same for the same rows in any order."""
    work = bare(folder, impressions) if run == BARE else by_feast(folder, impressions, STORES[run])
    began, cpu = time.monotonic(), time.process_time()
    answer = work()
    took = {"seconds": time.monotonic() - began, "cpu": time.process_time() - cpu, "rows": answer.num_rows}
    names = ["user_id", "item_id", "epoch_us(event_timestamp)", *(f.name for view in VIEWS for f in view.features)]
    with duckdb.connect() as db:
        db.register("answer", answer)
        [(total,)] = db.execute(f"SELECT sum(hash(({', '.join(names)}))::HUGEINT) FROM answer").fetchall()
    return took | {"hash": str(total)}


def measured(run: str, folder: Path, impressions: int) -> dict[str, Any]:
    """What `one` told, run in a process of its own, and the peak of its resident memory in bytes."""
    command = [sys.executable, __file__, "--run", run, "--folder", str(folder), "--impressions", str(impressions)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    peak, ended = [0], Event()

    def watch() -> None:
        watched = psutil.Process(process.pid)
        while not ended.wait(0.05):
            with suppress(psutil.NoSuchProcess):
                peak[0] = max(peak[0], watched.memory_info().rss)

    thread = Thread(target=watch)
    thread.start()
    said, _ = process.communicate()
    ended.set()
    thread.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(said.splitlines()[-1]) | {"run": run, "peak": peak[0]}


# --- telling it -----------------------------------------------------------------------------------------------------


PAGE = """# Training rows by our offline store, by Feast's own and by a bare ASOF query

{facts}.

{table}

{sizes}. Rows of one size are equal. Of ours, rows/s are {of_feast:.0f} times those of Feast's store at its
size, and {same:.0f} times at the same size; seconds are {of_bare:.2f} times those of the bare query. Equality on
generated histories:
`tests/feature_repo/test_offline_store.py::test_generated_histories_are_joined_as_by_feasts_own_store_and_by_a_plain_loop`.
"""
COLUMNS = ("run", "rows", "seconds", "rows/s", "CPU s", "peak MiB")


def cells(run: dict[str, Any]) -> tuple[str, ...]:
    """COLUMNS of one run."""
    rate = run["rows"] / run["seconds"]
    numbers = (f"{run['rows']:,}", f"{run['seconds']:.1f}", f"{rate:,.0f}", f"{run['cpu']:.1f}")
    return (run["run"], *numbers, f"{run['peak'] >> 20:,}")


def page(runs: list[dict[str, Any]], sizes: str) -> str:
    """All runs as markdown, with the command, commit, seed and machine they were measured with."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB"
    facts = (
        f"`python {shlex.join(sys.argv)}`",
        f"commit {commit.stdout.strip()}",
        f"{datetime.now(UTC):%Y-%m-%d}",
        machine,
    )
    lines = [" | ".join(row) for row in (COLUMNS, ["---"] * len(COLUMNS), *map(cells, runs))]
    plain, all_of_ours, some_of_ours, feasts = runs
    return PAGE.format(
        facts=", ".join(facts),
        table="\n".join(f"| {line} |" for line in lines),
        sizes=sizes,
        of_feast=all_of_ours["rows"] / all_of_ours["seconds"] / (feasts["rows"] / feasts["seconds"]),
        same=feasts["seconds"] / some_of_ours["seconds"],
        of_bare=all_of_ours["seconds"] / plain["seconds"],
    )


def main(
    impressions: int = 1_000_000,
    feast_impressions: Annotated[int, typer.Option(help="Of these, how many Feast's store is asked for.")] = 10_000,
    items: int = 1_000,
    users: int = 100_000,
    days: Annotated[int, typer.Option(help="Of statistics.")] = 7_305,
    seed: int = 0,
    folder: Annotated[Path | None, typer.Option(help="Where what is drawn is put; it must be empty.")] = None,
    write: Annotated[Path | None, typer.Option(help="A page of markdown to write the table to.")] = None,
    run: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure all three."""
    if run and folder is not None:
        print(json.dumps(one(run, folder, impressions)))
        return
    with tempfile.TemporaryDirectory(dir=folder) as place:
        draw(Path(place), impressions=impressions, items=items, users=users, days=days, seed=seed)
        sizes = f"{items:,} items with statistics of {days:,} days, {users:,} users, seed {seed}"
        asked = ((BARE, impressions), (OURS, impressions), (OURS, feast_impressions), (FEASTS, feast_impressions))
        runs = [measured(name, Path(place), count) for name, count in asked]
    for first, second in (runs[:2], runs[2:]):
        if (first["rows"], first["hash"]) != (second["rows"], second["hash"]):
            sys.exit(f"{first['run']} and {second['run']} disagree: {first}, {second}")
    told = page(runs, sizes)
    print(told)
    if write is not None:
        write.write_text(told, "utf-8")


if __name__ == "__main__":
    typer.run(main)
