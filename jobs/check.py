"""Say what raw tables hold before anything is built from them: rows read, accepted, and rejected by reason."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from pyspark.sql import DataFrame
from rich.console import Console
from rich.table import Table

from jobs.sources.raw import RawTableUnusable, table_files
from jobs.spark.raw_tables import accepted, count_reasons, deduplicate, read_events, read_items
from jobs.spark.session import spark_session

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a raw table holds. duplicates: accepted events that repeat another one; they count once."""

    read: int
    accepted: int
    rejected: dict[str, int]  # reason -> rows
    duplicates: int = 0


def check(raw: Path) -> dict[str, Found]:
    """What the tables `events` and `items` hold. Raises RawTableUnusable, RawTableMissing, JavaMissing."""
    for name in ("events", "items"):
        table_files(raw, name)  # a folder without its tables is refused before Spark takes its seconds to start
    spark = spark_session("courier check")
    return {"events": _found(read_events(spark, raw), repeats=True), "items": _found(read_items(spark, raw))}


def _found(judged: DataFrame, *, repeats: bool = False) -> Found:
    judged = judged.persist()
    kept, rejected = count_reasons(judged)
    duplicates = kept - deduplicate(accepted(judged)).count() if repeats else 0
    judged.unpersist()
    return Found(read=kept + sum(rejected.values()), accepted=kept, rejected=rejected, duplicates=duplicates)


def require_some(found: dict[str, Found], raw: Path) -> None:
    """Raises RawTableUnusable for a table of which no row is accepted."""
    for name, table in found.items():
        if not table.accepted:
            worst = max(table.rejected, key=lambda reason: table.rejected[reason], default="it is empty")
            raise RawTableUnusable(
                f"{raw / name}: none of {table.read} rows can be used (most often: {worst}): mend them"
            )


def as_table(found: dict[str, Found]) -> Table:
    """The findings for the terminal."""
    table = Table("table", "rows", title="raw tables")
    table.add_column("count", justify="right")
    for name, one in found.items():
        table.add_row(name, "read", f"{one.read:,}")
        table.add_row("", "accepted", f"{one.accepted:,}")
        if one.duplicates:
            table.add_row("", "of them duplicates", f"{one.duplicates:,}")
        for reason, count in one.rejected.items():
            table.add_row("", f"rejected: {reason}", f"{count:,}", style="yellow")
        table.add_section()
    return table


@app.command()
def report(
    raw: Annotated[Path, typer.Argument(help="The folder that holds the tables events and items.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Rows read, accepted, and rejected by reason; exit 1 where a table is unusable."""
    found = check(raw)
    if as_json:
        typer.echo(json.dumps({name: asdict(one) for name, one in found.items()}))
    else:
        Console().print(as_table(found))
    require_some(found, raw)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of the check."""
    app(args=argv, prog_name="courier check")


if __name__ == "__main__":
    main()
