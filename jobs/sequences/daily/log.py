"""The daily log of a workspace: which days it holds, what was last done to it, and which days must be computed anew.

WORKSPACE/days/<YYYY-MM-DD> is an artifact of one UTC day; days/undated keeps the rejected rows whose time is not known
or lies in the future;
days/states/<YYYY-MM-DD> is what each user had clicked last when that day ended, for the last few days;
days/watermark.json is written whole, and last: what it does not say has not happened. While days are being replaced,
days/writing.json says since which one; where it stays behind, a run was cut short, and the log is neither old nor new.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

from jobs.raw.identity import Hasher
from jobs.rules.events import DAY as DAY
from model import artifact, strict_json
from model.artifact import AnyPath
from model.errors import CourierError

# A click labels page views of its own day and the day before; what becomes of it is settled by the day after it
# (jobs.rules.events): so a day is settled two days later, and needs the two days before it.
SETTLED_AFTER: Final = 2 * DAY
WRITING: Final = "writing.json"
DAYS: Final = ["%Y-%m-%d"]  # how a command line writes a day
NEEDS_BEFORE: Final = 2 * DAY
# What a day counts, so that the sum over all days is the count of the whole.
COUNTS: Final = (
    *("events_read", "events_accepted", "duplicates", "clicks", "conversions"),
    *("requests", "impressions", "shown_again", "page_view_items", "attributed"),
)
# How far behind the watermark lie the states that are kept: the next day starts from the one, the last day, computed
# again, from the other. Older ones are computed of the days' clicks where a back-fill needs them.
STATES_BEHIND: Final = (SETTLED_AFTER, SETTLED_AFTER + DAY)


class DailyLogError(CourierError):
    """The daily log cannot be used or grown as asked; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """The days that are done, both included, and what they were made with.

    as_of: the clock by which the last ones were added; None where it was not kept.
    """

    first: date
    last: date
    config: Mapping[str, int]
    sampled_negatives: bool
    as_of: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which days to compute, so that the log holds `first` to `last`; all days are included."""

    first: date
    last: date
    write_from: date  # days before it stand

    @property
    def read_from(self) -> date:
        """The first day of which raw events are needed."""
        return max(self.first, self.write_from - NEEDS_BEFORE)

    @property
    def days(self) -> list[date]:
        """The days to write."""
        return [self.write_from + n * DAY for n in range((self.last - self.write_from) // DAY + 1)]


def plan(mark: Watermark | None, start: date, end: date) -> Plan:
    """What to do to add the days `start` to `end` or to compute them again.

    Everything that follows `start` is computed again up to the watermark: histories go on from day to day. Of what lies
    before, the days that were not settled yet.  Raises DailyLogError where the days do not join the log.
    """
    if end < start:
        raise DailyLogError(f"--to {end} lies before --from {start}: give the later day as --to")
    if mark is None:
        return Plan(first=start, last=end, write_from=start)
    if start > mark.last + DAY:
        raise DailyLogError(
            f"the daily log ends with {mark.last}, and {start} would leave a gap: "
            f"say `courier sequences --from {mark.last + DAY} --to {end}`"
        )
    first = min(mark.first, start)
    return Plan(first=first, last=max(mark.last, end), write_from=max(first, start - SETTLED_AFTER))


def asked_days(day: datetime | None, start: datetime | None, end: datetime | None) -> tuple[date, date] | None:
    """The first and the last day that a command line asks for, or None. Raises DailyLogError for half a range."""
    if day is not None and (start, end) == (None, None):
        return day.date(), day.date()
    if (start is None) != (end is None) or (day is not None and start is not None):
        raise DailyLogError("give --date alone, or both --from and --to")
    return None if start is None or end is None else (start.date(), end.date())


def states_kept(last: date) -> set[date]:
    """The days as of whose end a log that ends with `last` keeps the users' states."""
    return {last - behind for behind in STATES_BEHIND}


def settled_with(day: date, last: date) -> date:
    """The last day that could bear upon `day` in a log that ends with `last`."""
    return min(day + SETTLED_AFTER, last)


def midnight(day: date) -> datetime:
    """The moment at which a day begins."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


# --- on disk --------------------------------------------------------------------------------------------------------


def log_folder(workspace: AnyPath) -> AnyPath:
    """Where the log lies."""
    return workspace / "days"


def day_folder(workspace: AnyPath, day: date) -> AnyPath:
    """Where the artifact of a day lies."""
    return log_folder(workspace) / day.isoformat()


def undated_folder(workspace: AnyPath) -> AnyPath:
    """Where the rejected rows lie whose time is not known, or is still to come."""
    return log_folder(workspace) / "undated"


def state_folder(workspace: AnyPath, day: date) -> AnyPath:
    """Where the users' last clicks as of the end of a day lie."""
    return log_folder(workspace) / "states" / day.isoformat()


