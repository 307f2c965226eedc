"""How many raw events each file holds of each UTC day, counted once a file, and which of them the daily log leaves out.

WORKSPACE/days/raw_days.json keeps the counts of a file for as long as its version, jobs.raw.folder.file_version, stays
what it was; an ingested file is named by its content, so its name is its version. So a day is read from the files that
hold it, and events that no day of the log has counted do not stay unseen.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final

from jobs.raw.canonical import CanonicalTable, with_files
from jobs.raw.folder import file_version
from jobs.rules.events import future_from
from jobs.sequences.daily import log as daily_log
from jobs.sequences.daily.log import DAY, Plan, Watermark, midnight
from model import artifact, strict_json
from model.artifact import AnyPath

UNDATED: Final = "undated"  # in place of a day: rows whose time is not known
# An event a year off the log stands in no gap: its clock was wrong, and no one wants all the days in between.
REACH: Final = 366 * DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDays:
    """The rows of a file by their UTC day (ISO, or UNDATED), and the version of the file that was counted."""

    version: str
    rows: Mapping[str, int]

    def holds(self, first: date, last: date) -> bool:
        """Whether some row lies on one of these days, both included."""
        return any(first.isoformat() <= day <= last.isoformat() for day in self.rows if day != UNDATED)


def index_file(workspace: AnyPath) -> AnyPath:
    """Where the counts lie."""
    return daily_log.log_folder(workspace) / "raw_days.json"


def read_index(workspace: AnyPath) -> dict[str, FileDays]:
    """The counts of each file, by what it is called there; empty where nothing has been counted."""
    try:
        said = json.loads(index_file(workspace).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return {file: FileDays(**one) for file, one in said.items()}


def write_index(workspace: AnyPath, index: Mapping[str, FileDays]) -> None:
    """Keep the counts of each file."""
    index_file(workspace).parent.mkdir(parents=True, exist_ok=True)
    said = {file: asdict(one) for file, one in sorted(index.items())}
    artifact.write_whole(index_file(workspace), (strict_json.dumps(said, indent=1) + "\n").encode())


CountDays = Callable[[CanonicalTable], Mapping[str, Mapping[str, int]]]  # files of events -> path -> day -> rows


def indexed(table: CanonicalTable, workspace: AnyPath, count_days: CountDays) -> dict[str, FileDays]:
    """The rows of each day in each file of the events, by path; what is new is counted, and all is kept.

    Raises what count_days raises (only where there is something to count).
    """
    known = read_index(workspace)
    counted = {file_name(file): _as_counted(table, file) for file in table.files}
    fresh = {
        path: known[name]
        for path, (name, version) in counted.items()
        if name in known and known[name].version == version
    }
    new = tuple(file for file in table.files if file_name(file) not in fresh)
    if new:
        counts = count_days(with_files(table, new))
        fresh |= {path: FileDays(version=counted[path][1], rows=rows) for path, rows in counts.items()}
    kept = {counted[path][0]: days for path, days in fresh.items()}
    if known.keys() != kept.keys() or new:
        write_index(workspace, kept)
    return fresh


def _as_counted(table: CanonicalTable, file: AnyPath) -> tuple[str, str]:
    """What a file is called among the counts, and its version."""
    if table.kinds is None:  # an ingested file is named by its content, wherever it lies
        return file.name, file.name
    return file_name(file), file_version(file)


def files_of(
    table: CanonicalTable, index: Mapping[str, FileDays], wanted: Callable[[FileDays], bool]
) -> CanonicalTable:
    """The table's files that are wanted; where none is, its fullest one, which can be read and has no wanted row."""
    chosen = tuple(file for file in table.files if wanted(index[file_name(file)]))
    fullest = max(table.files, key=lambda file: sum(index[file_name(file)].rows.values()))
    return with_files(table, chosen or (fullest,))


def file_name(file: AnyPath) -> str:
    """A file's path, as engines say it."""
    return str(file.absolute())


