"""Say what raw tables hold before anything is built from them: rows read, accepted, doubtful, rejected by reason."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from rich.console import Console
from rich.table import Table
from rich.text import Text
from upath import UPath

from jobs.config import SequencesConfig
from jobs.engines.spark_session import spark_session
from jobs.paths import path_argument
from jobs.raw import layout as raw_layout
from jobs.raw import spark_findings as raw_findings
from jobs.raw.folder import RawTableUnusable, table_files
from jobs.raw.spark_files import damage_named
from jobs.raw.spark_findings import Day, Example
from jobs.raw.spark_tables import REASON, count_reasons, read_events, read_items
from jobs.rules import events as logic
from jobs.rules import items as catalogue
from jobs.sequences.spark.event_validation import cap, crowds, standing
from jobs.sequences.spark.facts import count_events
from jobs.sequences.spark.oversized_requests import judge
from model.artifact import AnyPath

EXAMPLES: Final = 3  # rows shown for each reason
DAYS: Final = 5  # shown at either end of the time that the events cover
MOMENTS: Final = "write moments as 2024-03-01T12:00:00Z, from 1900 to 2199"
CURES: Final = {
    logic.BAD_ROW: "write one row a line, as wide as the header",
    logic.BAD_ENCODING: "save it as UTF-8",
    logic.UNKNOWN_EVENT_TYPE: "name them impression, click, cart or purchase",
    logic.NULL_EVENT_TIME: MOMENTS,
    logic.NAIVE_EVENT_TIME: MOMENTS,
    logic.BAD_EVENT_TIME: MOMENTS,
    logic.FUTURE_EVENT_TIME: "set the clock right that dates them, or the offset from UTC that is written with them",
    catalogue.BAD_CREATED_AT: MOMENTS,
    catalogue.BAD_PRICE: "write prices as 9.99, and an unknown one as nothing",
    logic.BAD_POSITION: "count positions from 0, the top of the page",
    logic.NULL_POSITION: "say at which position, from 0, each impression was shown",
}
MEND: Final = "fill them in, or mend what writes them"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a raw table holds. duplicates: accepted events that repeat another one; they count once.

    doubtful: accepted rows that lead nowhere, by why. days, doubtful: without the duplicates.
    """

    read: int
    accepted: int
    rejected: dict[str, int]  # reason -> rows
    duplicates: int = 0
    doubtful: dict[str, int] = field(default_factory=dict)
    days: list[Day] = field(default_factory=list)
    examples: dict[str, list[Example]] = field(default_factory=dict)  # reason -> rows


def check(raw: AnyPath, as_of: datetime | None = None) -> dict[str, Found]:
    """What the tables `events` and `items` hold. Raises RawTableUnusable, RawTableMissing, JavaMissing.

    as_of: the clock that says which events lie in the future; None: that of this machine.
    """
    waiting = Console(stderr=True)
    with waiting.status("looking at the files"):  # what can be refused is, before Spark takes its seconds to start
        for name in ("events", "items"):
            raw_layout.check(table_files(raw, name))
    with waiting.status("starting Spark"):
        spark = spark_session("courier check")
    with damage_named():
        return _check(spark, raw, as_of or datetime.now(UTC))


def _check(spark: SparkSession, raw: AnyPath, as_of: datetime) -> dict[str, Found]:
    together = judge(read_events(spark, raw, as_of)).persist()
    judged = cap(together, crowds(together, SequencesConfig().max_clicks_per_day))
    items = read_items(spark, raw).persist()
    once, described = standing(judged).persist(), items.filter(F.col(REASON).isNull())
    doubtful = {
        "of_unknown_items": raw_findings.of_unknown_items(once, described),
        "unmatched_clicks": raw_findings.unmatched_clicks(once),
    }
    [counted] = count_events(judged).values()
    events = _found(spark, raw, "events", judged, counted["events_accepted"], counted["events_rejected"], as_of)
    found = {
        "events": replace(events, duplicates=counted["duplicates"], doubtful=doubtful, days=raw_findings.days(once)),
        "items": replace(
            _found(spark, raw, "items", items, *count_reasons(items), as_of),
            doubtful={"without_events": raw_findings.without_events(described, once)},
        ),
    }
    for frame in (together, items, once):
        frame.unpersist()
    return found