def read_watermark(workspace: AnyPath) -> Watermark | None:
    """The watermark, or None where no log has been begun."""
    try:
        said = json.loads((log_folder(workspace) / "watermark.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    first, last = (date.fromisoformat(said[name]) for name in ("first", "last"))
    as_of = datetime.fromisoformat(said["as_of"]) if said.get("as_of") else None
    return Watermark(
        first=first, last=last, config=said["config"], sampled_negatives=said["sampled_negatives"], as_of=as_of
    )


def write_watermark(workspace: AnyPath, mark: Watermark) -> None:
    """Say that the log holds these days."""
    said = asdict(mark) | {"first": mark.first.isoformat(), "last": mark.last.isoformat()}
    said["as_of"] = mark.as_of and mark.as_of.isoformat()
    artifact.write_whole(log_folder(workspace) / "watermark.json", (strict_json.dumps(said, indent=1) + "\n").encode())


def begin_writing(workspace: AnyPath, todo: Plan) -> None:
    """Say that the days from `write_from` on are being replaced: until `end_writing` the log cannot be read."""
    said = strict_json.dumps({"from": todo.write_from.isoformat(), "to": todo.last.isoformat()})
    artifact.write_whole(log_folder(workspace) / WRITING, said.encode())


def end_writing(workspace: AnyPath) -> None:
    """Say that all days are what the watermark says."""
    (log_folder(workspace) / WRITING).unlink(missing_ok=True)


def refuse_cut_short(workspace: AnyPath, rewritten_from: date | None = None) -> None:
    """Raises DailyLogError where an adding of days was cut short, unless all that it touched is written again.

    rewritten_from: the first day that is about to be written; None for who only reads.
    """
    try:
        said = json.loads((log_folder(workspace) / WRITING).read_text("utf-8"))
    except FileNotFoundError:
        return
    if rewritten_from is None or rewritten_from > date.fromisoformat(said["from"]):
        raise DailyLogError(
            f"an adding of days to {log_folder(workspace)} was cut short: "
            f"say `courier sequences --from {said['from']} --to {said['to']}`"
        )


def log_digest(workspace: AnyPath) -> str | None:
    """The identity of what the log holds, whenever it was written; None where there is no log.

    Raises DailyLogError where a day is missing or is not what the watermark says.
    """
    mark = read_watermark(workspace)
    if mark is None:
        return None
    days = {name: {"files": one.files, "facts": one.facts} for name, one in read_days(workspace, mark).items()}
    identity = {"days": days, "config": mark.config, "sampled_negatives": mark.sampled_negatives}
    return hashlib.sha256(strict_json.dumps(identity, sort_keys=True, default=dict).encode()).hexdigest()


def sequences_inputs(folder: Path, _raw: AnyPath, _hasher: Hasher) -> dict[str, str]:
    """What the sequences of a workspace are made from besides the events: its daily log, where one was begun."""
    days = log_digest(folder)
    return {} if days is None else {"days": days}


def read_days(workspace: AnyPath, mark: Watermark) -> dict[str, artifact.Manifest]:
    """The manifests of all days in order, and of the undated rows, by their folders' names.

    Raises DailyLogError where one is missing, damaged, or was written by an adding of days that never ended.
    """
    refuse_cut_short(workspace)
    found: dict[str, artifact.Manifest] = {}
    for day in Plan(first=mark.first, last=mark.last, write_from=mark.first).days:
        folder = day_folder(workspace, day)
        found[folder.name] = one = read_day(workspace, day, mark.last)
        if one.facts["settled_with"] != settled_with(day, mark.last).isoformat():
            raise DailyLogError(
                f"{folder} was computed for another watermark than {mark.last}, as an adding of days was cut short: "
                f"say `courier sequences --from {day} --to {mark.last}`"
            )
    folder = undated_folder(workspace)
    found[folder.name] = _whole(folder, "undated", mark.last, mark.last)
    for name, one in found.items():
        if missing := [count for count in COUNTS if count not in one.facts]:
            raise DailyLogError(
                f"{log_folder(workspace) / name} does not count {', '.join(missing)}, as days of an earlier version: "
                f"say `courier sequences --from {mark.first} --to {mark.last}` to build the log again"
            )
    return found


def read_day(workspace: AnyPath, day: date, last: date) -> artifact.Manifest:
    """The manifest of a day of a log that ends with `last`. Raises DailyLogError where it is missing or damaged."""
    return _whole(day_folder(workspace, day), "day", day, last)


def _whole(folder: AnyPath, kind: str, day: date, last: date) -> artifact.Manifest:
    try:
        return artifact.read(folder, kind=kind)
    except (artifact.ArtifactMissing, artifact.ArtifactMismatch):
        raise DailyLogError(
            f"{folder} is missing or damaged: say `courier sequences --from {day} --to {last}`"
        ) from None


def sum_facts(facts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of all days as those of one: counts add up, and the first and last moments are those of all."""
    refused: dict[str, int] = {}
    for one in facts:
        for reason, count in one["events_rejected"].items():
            refused[reason] = refused.get(reason, 0) + count
    return {
        **{name: sum(one[name] for one in facts) for name in COUNTS},
        "events_rejected": {reason: refused[reason] for reason in sorted(refused)},
        "first": min((one["first"] for one in facts if one["first"] is not None), default=None),
        "last": max((one["last"] for one in facts if one["last"] is not None), default=None),
    }
