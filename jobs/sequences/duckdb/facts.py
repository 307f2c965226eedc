"""Count what became of the events: the figures that a sequences artifact says of itself."""

from typing import Any, Final

import duckdb

from jobs.sequences.duckdb.event_validation import CLICK
from jobs.sequences.duckdb.moments import day_of

# Impressions that were sent again: only pages with an item that came more than once are looked at twice.
REPEATED: Final = f"""
CREATE TEMP TABLE repeated AS
SELECT {day_of("us")} AS day, sum(times - 1) AS times FROM (
  SELECT us, count(*) AS times
  FROM seen SEMI JOIN (SELECT page, item_id FROM shown WHERE times > 1) twice USING (page, item_id)
  GROUP BY page, item_id, us
) GROUP BY ALL
"""
COUNTED: Final = f"""
SELECT {{day}} AS day, sum(rows) AS rows, sum(again) AS again, sum(clicks) AS clicks,
  min(first) AS first, max(last) AS last
FROM (
  SELECT {{day_of}} AS day, count(*) AS rows, 0 AS again, 0 AS clicks, min(us) AS first, max(us) AS last
  FROM seen GROUP BY 1
  UNION ALL SELECT {{day_of}}, sum(times), sum(times - 1), count(*) FILTER ({CLICK}), min(us), max(us)
  FROM deed GROUP BY 1
  UNION ALL SELECT {{repeated_day}}, 0, sum(times), 0, NULL, NULL FROM repeated GROUP BY 1
) GROUP BY 1
"""


def count_repeated(db: duckdb.DuckDBPyConnection) -> None:
    """Make the table `repeated` of `seen` and `shown`: how many impressions of a day had been sent before."""
    db.execute(REPEATED)


def count_events(db: duckdb.DuckDBPyConnection, *, by_day: bool = False) -> dict[int | None, dict[str, Any]]:
    """Events read, accepted, rejected (reason -> rows), duplicates, clicks, first and last: of each day, or of all.

    first, last: the times of the accepted events in microseconds since 1970, None where there is none.
    The key is the day, or None where it has none or all are counted together.
    """
    places = (
        {"day": "day", "day_of": day_of("us"), "repeated_day": "day"}
        if by_day
        else dict.fromkeys(("day", "day_of", "repeated_day"), "NULL::INTEGER")
    )
    query = COUNTED
    for name, sql in places.items():
        query = query.replace(f"{{{name}}}", sql)
    refused: dict[int | None, dict[str, int]] = {}
    day = "day" if by_day else "NULL"
    for key, reason, rows in db.sql(f"SELECT {day}, reason, count(*) FROM rejected GROUP BY ALL").fetchall():
        refused.setdefault(key, {})[reason] = int(rows)
    kept = {row[0]: row[1:] for row in db.sql(query).fetchall()}
    keys = {*kept, *refused} if by_day else {None}
    return {key: event_facts(kept.get(key), refused.get(key, {})) for key in keys}


def event_facts(kept: tuple[Any, ...] | None, refused: dict[str, int]) -> dict[str, Any]:
    """What is said of some events.

    kept: rows accepted, how many of them had been sent before, clicks, first, last.  refused: reason -> rows.
    """
    rows, again, clicks, first, last = kept or (0, 0, 0, None, None)
    accepted = int(rows or 0)
    return {
        "events_read": accepted + sum(refused.values()),
        "events_accepted": accepted,
        "events_rejected": dict(sorted(refused.items())),
        "duplicates": int(again or 0),
        "clicks": int(clicks or 0),
        "first": first,
        "last": last,
    }


def count_pages(db: duckdb.DuckDBPyConnection, *, by_day: bool = False) -> dict[int | None, dict[str, int]]:
    """Page views, impressions, and the clicks that label one: of each day, or of all under None."""
    day = day_of("opened_us") if by_day else "NULL::INTEGER"
    rows = db.sql(
        f"SELECT {day} AS day, count(*), sum(impressions), sum(attributed) FROM opened JOIN ("
        "SELECT page, count(*) AS impressions, sum(clicks) AS attributed FROM shown GROUP BY page"
        ") USING (page) GROUP BY 1"
    ).fetchall()
    return {key: {"requests": n, "impressions": int(shown), "attributed": int(hit)} for key, n, shown, hit in rows}


def count_distinct(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many users and items stand in the accepted events."""
    sources = {"users": "SELECT opened_by FROM opened UNION SELECT user_id FROM deed"}
    sources["items"] = "SELECT item_id FROM shown UNION SELECT item_id FROM deed"
    return {name: db.sql(f"SELECT count(*) FROM ({query})").fetchall()[0][0] for name, query in sources.items()}


def capped_users(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many users clicked beyond the cap, and the most clicks of one of them on one day."""
    [row] = db.sql("SELECT count(DISTINCT user_id), coalesce(max(clicks), 0) FROM over_cap").fetchall()
    return {"users": row[0], "most_clicks": row[1]}
