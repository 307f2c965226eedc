"""What raw tables hold and what cannot work with them, before anything is built: the command and the stage `check`.

DuckDB looks at them, or on a cluster Spark.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from upath import UPath

from jobs.config import ImagesConfig, IngestConfig
from jobs.options import Columns, Master, parted
from jobs.paths import path_argument
from jobs.raw.canonical import CanonicalTable, canonical_table
from jobs.raw.check import Checked, as_tables, mostly_rejected, require_some
from jobs.raw.folder import RawTableUnusable, table_files
from jobs.raw.ingest import read_tables
from jobs.rules.doubts import Doubt, doubts
from jobs.sequences.build import DUCKDB, SPARK, choose
from jobs.settings import read_layers, resolve
from model import artifact, strict_json
from model.artifact import AnyPath, Manifest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

KIND: Final = "check"
BOTH: Final = ("events", "items")


def check(
    raw: AnyPath, as_of: datetime | None = None, master: str | None = None, columns: Sequence[str] | None = None
) -> Checked:
    """What the tables `events` and `items` hold. Raises RawTableUnusable, RawTableMissing, JavaMissing (of Spark only).

    The settings are those that lie beside the raw folder.
    as_of: the clock that says which events lie in the future; None: that of this machine.
    master: the Spark master whose cluster judges them; None: DuckDB does, here.  columns: as of IngestConfig.
    """
    for name in BOTH:
        table_files(raw, name)
    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("reading the raw tables") as status:
        config = resolve(read_layers(raw, Path(folder), None)).config
        named = IngestConfig(columns=tuple(columns)) if columns is not None else config.ingest
        read = Path(folder) / "ingest"
        read_tables(raw=raw, raw_digest="", out=read, config=named)
        events, items = (canonical_table(read, name, raw) for name in BOTH)
        status.update("judging their rows")
        cap, chosen = config.sequences.max_clicks_per_day, SPARK if master else DUCKDB
        found = _checked(events, items, as_of or datetime.now(UTC), cap, chosen, master, Path(folder) / "spill")
        status.update("looking at the first pictures")
        return _with_pictures(found, raw, config.images).below(raw)


def build(
    *,
    ingest: AnyPath,
    raw: AnyPath,
    out: AnyPath,
    configs: Mapping[str, Any],
    engine: str | None = None,
    master: str | None = None,
    as_of: datetime | None = None,
) -> Manifest:
    """The check artifact: what the tables hold and what is doubtful in them, as facts and in check.json.

    ingest: the ingest artifact of `raw`.  configs: of the stages sequences and images.  as_of: as of `check`.
    engine, master: as of jobs.sequences.build.choose; Beam's part DuckDB does.
    Raises RawTableUnusable where nothing can come of the tables.
    """
    known = artifact.read(ingest, kind="ingest").facts
    inputs = artifact.digests({f"ingest/{name}": ingest for name in BOTH})
    plain = {name: asdict(config) for name, config in configs.items()}
    with artifact.write_together(out, kind=KIND, inputs=inputs, config=plain) as draft:
        # Without one of them some stages can be built alone, and a run ends with what is missing.
        if all(known[name] for name in BOTH):
            events, items = (canonical_table(ingest, name, raw) for name in BOTH)
            cap, (chosen, _) = configs["sequences"].max_clicks_per_day, choose(engine, master)
            with tempfile.TemporaryDirectory() as folder:
                spill = Path(folder) / "spill"
                found = _checked(events, items, as_of or datetime.now(UTC), cap, chosen, master, spill)
            found = _with_pictures(found, raw, configs["images"]).below(raw)
            require_some(found.tables, {"events": events.path, "items": items.path})
            tell(found, raw)
            draft.facts.update(_said(found))
        artifact.write_whole(draft.path / "check.json", strict_json.dumps(draft.facts, indent=1).encode())
    return artifact.read(out, kind=KIND)


def tell(found: Checked, raw: AnyPath) -> None:
    """Say what is doubtful. Raises RawTableUnusable for the first doubt that stops."""
    console = Console(stderr=True)
    found_doubts = _doubts(found)
    stops = [doubt.said for doubt in found_doubts if doubt.stops]
    for said in (*stops[1:], *(doubt.said for doubt in found_doubts if not doubt.stops)):
        console.print(f"[yellow]{escape(said)}[/yellow]", soft_wrap=True)
    if stops:
        raise RawTableUnusable(f"{raw}: {stops[0]}")


def _said(found: Checked) -> dict[str, Any]:
    tables = {name: asdict(one) for name, one in found.tables.items()}
    return tables | {"doubts": [asdict(doubt) for doubt in _doubts(found)]}


def _doubts(found: Checked) -> list[Doubt]:
    """What is to be said, what stops first; of that first what explains the rest."""
    listed = [*mostly_rejected(found.tables, found.seen), *doubts(found.seen)]
    return sorted(listed, key=lambda one: not one.stops)


def _with_pictures(found: Checked, raw: AnyPath, config: ImagesConfig) -> Checked:
    """`found` with what becomes of the first pictures; of those behind an address, which take their time, none is."""
    from jobs.images.fetch.references import Fetcher, is_far  # with decoders, which no table needs
    from jobs.images.look import Looker, Reference

    fetcher = Fetcher(raw.absolute(), config.max_bytes)
    look = Looker(fetcher, config, retry_failed=False)
    near = [words for words in found.references if isinstance(raw, Path) and not is_far(words)]
    with ThreadPoolExecutor() as threads:
        looks = list(threads.map(lambda words: look.open(Reference(words, words)), near))
    pictures = Counter(one.outcome.reason for one in looks)
    return replace(found, seen=replace(found.seen, pictures=dict(sorted(pictures.items()))))


def _checked(
    events: CanonicalTable,
    items: CanonicalTable,
    as_of: datetime,
    cap: int,
    engine: str,
    master: str | None,
    spill: Path,
) -> Checked:
    if engine == SPARK:
        from jobs.engines.spark_session import spark_session
        from jobs.raw.spark_tables import damage_named
        from jobs.sequences.spark import findings as on_spark

        with damage_named():
            return on_spark.found(spark_session("courier check", master), events, items, as_of, cap)
    from jobs.engines.duckdb_session import connect
    from jobs.sequences.duckdb import findings

    with connect(spill) as db:
        return findings.found(db, events, items, as_of, cap)


@app.command()
def report(
    raw: Annotated[UPath, path_argument("The folder that holds the tables events and items.")],
    master: Master = None,
    columns: Columns = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Rows read, accepted, rejected by reason with examples, and doubtful; exit 1 where nothing can come of them."""
    found = check(raw, master=master, columns=parted(columns))
    if as_json:
        typer.echo(strict_json.dumps(_said(found)))
    else:
        for table in as_tables(found.tables):
            if table.row_count:
                Console().print(table)
    require_some(found.tables, {name: table_files(raw, name).path for name in BOTH})
    tell(found, raw)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of the check."""
    app(args=argv, prog_name="courier check")
