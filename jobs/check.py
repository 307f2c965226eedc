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

from jobs.config import SequencesConfig
from jobs.sources.raw import RawTableUnusable, table_files
from jobs.spark.judged_events import cap, crowds, judge_together
from jobs.spark.raw_tables import count_reasons, read_events, read_items
from jobs.spark.sequence_facts import count_events
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
    return {"events": _found_events(read_events(spark, raw)), "items": _found_items(read_items(spark, raw))}


def _found_events(read: DataFrame) -> Found:
    together = judge_together(read).persist()
    [counted] = count_events(cap(together, crowds(together, SequencesConfig().max_clicks_per_day))).values()
    together.unpersist()
    return Found(
        read=counted["events_read"],
        accepted=counted["events_accepted"],
        rejected=counted["events_rejected"],
        duplicates=counted["duplicates"],
    )


def _found_items(judged: DataFrame) -> Found:
    kept, rejected = count_reasons(judged)
    return Found(read=kept + sum(rejected.values()), accepted=kept, rejected=rejected)


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
