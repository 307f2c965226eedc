"""Count what became of the events: the figures that a sequences artifact says of itself."""

from typing import Any, Final

import duckdb

from jobs.rules.page_views import TEST, TRAIN, VALID
from jobs.sequences.duckdb.event_validation import CLICK
from jobs.sequences.duckdb.moments import day_of
from jobs.sequences.duckdb.page_views import period
from jobs.sequences.splits import Splits

# Only items that a page showed more than once are looked at twice: sent again, or shown again at another moment.
REPEATED: Final = """
CREATE TEMP TABLE repeated AS
SELECT page, item_id, us, count(*) AS times
FROM seen SEMI JOIN (SELECT page, item_id FROM shown WHERE times > 1) twice USING (page, item_id)
GROUP BY page, item_id, us
"""
COUNTED: Final = f"""
SELECT {{day}} AS day, sum(read) AS read, sum(rows) AS rows, sum(again) AS again, sum(clicks) AS clicks,
  sum(conversions) AS conversions, min(first) AS first, max(last) AS last
FROM (
  SELECT {{day_of}} AS day, 0 AS read, count(*) AS rows, 0 AS again, 0 AS clicks, 0 AS conversions,
    min(us) AS first, max(us) AS last
  FROM seen GROUP BY 1
  UNION ALL SELECT {{day_of}}, 0, sum(times), sum(times - 1), count(*) FILTER ({CLICK}), count(*) FILTER (NOT {CLICK}),
    min(us), max(us)
  FROM deed GROUP BY 1
  UNION ALL SELECT {{day_of}}, 0, 0, sum(times - 1), 0, 0, NULL, NULL FROM repeated GROUP BY 1
  UNION ALL SELECT {{day}}, sum(rows), 0, 0, 0, 0, NULL, NULL FROM rows_read GROUP BY 1
) GROUP BY 1
"""
COUNTED_PAGES: Final = """
SELECT {day_of} AS day, count(*), sum(impressions), sum(attributed), sum(least(impressions, {size})),
  sum(coalesce(again, 0))
FROM opened
JOIN (SELECT page, count(*) AS impressions, sum(clicks) AS attributed FROM shown GROUP BY page) USING (page)
LEFT JOIN (SELECT page, count(*) - count(DISTINCT item_id) AS again FROM repeated GROUP BY page) USING (page)
GROUP BY 1
"""


def count_repeated(db: duckdb.DuckDBPyConnection) -> None:
    """Make the table `repeated` of `seen` and `shown`: the moments of what a page showed more than once.

    page, item_id, us, times: how often the very same impression came.
    """
    db.execute(REPEATED)


def count_events(db: duckdb.DuckDBPyConnection, *, by_day: bool = False) -> dict[int | None, dict[str, Any]]:
    """What `event_facts` says, of each day, or of all events.

    first, last: the times of the accepted events in microseconds since 1970, None where there is none.
    The key is the day, or None where it has none or all are counted together.
    """
    nowhere = dict.fromkeys(("day", "day_of"), "NULL::INTEGER")
    places = {"day": "day", "day_of": day_of("us")} if by_day else nowhere
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
    """Events read, accepted, rejected (reason -> rows), duplicates, clicks, conversions, first and last.

    kept: rows read, accepted, those sent before, clicks, conversions, first, last.  refused: reason -> rows.
    """
    read, rows, again, clicks, conversions, first, last = kept or (0, 0, 0, 0, 0, None, None)
    return {
        "events_read": int(read or 0),
        "events_accepted": int(rows or 0),
        "events_rejected": dict(sorted(refused.items())),
        "duplicates": int(again or 0),
        "clicks": int(clicks or 0),
        "conversions": int(conversions or 0),
        "first": first,
        "last": last,
    }


def count_pages(db: duckdb.DuckDBPyConnection, size: int, *, by_day: bool = False) -> dict[int | None, dict[str, int]]:
    """Page views, impressions, the clicks that label one, the items of page views cut to `size`, and shown_again.

    Of each day, or of all under None.  shown_again: impressions of an item that its page had shown before.
    """
    day = day_of("opened_us") if by_day else "NULL::INTEGER"
    names = ("requests", "impressions", "attributed", "page_view_items", "shown_again")
    rows = db.sql(COUNTED_PAGES.replace("{day_of}", day).replace("{size}", str(size))).fetchall()
    return {key: dict(zip(names, map(int, counts), strict=True)) for key, *counts in rows}


def count_periods(db: duckdb.DuckDBPyConnection, splits: Splits) -> dict[str, int]:
    """How many page views in `opened` each period holds."""
    counts = dict(db.sql(f"SELECT {period('opened_us', splits)}, count(*) FROM opened GROUP BY 1").fetchall())
    return {name: counts.get(name, 0) for name in (TRAIN, VALID, TEST)}


def count_distinct(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many users and items stand in the accepted events."""
    sources = {"users": "SELECT opened_by FROM opened UNION SELECT user_id FROM deed"}
    sources["items"] = "SELECT item_id FROM shown UNION SELECT item_id FROM deed"
    return {name: db.sql(f"SELECT count(*) FROM ({query})").fetchall()[0][0] for name, query in sources.items()}


def capped_users(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many users clicked beyond the cap, and the most clicks of one of them on one day."""
    [row] = db.sql("SELECT count(DISTINCT user_id), coalesce(max(clicks), 0) FROM over_cap").fetchall()
    return {"users": row[0], "most_clicks": row[1]}