def rows_a_day(files: Iterable[FileDays]) -> dict[date, int]:
    """The rows of each day in all files, in order; without those whose day is not known."""
    total: dict[date, int] = {}
    for one in files:
        for day, rows in one.rows.items():
            if day != UNDATED:
                total[date.fromisoformat(day)] = total.get(date.fromisoformat(day), 0) + rows
    return dict(sorted(total.items()))


# --- what the log leaves out ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Raw events that a log does not hold: rows of days before it and after it, and days of it that have changed.

    changed: day -> (rows that the log counted, rows that the raw files hold now).
    """

    before: Mapping[date, int] = field(default_factory=dict)
    after: Mapping[date, int] = field(default_factory=dict)
    changed: Mapping[date, tuple[int, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return bool(self.before or self.after or self.changed)

    def facts(self) -> dict[str, Any]:
        """As plain values: rows before and after the log; and of each changed day what was and what is."""
        changed = {day.isoformat(): list(counts) for day, counts in self.changed.items()}
        return {"before": sum(self.before.values()), "after": sum(self.after.values()), "changed": changed}


def left_out(mark: Watermark, read: Mapping[date, int], raw: Mapping[date, int], now: datetime) -> LeftOut:
    """What a log leaves out. read: the rows that each of its days counted.  raw: the rows there are of each day.

    now: what lies in the future of this clock is rejected, and waits for its day with the undated rows.
    """
    within = Plan(first=mark.first, last=mark.last, write_from=mark.first).days
    return LeftOut(
        before={day: rows for day, rows in raw.items() if day < mark.first},
        after={day: rows for day, rows in raw.items() if day > mark.last and midnight(day) < future_from(now)},
        changed={day: (read[day], raw.get(day, 0)) for day in within if read[day] != raw.get(day, 0)},
    )


def known_left_out(workspace: AnyPath, mark: Watermark, now: datetime) -> LeftOut:
    """What the log leaves out of the raw files as they were last counted. Raises DailyLogError as read_days does."""
    days = daily_log.read_days(workspace, mark)
    read = {date.fromisoformat(name): int(one.facts["events_read"]) for name, one in days.items() if name != UNDATED}
    return left_out(mark, read, rows_a_day(read_index(workspace).values()), now)


def left_out_now(events: CanonicalTable, workspace: AnyPath, mark: Watermark, count_days: CountDays) -> LeftOut:
    """What the log leaves out of the raw files as they are now."""
    indexed(events, workspace, count_days)
    return known_left_out(workspace, mark, datetime.now(UTC))


def sentence(mark: Watermark, out: LeftOut) -> str:
    """What the log holds and what it leaves out, with the command that takes that in."""
    held = f"the daily log holds {mark.first} to {mark.last}"
    if not out:
        return f"{held}, and every raw event of a known day"
    parts = []
    if out.before:
        parts.append(f"{sum(out.before.values()):,} raw events lie before it (since {min(out.before)})")
    if out.after:
        parts.append(f"{sum(out.after.values()):,} raw events lie after it (until {max(out.after)})")
    if out.changed:
        first, (was, now) = next(iter(out.changed.items()))
        days = f"{len(out.changed)} of its days {'has' if len(out.changed) == 1 else 'have'} changed since"
        parts.append(f"{days} ({first}: {was:,} events then, {now:,} now)")
    return f"{held}; {', '.join(parts)}: {_cure(mark, out)}"


def _cure(mark: Watermark, out: LeftOut) -> str:
    near = [day for day in (*out.before, *out.changed, *out.after) if mark.first - REACH <= day <= mark.last + REACH]
    if not near:
        return "they are a year off, so mend their event_time or leave them out"
    first, last = min(near), max(near)
    days = f"--from {min(first, mark.last + DAY)} --to {last}"
    return f"say `courier sequences {days}` to take in what is to be taken in"