def _found(
    spark: SparkSession,
    raw: AnyPath,
    name: str,
    judged: DataFrame,
    kept: int,
    rejected: dict[str, int],
    as_of: datetime,
) -> Found:
    read = raw_findings.rows_read(spark, raw, name)
    if read != kept + sum(rejected.values()):  # a bug of ours, by which rows are lost or doubled
        raise RuntimeError(f"{raw}, {name}: {read} rows read, {kept} accepted, rejected {rejected}")
    examples = raw_findings.examples(spark, raw, name, judged, EXAMPLES, as_of) if rejected else {}
    return Found(read=read, accepted=kept, rejected=rejected, examples=examples)


def require_some(found: dict[str, Found], raw: AnyPath) -> None:
    """Raises RawTableUnusable for a table of which no row is accepted."""
    for name, table in found.items():
        if table.accepted:
            continue
        path = table_files(raw, name).path
        if not table.read:
            raise RawTableUnusable(f"{path} holds no rows: fill it")
        worst = max(table.rejected, key=lambda reason: table.rejected[reason])
        raise RawTableUnusable(
            f"{path}: none of {table.read} rows can be used (most often: {worst}): {CURES.get(worst, MEND)}"
        )


def as_tables(found: dict[str, Found]) -> list[Table]:
    """The findings for the terminal: counts, days, examples."""
    return [_counts(found), _days(found["events"].days), _examples(found)]


def _counts(found: dict[str, Found]) -> Table:
    table = Table("table", "rows", title="raw tables")
    table.add_column("count", justify="right")
    for name, one in found.items():
        table.add_row(name, "read", f"{one.read:,}")
        table.add_row("", "accepted", f"{one.accepted:,}")
        if one.duplicates:
            table.add_row("", "of them duplicates", f"{one.duplicates:,}")
        for what, count in one.doubtful.items():
            table.add_row("", f"of them {what}", f"{count:,}", style="yellow" if count else "")
        for reason, count in one.rejected.items():
            table.add_row("", f"rejected: {reason}", f"{count:,}", style="yellow")
        table.add_section()
    return table


def _days(days: Sequence[Day]) -> Table:
    table = Table("day (UTC)", "first", "last", title="events without duplicates")
    table.add_column("events", justify="right")
    left_out = len(days) - 2 * DAYS
    for number, day in enumerate(days):
        if left_out <= 0 or number < DAYS or number >= len(days) - DAYS:
            table.add_row(day.day, day.first[11:], day.last[11:], f"{day.events:,}")
        elif number == DAYS:
            table.add_row(f"and {left_out:,} days more", "", "", f"{sum(d.events for d in days[DAYS:-DAYS]):,}")
    return table


def _examples(found: dict[str, Found]) -> Table:
    table = Table(title="rejected rows, for example")
    table.add_column("reason", min_width=max(map(len, (*logic.REJECTIONS, *catalogue.REJECTIONS))))
    table.add_column("file", min_width=20, overflow="fold")
    table.add_column("row", no_wrap=True, overflow="ellipsis", ratio=1)
    for one in found.values():
        for reason, rows in one.examples.items():
            for row in rows:
                table.add_row(reason, Text(row.file), Text(row.row))  # what stands in brackets is no markup
    return table


@app.command()
def report(
    raw: Annotated[UPath, path_argument("The folder that holds the tables events and items.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Rows read, accepted, rejected by reason with examples, and doubtful; exit 1 where a table is unusable."""
    found = check(raw)
    if as_json:
        typer.echo(json.dumps({name: asdict(one) for name, one in found.items()}))
    else:
        for table in as_tables(found):
            if table.row_count:
                Console().print(table)
    require_some(found, raw)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of the check."""
    app(args=argv, prog_name="courier check")
