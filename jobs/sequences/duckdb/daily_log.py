"""The daily log by DuckDB: the days of a plan, and the sequences of all days."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

import duckdb

from jobs.config import SequencesConfig
from jobs.engines.duckdb_session import connect, literal
from jobs.raw.canonical import CanonicalTable
from jobs.raw.duckdb_tables import events_between, undated_events
from jobs.rules.events import EPOCH, TOO_MANY_CLICKS, micros
from jobs.rules.sequence_tables import TABLES
from jobs.sequences.daily import log as daily_log
from jobs.sequences.daily.engine import DAY, Earlier
from jobs.sequences.daily.log import DailyLogError, Plan, midnight
from jobs.sequences.daily.raw_days_duckdb import count_days
from jobs.sequences.duckdb.behavior_sequences import (
    KIND,
    PART_SIZES,
    SPILLED,
    make_tables,
    rejected,
    tables,
    write_tables,
)
from jobs.sequences.duckdb.event_validation import validate
from jobs.sequences.duckdb.facts import count_distinct, count_events, count_pages, count_periods, event_facts
from jobs.sequences.duckdb.histories import HISTORY_ROWS, make_clicked
from jobs.sequences.duckdb.moments import day_of, number
from jobs.sequences.duckdb.page_views import split_of, written_page_views
from jobs.sequences.duckdb.parts import PART_ROWS, Rows, read_files, write_parts
from jobs.sequences.facts import longest, notes, of_artifact, require_page_views, tell_written
from model import artifact
from model.artifact import AnyPath, Manifest

# The day that a row belongs to: a snapshot to that of its click.
DAYS_OF: Final = {
    **dict.fromkeys(("impressions", "page_views"), day_of("request_time")),
    "histories": day_of("event_timestamp - 1"),
    **dict.fromkeys(("clicks", "conversions"), day_of("event_time")),
    "rejected": DAY,
}
LAST_CLICKS: Final = """
SELECT user_id, max(us) AS event_time,
  list({'at': make_timestamptz(us), 'item_id': item_id} ORDER BY us DESC, item_id) AS history
FROM (
  SELECT * FROM clicked WHERE us < {before} AND {range}
  QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY us DESC, item_id) <= {length}
) GROUP BY user_id
"""
EARLIER_STATE: Final = """
INSERT INTO clicked SELECT user_id, epoch_us(click."at"), click.item_id, FALSE
FROM (SELECT user_id, unnest(history) AS click FROM {files})
"""
EARLIER_DAYS: Final = """
INSERT INTO clicked SELECT DISTINCT user_id, epoch_us(event_time), item_id, FALSE FROM {files}
"""
# The tables that sequences are written of, made of what days have written.
OPENED: Final = """
CREATE TEMP TABLE opened AS
SELECT (row_number() OVER (ORDER BY request_id, request_time) - 1)::INTEGER AS page,
  request_id, user_id AS opened_by, epoch_us(request_time) AS opened_us, item_ids, labels, history_item_ids
FROM {page_views}
"""
SHOWN: Final = """
CREATE TEMP TABLE shown AS
SELECT page, item_id, position, epoch_us(shown_at) AS shown_us, clicked::BIGINT AS clicks
FROM {impressions} one JOIN opened ON one.request_id = opened.request_id AND epoch_us(one.request_time) = opened_us
ORDER BY page, position, item_id
"""
DEED: Final = """
CREATE TEMP TABLE deed AS
SELECT user_id, item_id, epoch_us(event_time) AS us, 'click' AS event_type, request_id FROM {clicks}
UNION ALL SELECT user_id, item_id, epoch_us(event_time), event_type, request_id FROM {conversions}
"""
REJECTED: Final = 'CREATE TEMP TABLE rejected AS SELECT "table", "row", reason FROM {rejected}'


@dataclass(frozen=True, slots=True)
class DuckdbDays:
    """jobs.sequences.daily.engine.NewDays."""

    db: duckdb.DuckDBPyConnection
    todo: Plan
    config: SequencesConfig
    facts: Mapping[date, Mapping[str, Any]]

    def write_tables(self, folder: AnyPath) -> None:
        """Write each table's rows of each day that is planned to `folder`/TABLE/day=N."""
        for name, rows in tables(self.config, None).items():
            (_local(folder) / name).mkdir()
            for day in self.todo.days:
                query = f"SELECT * FROM ({rows.query}) WHERE {DAYS_OF[name]} = {number(day)}"
                [[some]] = self.db.sql(f"SELECT count(*) FROM ({query.replace('{range}', 'TRUE')})").fetchall()
                if some:
                    target = _local(folder) / name / f"{DAY}={number(day)}"
                    write_parts(self.db, replace(rows, query=query), target, PART_SIZES.get(name, PART_ROWS))

    def write_state(self, day: date, folder: AnyPath) -> None:
        """Write each user's last snapshot as of the end of the day."""
        before, length = micros(midnight(day + daily_log.DAY)), longest(self.config)
        query = LAST_CLICKS.replace("{before}", str(before)).replace("{length}", str(length))
        columns = {"user_id": "text", "event_time": "moment", "history": "list of struct"}
        clicked = f"(SELECT user_id FROM clicked WHERE us < {before})"
        write_parts(self.db, Rows(query, "user_id", ("user_id",), columns, clicked), _local(folder), HISTORY_ROWS)


