"""courier check: what raw tables hold, before anything is built from them, by DuckDB or on a cluster by Spark."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from upath import UPath

from jobs.config import SequencesConfig
from jobs.options import Master
from jobs.paths import path_argument
from jobs.raw import layout as raw_layout
from jobs.raw.check import Found, as_tables, require_some
from jobs.raw.folder import table_files
from model import strict_json
from model.artifact import AnyPath

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def check(raw: AnyPath, as_of: datetime | None = None, master: str | None = None) -> dict[str, Found]:
    """What the tables `events` and `items` hold. Raises RawTableUnusable, RawTableMissing, JavaMissing (of Spark only).

    as_of: the clock that says which events lie in the future; None: that of this machine.
    master: the Spark master whose cluster does it; None: DuckDB does, here.
    """
    waiting, as_of, cap = Console(stderr=True), as_of or datetime.now(UTC), SequencesConfig().max_clicks_per_day
    with waiting.status("looking at the files"):  # what can be refused is, before an engine takes its seconds
        for name in raw_layout.COLUMNS:
            raw_layout.check(table_files(raw, name))
    if master is not None:
        return _by_spark(raw, as_of, cap, master, waiting)
    from jobs.engines.duckdb_session import connect
    from jobs.sequences.duckdb import findings

    with tempfile.TemporaryDirectory() as folder, connect(Path(folder) / "spill") as db:
        return findings.found(db, raw, as_of, cap)


def _by_spark(raw: AnyPath, as_of: datetime, cap: int, master: str, waiting: Console) -> dict[str, Found]:
    from jobs.engines.spark_session import spark_session
    from jobs.raw.spark_files import damage_named
    from jobs.sequences.spark import findings

    with waiting.status("starting Spark"):
        spark = spark_session("courier check", master)
    with damage_named():
        return findings.found(spark, raw, as_of, cap)


@app.command()
def report(
    raw: Annotated[UPath, path_argument("The folder that holds the tables events and items.")],
    master: Master = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Rows read, accepted, rejected by reason with examples, and doubtful; exit 1 where a table is unusable."""
    found = check(raw, master=master)
    if as_json:
        typer.echo(strict_json.dumps({name: asdict(one) for name, one in found.items()}))
    else:
        for table in as_tables(found):
            if table.row_count:
                Console().print(table)
    require_some(found, raw)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of the check."""
    app(args=argv, prog_name="courier check")
