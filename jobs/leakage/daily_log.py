"""Grow a daily log over the probes, the future lying beside it, and hold it against builds that know no future.

The raw folder holds every event from the beginning, and the log is grown to the cutoff, then day by day beyond it. At
the cutoff its sequences must be, file for file, those of a build from the events before it; in the end those of a
build from all events. In between, clicks of a day long settled come late: no adding may take them in, and the log must
report them.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobs.config import SequencesConfig
from jobs.features.offline import read_parquet
from jobs.leakage.check import CheckResult
from jobs.leakage.planted_probes import PROBE_ID
from jobs.leakage.probe_run import ProbeRun, copy
from jobs.raw.canonical import canonical_table
from jobs.sequences.daily.log import DAY, NEEDS_BEFORE, SETTLED_AFTER, midnight, read_watermark
from jobs.sequences.daily.raw_days import known_left_out
from model import artifact

if TYPE_CHECKING:
    import duckdb

# Of what lies so far before an added day, nothing is read any more.
UNREAD_AFTER: Final = SETTLED_AFTER + NEEDS_BEFORE + DAY


def grow_log(
    connection: "duckdb.DuckDBPyConnection",
    workspace: Path,
    *,
    whole: ProbeRun,
    before: ProbeRun,
    config: SequencesConfig,
) -> Iterator[CheckResult]:
    """Every check of the log, one result each. whole, before: runs over all events, and over those before the cutoff.

    workspace: an empty folder for the log, and for a raw folder of its own.
    """
    from jobs.sequences.build import build
    from jobs.sequences.daily.build import add_days

    raw, events = workspace / "raw", read_parquet(whole.workspace / "raw" / "events.parquet")
    (raw / "events").mkdir(parents=True)
    copy(connection, f"FROM {events}", raw / "events" / "in-time.parquet")
    first, cutoff, last = _days(connection, events)

    def grown(start: date, end: date) -> None:
        if start <= end:
            add_days(
                events=canonical_table(raw, "events"),
                sampled_negatives=False,
                workspace=workspace,
                start=start,
                end=end,
                config=config,
            )

    def made(name: str) -> Path:
        out = workspace / "sequences" / name
        build(ingest=raw, raw=raw, workspace=workspace, out=out, config=config)
        return out

    grown(first, cutoff - 2 * DAY)
    grown(cutoff - DAY, cutoff - DAY)
    claim = (
        "a log that ends at a midnight is what its past alone builds, though the days after it lie in the raw folder"
    )
    yield _same("probe.daily_log.future", claim, made("at-cutoff"), before.sequences)
    late = first + UNREAD_AFTER <= cutoff
    if late:
        copy(connection, _late_clicks(first), raw / "events" / "late.parquet")
    grown(cutoff, cutoff)
    grown(cutoff + DAY, last)
    claim = "days added one after another are what all events build, and take in nothing that is late for a settled day"
    yield _same("probe.daily_log.late", claim, made("at-the-end"), whole.sequences)
    if late:
        yield _reported(workspace, first)


def _days(connection: "duckdb.DuckDBPyConnection", events: str) -> tuple[date, date, date]:
    """The first day, the day that begins at the cutoff, and the last day."""
    query = f"SELECT min(event_time), (SELECT moment FROM cutoff), max(event_time) FROM {events}"
    [moments] = connection.execute(query).fetchall()
    first, cutoff, last = (moment.astimezone(UTC).date() for moment in moments)
    return first, cutoff, last


def _late_clicks(day: date) -> str:
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC).isoformat()
    return f"""
        SELECT DISTINCT user_id, '{PROBE_ID}-too-late' AS item_id, TIMESTAMPTZ '{noon}' AS event_time,
            'click' AS event_type, '{PROBE_ID}-too-late' AS request_id, NULL::INTEGER AS "position" FROM probes
    """


def _same(name: str, claim: str, found: Path, expected: Path) -> CheckResult:
    """Whether two sequences artifacts hold the same tables, to the byte; a row is a file."""
    sides = [artifact.read(path, kind="sequences").files for path in (found, expected)]
    names = sorted(sides[0].keys() | sides[1].keys())
    differ = [name for name in names if sides[0].get(name) != sides[1].get(name)]
    example = f"{differ[0]} is another one" if differ else None
    return CheckResult(name=name, claim=claim, rows=len(names), violations=len(differ), example=example, must_see=True)


def _reported(workspace: Path, day: date) -> CheckResult:
    """A control: the log says that the day has changed since it was counted."""
    mark = read_watermark(workspace)
    changed = known_left_out(workspace, mark, midnight(mark.last + DAY)).changed if mark else {}
    claim = "clicks that come late for a settled day are reported"
    unreported = int(set(changed) != {day})
    example = f"{day} is not" if unreported else None
    return CheckResult(
        name="probe.daily_log.late_reported", claim=claim, rows=1, violations=unreported, example=example, must_see=True
    )