@dataclass(frozen=True, slots=True)
class DuckdbEngine:
    """jobs.sequences.daily.engine.DailyEngine.  scratch: a folder of this machine for what memory cannot hold."""

    scratch: AnyPath

    def count_days(self, table: CanonicalTable) -> Mapping[str, Mapping[str, int]]:
        """The rows of each day in each file of events."""
        with self._database() as db:
            return count_days(db, table)

    @contextmanager
    def new_days(
        self, table: CanonicalTable, as_of: datetime, todo: Plan, config: SequencesConfig, earlier: Earlier
    ) -> Iterator[DuckdbDays]:
        """The days of a plan."""
        start, end = midnight(todo.read_from), midnight(todo.last + daily_log.DAY)
        with self._database() as db:
            cap = config.max_clicks_per_day
            validate(db, events_between(db, table, start, end, as_of), cap)
            make_clicked(db, since=micros(midnight(todo.write_from)))
            _add_earlier(db, earlier)
            make_tables(db, config)
            yield DuckdbDays(db, todo, config, _facts(db, config.page_view_size))

    def write_undated(self, table: CanonicalTable, as_of: datetime, folder: AnyPath) -> Mapping[str, Any]:
        """Write the rejected rows whose time is not known or lies ahead."""
        with self._database() as db:
            made = 'CREATE TEMP TABLE rejected AS SELECT \'events\' AS "table", "row", reason FROM'
            db.execute(f"{made} ({undated_events(db, table, as_of)})")
            write_parts(db, rejected(), _local(folder))
            counts = db.sql("SELECT reason, count(*) FROM rejected GROUP BY ALL").fetchall()
            refused = {reason: int(rows) for reason, rows in counts}
            return event_facts(None, refused) | {"events_read": sum(refused.values())}

    def write_sequences(
        self,
        folders: Sequence[AnyPath],
        counted: Mapping[str, Any],
        *,
        out: AnyPath,
        inputs: Mapping[str, str],
        config: SequencesConfig,
    ) -> Manifest:
        """Write the sequences of the days in these folders."""
        began = time.monotonic()
        require_page_views(counted)
        with artifact.write(out, kind=KIND, inputs=inputs, config=asdict(config)) as draft:
            with connect(draft.path / SPILLED) as db:
                for step in (OPENED, SHOWN, DEED, REJECTED):
                    db.execute(_of_files(step, folders))
                make_clicked(db)
                counts = {**counted, **count_distinct(db), "capped_users": _capped(db, counted)}
                splits = split_of(db, counts, config)
                counts["requests_by_period"] = count_periods(db, splits)
                written = tables(config, splits) | {"page_views": written_page_views(splits)}
                write_tables(db, written, draft.path)
            draft.facts, draft.notes = of_artifact(counts, splits), notes(counts)
        tell_written(draft.facts, began)
        return artifact.read(out, kind=KIND)

    @contextmanager
    def _database(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with artifact.scratch(_local(self.scratch)) as folder, connect(_local(folder) / "spilled") as db:
            yield db


def _add_earlier(db: duckdb.DuckDBPyConnection, earlier: Earlier) -> None:
    """Let the users' histories go on from what they had clicked before."""
    if earlier.state is not None:
        state = {"user_id": "VARCHAR", "history": 'STRUCT("at" TIMESTAMPTZ, item_id VARCHAR)[]'}
        db.execute(EARLIER_STATE.replace("{files}", read_files([earlier.state], state)))
    else:
        folders = [day / "clicks" for day in earlier.days]
        db.execute(EARLIER_DAYS.replace("{files}", read_files(folders, TABLES["clicks"].columns)))


def _of_files(step: str, folders: Sequence[AnyPath]) -> str:
    for name, table in TABLES.items():
        step = step.replace(f"{{{name}}}", read_files([folder / name for folder in folders], table.columns))
    return step


def _facts(db: duckdb.DuckDBPyConnection, size: int) -> dict[date, dict[str, Any]]:
    most = db.sql("SELECT day, max(clicks) FROM over_cap GROUP BY day").fetchall()
    found: dict[date, dict[str, Any]] = {}
    for counts in (count_events(db, by_day=True), count_pages(db, size, by_day=True)):
        for day, facts in counts.items():
            found.setdefault(_date(day), {}).update(facts)
    for day, clicks in most:
        found.setdefault(_date(day), {})["most_clicks"] = clicks
    return found


def _capped(db: duckdb.DuckDBPyConnection, counted: Mapping[str, Any]) -> dict[str, int]:
    whose = "json_extract_string(\"row\", '$.user_id')"
    [[users]] = db.sql(
        f"SELECT count(DISTINCT {whose}) FROM rejected WHERE reason = {literal(TOO_MANY_CLICKS)}"
    ).fetchall()
    return {**counted["capped_users"], "users": users}


def _date(day: int | None) -> date:
    if day is None:
        raise ValueError("an event of a day has no day")
    return EPOCH.date() + day * daily_log.DAY


def _local(folder: AnyPath) -> Path:
    if not isinstance(folder, Path):
        raise DailyLogError(f"{folder} is no folder of this machine, where DuckDB could write: name a --master")
    return folder
