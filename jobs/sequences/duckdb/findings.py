"""What a check of raw tables finds, by DuckDB."""

from datetime import datetime, timedelta
from typing import Final

import duckdb

from jobs.raw import duckdb_findings as raw_findings
from jobs.raw.check import EXAMPLES, Day, Found
from jobs.raw.duckdb_files import reading
from jobs.raw.duckdb_tables import REASON, ROW, judged_items, read_events, read_items
from jobs.raw.folder import table_files
from jobs.rules.events import EPOCH
from jobs.sequences.duckdb.event_validation import CLICK, validate
from jobs.sequences.duckdb.facts import count_events, count_repeated
from jobs.sequences.duckdb.moments import day_of, moment
from jobs.sequences.duckdb.page_views import make_shown
from model.artifact import AnyPath

# The accepted events, each once.
ONCE: Final = """
CREATE OR REPLACE TEMP TABLE once AS
SELECT item_id, us FROM (SELECT DISTINCT page, item_id, us FROM seen) UNION ALL SELECT item_id, us FROM deed
"""
OF_UNKNOWN_ITEMS: Final = f"SELECT count(*) FROM once ANTI JOIN (FROM items WHERE {REASON} IS NULL) USING (item_id)"
WITHOUT_EVENTS: Final = f"SELECT count(*) FROM (FROM items WHERE {REASON} IS NULL) ANTI JOIN once USING (item_id)"
UNMATCHED_CLICKS: Final = f"SELECT count(*) FROM (FROM deed WHERE {CLICK}) ANTI JOIN shown USING (page, item_id)"
DAYS: Final = f"SELECT {day_of('us')} AS day, count(*), min(us), max(us) FROM once GROUP BY day ORDER BY day"
REASONS: Final = f"SELECT {REASON}, count(*) FROM items GROUP BY {REASON} ORDER BY {REASON}"


def found(db: duckdb.DuckDBPyConnection, raw: AnyPath, as_of: datetime, max_clicks_per_day: int) -> dict[str, Found]:
    """What the tables `events` and `items` hold. Raises RawTableUnusable, RawTableMissing.

    The database is to be empty; it holds tables afterwards.
    """
    reading(db, raw, lambda: validate(db, read_events(db, raw, as_of), max_clicks_per_day))
    reading(db, raw, lambda: db.execute(f"CREATE TEMP TABLE items AS {read_items(db, raw)}"))
    make_shown(db)
    count_repeated(db)
    db.execute(ONCE)
    counted = count_events(db)[None]
    return {
        "events": Found(
            read=raw_findings.rows_read(db, raw, "events"),
            accepted=counted["events_accepted"],
            rejected=counted["events_rejected"],
            duplicates=counted["duplicates"],
            doubtful={
                "of_unknown_items": _count(db, OF_UNKNOWN_ITEMS),
                "unmatched_clicks": _count(db, UNMATCHED_CLICKS),
            },
            days=_days(db),
            examples=raw_findings.examples(db, raw, "events", "FROM rejected", read_events(db, raw, as_of), EXAMPLES)
            if counted["events_rejected"]
            else {},
        ),
        "items": _items(db, raw),
    }


def _items(db: duckdb.DuckDBPyConnection, raw: AnyPath) -> Found:
    reasons = dict(db.execute(REASONS).fetchall())
    accepted = reasons.pop(None, 0)
    alone, rejected = judged_items(db, table_files(raw, "items")), f"FROM items WHERE {ROW} IS NOT NULL"
    return Found(
        read=raw_findings.rows_read(db, raw, "items"),
        accepted=accepted,
        rejected=reasons,
        doubtful={"without_events": _count(db, WITHOUT_EVENTS)},
        examples=raw_findings.examples(db, raw, "items", rejected, alone, EXAMPLES) if reasons else {},
    )


def _count(db: duckdb.DuckDBPyConnection, query: str) -> int:
    [[count]] = db.execute(query).fetchall()
    return int(count)


def _days(db: duckdb.DuckDBPyConnection) -> list[Day]:
    found = db.execute(DAYS).fetchall()
    dates = [EPOCH.date() + timedelta(days=day) for day, *_ in found]
    return [
        Day(day.isoformat(), events, moment(first).isoformat(), moment(last).isoformat())
        for day, (_, events, first, last) in zip(dates, found, strict=True)
    ]
