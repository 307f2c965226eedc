"""What a check of raw tables finds, and how it is shown: rows read, accepted, doubtful, rejected by reason."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from rich.table import Table
from rich.text import Text

from jobs.raw.folder import RawTableUnusable
from jobs.rules import events as logic
from jobs.rules import items as catalogue
from jobs.rules.doubts import MOST, Doubt, Seen
from model.artifact import AnyPath

UNKNOWN_ITEMS: Final = "of_unknown_items"  # events of no accepted item
REFERENCES: Final = 100  # of items, that are looked at before all of them are
EXAMPLES: Final = 3  # rows shown for each reason
SHOWN: Final = 1000  # characters of an example's row
DAYS: Final = 5  # shown at either end of the time that the events cover
MOMENTS: Final = "write moments as 2024-03-01T12:00:00Z, with Z or their offset from UTC, from 1900 to 2199"
CURES: Final = {
    logic.BAD_ROW: "write one row a line, as wide as the header",
    logic.BAD_ENCODING: "save it as UTF-8",
    logic.UNKNOWN_EVENT_TYPE: "name them impression, click, cart or purchase",
    logic.NULL_EVENT_TIME: MOMENTS,
    logic.NAIVE_EVENT_TIME: MOMENTS,
    logic.BAD_EVENT_TIME: MOMENTS,
    logic.FUTURE_EVENT_TIME: "set the clock right that dates them, or the offset from UTC that is written with them",
    catalogue.BAD_CREATED_AT: MOMENTS,
    catalogue.BAD_UPDATED_AT: MOMENTS,
    catalogue.BAD_PRICE: "write prices as 9.99, and an unknown one as nothing",
    logic.BAD_POSITION: "count positions from 0, the top of the page",
    logic.NULL_POSITION: "say at which position, from 0, each impression was shown",
}
# The column whose value is at fault.
BLAMED: Final = {
    logic.UNKNOWN_EVENT_TYPE: "event_type",
    logic.NAIVE_EVENT_TIME: "event_time",
    logic.BAD_EVENT_TIME: "event_time",
    logic.FUTURE_EVENT_TIME: "event_time",
    logic.BAD_POSITION: "position",
}
MEND: Final = "fill them in, or mend what writes them"


@dataclass(frozen=True, slots=True)
class Day:
    """The accepted events of one day in UTC: how many, and the moments of the first and the last, ISO 8601."""

    day: str
    events: int
    first: str
    last: str


@dataclass(frozen=True, slots=True)
class Example:
    """A rejected row: its file, its number there, and the row as JSON, cut off after SHOWN characters."""

    file: str
    number: int
    row: str


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
    lost: dict[str, int] = field(default_factory=dict)  # reason -> accepted rows that lost an optional value
    days: list[Day] = field(default_factory=list)
    examples: dict[str, list[Example]] = field(default_factory=dict)  # reason -> rows

    def below(self, raw: AnyPath) -> "Found":
        """With the files of its examples as they are called below the raw folder."""
        start = f"{str(raw.absolute()).rstrip('/')}/"
        shown = {
            reason: [replace(row, file=row.file.removeprefix(start)) for row in rows]
            for reason, rows in self.examples.items()
        }
        return replace(self, examples=shown)

    def __post_init__(self) -> None:
        """Raises RuntimeError where rows were lost or doubled on the way: a bug of ours."""
        if self.read != self.accepted + sum(self.rejected.values()):
            raise RuntimeError(f"{self.read} rows read, {self.accepted} accepted, rejected {self.rejected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What the raw tables hold, each and together, and the first references of items to pictures."""

    tables: dict[str, Found]
    seen: Seen
    references: tuple[str, ...] = ()

    def below(self, raw: AnyPath) -> "Checked":
        """With the files of examples as they are called below the raw folder."""
        return replace(self, tables={name: table.below(raw) for name, table in self.tables.items()})


def require_some(found: dict[str, Found], paths: Mapping[str, AnyPath]) -> None:
    """Raises RawTableUnusable for a table without an accepted row, if not for their types. paths: where each lies."""
    for name, table in found.items():
        if table.accepted:
            continue
        path = paths[name]
        if not table.read:
            raise RawTableUnusable(f"{path} holds no rows: fill it")
        worst = max(table.rejected, key=lambda reason: table.rejected[reason])
        if worst == logic.UNKNOWN_EVENT_TYPE:
            continue  # jobs.rules.doubts says which there are
        raise RawTableUnusable(
            f"{path}: none of {table.read} rows can be used (most often: {worst}{_for_example(table, worst)}): "
            f"{CURES.get(worst, MEND)}"
        )


def mostly_rejected(found: Mapping[str, Found], seen: Seen) -> list[Doubt]:
    """A doubt for each table most of whose rows are rejected for one reason.

    It stops where the others hold nothing to learn from: then what they lack is not their fault.
    """
    learnable = bool(seen.types.get(logic.IMPRESSION) and seen.types.get(logic.CLICK))
    return [
        Doubt(
            said=f"{rows:,} of {table.read:,} {name} are of no use ({reason}{_for_example(table, reason)}): "
            f"{CURES.get(reason, MEND)}",
            stops=name == "events" and not learnable,
        )
        for name, table in found.items()
        for reason, rows in table.rejected.items()
        if rows > MOST * table.read and reason not in (logic.UNKNOWN_EVENT_TYPE, catalogue.SUPERSEDED)
    ]


def _for_example(table: Found, reason: str) -> str:
    """The value that makes a row be rejected, of the first example; empty where none is one value."""
    rows = table.examples.get(reason)
    try:
        row = json.loads(rows[0].row) if rows else {}
    except ValueError:  # cut off
        return ""
    value = row.get(BLAMED.get(reason, ""))
    return "" if value is None else f", as in {value!r}"


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
        for reason, count in one.lost.items():
            table.add_row("", f"of them without the value: {reason}", f"{count:,}", style="yellow")
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
    table.add_column("row", justify="right")
    table.add_column("as it was read", no_wrap=True, overflow="ellipsis", ratio=1)
    for one in found.values():
        for reason, rows in one.examples.items():
            for row in rows:
                table.add_row(
                    reason, Text(row.file), f"{row.number:,}", Text(row.row)
                )  # what stands in brackets is no markup
    return table
