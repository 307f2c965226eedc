"""What a check of raw tables finds, by DuckDB."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

import duckdb

from jobs.engines.duckdb_session import literal
from jobs.raw.canonical import CanonicalTable
from jobs.raw.check import EXAMPLES, REFERENCES, UNKNOWN_ITEMS, Checked, Day, Found
from jobs.raw.duckdb_findings import examples
from jobs.raw.duckdb_tables import items_alone, read_events, read_items
from jobs.raw.typed import LOST, REASON, ROW
from jobs.rules.doubts import Seen
from jobs.rules.events import EARLY_CLICK, EPOCH, IMPRESSION, UNKNOWN_EVENT_TYPE
from jobs.sequences.duckdb.event_validation import CLICK, validate
from jobs.sequences.duckdb.facts import count_events, count_repeated
from jobs.sequences.duckdb.moments import day_of, moment
from jobs.sequences.duckdb.page_views import make_shown

# The accepted events, each once.
ONCE: Final = """
CREATE OR REPLACE TEMP TABLE once AS
SELECT item_id, us FROM (SELECT DISTINCT page, item_id, us FROM seen) UNION ALL SELECT item_id, us FROM deed
"""
OF_UNKNOWN_ITEMS: Final = f"SELECT count(*) FROM once ANTI JOIN (FROM items WHERE {REASON} IS NULL) USING (item_id)"
WITHOUT_EVENTS: Final = f"SELECT count(*) FROM (FROM items WHERE {REASON} IS NULL) ANTI JOIN once USING (item_id)"
UNMATCHED_CLICKS: Final = f"SELECT count(*) FROM (FROM deed WHERE {CLICK}) ANTI JOIN shown USING (page, item_id)"
DAYS: Final = f"SELECT {day_of('us')} AS day, count(*), min(us), max(us) FROM once GROUP BY day ORDER BY day"
LOST_VALUES: Final = (
    f"SELECT unnest({LOST}) AS one, count(*) FROM items WHERE {REASON} IS NULL GROUP BY one ORDER BY one"
)
REASONS: Final = f"SELECT {REASON}, count(*) FROM items GROUP BY {REASON} ORDER BY {REASON}"


# As different systems write one and the same id: 7, 007, 7.0, 7e0, " 7", and letters of either case or composition.
ALIKE: Final = """
CASE WHEN regexp_full_match(trim(item_id), '[+-]?[0-9]+([.]0*)?([eE][+]?[0-9]+)?')
  THEN coalesce(try_cast(try_cast(trim(item_id) AS DOUBLE) AS HUGEINT)::VARCHAR, trim(item_id))
  ELSE lower(nfc_normalize(trim(item_id))) END
"""
PAIR: Final = f"""
SELECT one.item_id, other.item_id
FROM (SELECT item_id, {ALIKE} AS alike FROM (SELECT DISTINCT item_id FROM once ANTI JOIN known USING (item_id))) one
JOIN (SELECT item_id, {ALIKE} AS alike FROM known) other USING (alike) ORDER BY ALL LIMIT 1
"""
KNOWN: Final = f"CREATE OR REPLACE TEMP TABLE known AS SELECT item_id FROM items WHERE {REASON} IS NULL"
TYPES: Final = f"""
SELECT event_type, count(*) FROM deed GROUP BY 1 UNION ALL
SELECT {literal(IMPRESSION)}, count(*) FROM (SELECT DISTINCT page, item_id, us FROM seen)
"""
UNKNOWN_TYPES: Final = f"""
SELECT coalesce(json_extract_string("row", '$.event_type'), ''), count(*) FROM rejected
WHERE reason = {literal(UNKNOWN_EVENT_TYPE)} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5
"""
FIRST_REFERENCES: Final = (
    f"SELECT image_uri FROM items WHERE {REASON} IS NULL AND image_uri IS NOT NULL ORDER BY item_id LIMIT {REFERENCES}"
)
SHOWN: Final = "SELECT count(*), count(*) FILTER (clicks > 0), count(DISTINCT page) FROM shown"


def found(
    db: duckdb.DuckDBPyConnection,
    events: CanonicalTable,
    items: CanonicalTable,
    as_of: datetime,
    max_clicks_per_day: int,
) -> Checked:
    """What the two tables hold. The database is to be empty; it holds tables afterwards."""
    validate(db, read_events(db, events, as_of), max_clicks_per_day)
    db.execute(f"CREATE TEMP TABLE items AS {read_items(db, items)}")
    make_shown(db)
    count_repeated(db)
    db.execute(ONCE)
    counted = count_events(db)[None]
    tables = {
        "events": Found(
            read=events.rows,
            accepted=counted["events_accepted"],
            rejected=counted["events_rejected"],
            duplicates=counted["duplicates"],
            doubtful={
                UNKNOWN_ITEMS: _count(db, OF_UNKNOWN_ITEMS),
                "unmatched_clicks": _count(db, UNMATCHED_CLICKS),
            },
            days=_days(db),
            examples=examples(db, "events", "FROM rejected", read_events(db, events, as_of), EXAMPLES)
            if counted["events_rejected"]
            else {},
        ),
        "items": _items(db, items),
    }
    references = tuple(uri for (uri,) in db.execute(FIRST_REFERENCES).fetchall())
    return Checked(tables=tables, seen=_seen(db, tables), references=references)


def _seen(db: duckdb.DuckDBPyConnection, what: Mapping[str, Found]) -> Seen:
    db.execute(KNOWN)
    events = what["events"]
    [(shown, clicked, pages)] = db.execute(SHOWN).fetchall()
    [(first, last, users)] = db.execute(
        "SELECT min(us), max(us), (SELECT count(*) FROM (SELECT user_id FROM deed UNION SELECT opened_by FROM opened)) "
        "FROM once"
    ).fetchall()
    unknown = events.doubtful[UNKNOWN_ITEMS]
    pair = db.execute(PAIR).fetchone() if unknown else None
    return Seen(
        types={kind: rows for kind, rows in sorted(db.execute(TYPES).fetchall()) if rows},
        unknown_types=dict(db.execute(UNKNOWN_TYPES).fetchall()),
        duplicates=events.duplicates,
        users=users,
        first=None if first is None else moment(first),
        last=None if last is None else moment(last),
        shown=shown,
        clicked=clicked,
        pages=pages,
        early=events.rejected.get(EARLY_CLICK, 0),
        unknown=unknown,
        pair=pair,
        items=what["items"].accepted,
    )


def _items(db: duckdb.DuckDBPyConnection, items: CanonicalTable) -> Found:
    reasons = dict(db.execute(REASONS).fetchall())
    accepted = reasons.pop(None, 0)
    alone, rejected = items_alone(db, items), f"FROM items WHERE {ROW} IS NOT NULL"
    return Found(
        read=items.rows,
        accepted=accepted,
        rejected=reasons,
        doubtful={"without_events": _count(db, WITHOUT_EVENTS)},
        lost=dict(db.execute(LOST_VALUES).fetchall()),
        examples=examples(db, "items", rejected, alone, EXAMPLES) if reasons else {},
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
