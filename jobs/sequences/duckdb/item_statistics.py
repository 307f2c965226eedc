"""Count what happened to each item and each user in windows of days, at every midnight at which a count changes."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import duckdb
import structlog

from feature_repo.contract import EVENT_TIME, SMOOTHING_CLICKS, SMOOTHING_IMPRESSIONS, WINDOWS_DAYS
from jobs.engines.duckdb_session import connect
from jobs.rules.statistics import AT, CLICKS, IMPRESSIONS, VIEWS, midnight_after
from jobs.sequences.duckdb.moments import DAY_US, day_of, number
from jobs.sequences.duckdb.parts import Rows, parquet_files, write_parts
from model import artifact

log = structlog.get_logger()

SPILLED: Final = ".spilled_statistics"  # hidden, for no manifest lists it
KINDS: Final = {"int": "int64", "float": "float64"}
# A day's events enter every window at the next midnight, and leave it that many days later: so a few rows for each day
# with events say it all, however many quiet years lie between them.
COUNTS: Final = """
WITH per_day AS (
  SELECT {key}, {shown_day} AS day, count(*) AS impressions, 0 AS clicks FROM ({impressions}) GROUP BY ALL
  UNION ALL SELECT {key}, {clicked_day}, 0, count(*) FROM ({clicks}) GROUP BY ALL
), moved AS ({moves}
), steps AS (
  SELECT {key}, day, {sums} FROM moved GROUP BY ALL HAVING {some_changed} AND day <= {until}
)
SELECT {key}, day * {day_us} AS {time}, {running} FROM steps
WINDOW so_far AS (PARTITION BY {key} ORDER BY day ROWS UNBOUNDED PRECEDING)
"""


def statistics(impressions: str, clicks: str, *, key: str, prefix: str, windows: Sequence[int], until: datetime) -> str:
    """A query of the counts of [D - window, D), valid from event_timestamp = midnight D <= until, where one changes.

    impressions, clicks: queries of (key, shown_at) and (key, event_time), moments as TIMESTAMPTZ.
    Columns: key, event_timestamp (microseconds since 1970), and for each window, in order,
    `<prefix>_impressions_<days>d`, `<prefix>_clicks_<days>d` (BIGINT) and `<prefix>_ctr_<days>d`, smoothed (DOUBLE).
    jobs.rules.statistics says the same.
    """
    names = {(what, days): f"{prefix}_{what}_{days}d" for days in windows for what in (IMPRESSIONS, CLICKS)}
    moves = [(1, "", windows)] + [(1 + days, "-", [days]) for days in windows]
    places = {
        "impressions": impressions,
        "clicks": clicks,
        "shown_day": day_of(f"epoch_us({AT[IMPRESSIONS]})"),
        "clicked_day": day_of(f"epoch_us({AT[CLICKS]})"),
        "moves": "\nUNION ALL".join(_move(key, later, sign, names, of) for later, sign, of in moves),
        "sums": ", ".join(f"sum({name}) AS {name}" for name in names.values()),
        "some_changed": "(" + " OR ".join(f"sum(moved.{name}) <> 0" for name in names.values()) + ")",
        "running": ", ".join(f"sum({name}) OVER so_far AS {name}" for name in names.values()),
        "until": str(number(until.date())),
        "key": key,
        "day_us": str(DAY_US),
        "time": EVENT_TIME,
    }
    query = COUNTS
    for name, sql in places.items():
        query = query.replace(f"{{{name}}}", sql)
    columns = [column for days in windows for column in _of_window(prefix, days)]
    return f"SELECT {key}, {EVENT_TIME}, {', '.join(columns)} FROM ({query})"


def _of_window(prefix: str, days: int) -> tuple[str, ...]:
    shown, clicked = (f"{prefix}_{what}_{days}d" for what in (IMPRESSIONS, CLICKS))
    smoothed = f"({clicked} + {SMOOTHING_CLICKS}::DOUBLE) / ({shown} + {SMOOTHING_IMPRESSIONS}::DOUBLE)"
    return f"{shown}::BIGINT AS {shown}", f"{clicked}::BIGINT AS {clicked}", f"{smoothed} AS {prefix}_ctr_{days}d"


def _move(key: str, later: int, sign: str, names: Mapping[tuple[str, int], str], windows: Sequence[int]) -> str:
    """What a day's events change at the midnight `later` days after its own, in these windows."""
    changes = (f"{sign}{what} AS {name}" if days in windows else f"0 AS {name}" for (what, days), name in names.items())
    return f"\n  SELECT {key}, day + {later} AS day, {', '.join(changes)} FROM per_day"


def write_statistics(sequences: Path, out: Path) -> dict[str, int]:
    """Write the folders item_statistics and user_statistics under `out`; returns the rows of each.

    sequences: a sequences artifact.  Raises ArtifactMissing, ArtifactMismatch.
    """
    manifest = artifact.read(sequences, kind="sequences")
    until = midnight_after(datetime.fromisoformat(manifest.facts["splits"]["end"]))
    with connect(out / SPILLED) as db:
        rows = {view.name: _write(db, sequences, out, prefix, until) for prefix, (_, view) in VIEWS.items()}
    log.info("statistics_written", until=until.isoformat(), **rows)
    return rows


def _write(db: duckdb.DuckDBPyConnection, sequences: Path, out: Path, prefix: str, until: datetime) -> int:
    key, view = VIEWS[prefix]
    shown, clicked = (
        f"SELECT {key}, {AT[name]} FROM {parquet_files(sequences / name)}" for name in (IMPRESSIONS, CLICKS)
    )
    query = statistics(shown, clicked, key=key, prefix=prefix, windows=WINDOWS_DAYS, until=until)
    db.execute(f"CREATE TEMP TABLE {view.name} AS {query}")
    columns = {key: "text", EVENT_TIME: "moment"} | {one.name: KINDS[one.kind] for one in view.features}
    table = f"SELECT * FROM {view.name} WHERE {{range}}"
    write_parts(db, Rows(table, key, (key, EVENT_TIME), columns, view.name), out / view.name)
    return int(db.sql(f"SELECT count(*) FROM {view.name}").fetchall()[0][0])
