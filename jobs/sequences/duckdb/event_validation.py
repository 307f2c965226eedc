"""Validate events beside each other: the page view of each, and which contradict it, repeat another or are too many.

Tables, from step to step: moments in microseconds since 1970 (`us`), days in days since then.
    read     the raw events: those acceptable by themselves, and the others with `reason` and `row`
    opened   a row per page view: page (a number, in the order of request_id and time), request_id, since, until,
             opened_us, opened_by, shared
    seen     the accepted impressions, repeats included: page, item_id, position, us
    other    all other acceptable events: clicks, conversions, impressions of another's request; reason where rejected
    deed     the accepted clicks and conversions, each once: with page, null where none, and times it was sent
    over_cap who clicks more than the cap on a day: clicks, and the last one that is accepted
    rows_read how many raw events there are of each day; null where its time is not known
"""

from typing import Final

import duckdb

from feature_repo import contract
from jobs.engines.duckdb_session import literal
from jobs.raw import cells
from jobs.raw.typed import KINDS, json_object
from jobs.rules import events as logic
from jobs.sequences.duckdb.moments import day_of

IN_TIME: Final = "us, item_id, request_id"  # the order in which a user's clicks of a day count
IMPRESSION: Final = f"event_type = {literal(logic.IMPRESSION)}"
CLICK: Final = f"event_type = {literal(logic.CLICK)}"

READ: Final = """
CREATE TEMP TABLE read AS
SELECT user_id, item_id, epoch_us(event_time) AS us, event_type, request_id, position, reason, "row" FROM ({events})
"""
# A request's impressions of a day open a page view of that day, or belong to that of the day before. Its events from
# `since` to `until`, both days included, belong to it; no event belongs to two.
OPENED: Final = f"""
CREATE TEMP TABLE opened AS
WITH each_user AS (
  SELECT request_id, {day_of("us")} AS day, user_id, min(us) AS us FROM read WHERE reason IS NULL AND {IMPRESSION}
  GROUP BY ALL
), each_day AS (
  SELECT request_id, day, min({{'us': us, 'user_id': user_id}}) AS first, count(*) AS users FROM each_user GROUP BY ALL
), neighbours AS (
  SELECT *, lag(day) OVER days AS day_before, lead(day) OVER days IS NOT DISTINCT FROM day + 1 AS goes_on,
    CASE WHEN goes_on THEN lead(first) OVER days END AS next_first,
    CASE WHEN goes_on THEN lead(users) OVER days END AS next_users
  FROM each_day WINDOW days AS (PARTITION BY request_id ORDER BY day)
), page AS (
  SELECT *, CASE WHEN day_before = day - 1 THEN next_first ELSE first END AS opening FROM neighbours
)
SELECT (row_number() OVER (ORDER BY request_id, opened_us) - 1)::INTEGER AS page, * FROM (
  SELECT request_id,
    CASE WHEN day_before = day - 1 THEN day + 1 WHEN day_before = day - 2 THEN day ELSE day - 1 END AS since,
    day + 1 AS until, opening.us AS opened_us, opening.user_id AS opened_by,
    users > 1 OR coalesce(next_users > 1 OR next_first.user_id <> first.user_id, FALSE) AS shared
  FROM page WHERE opening IS NOT NULL
)
"""
_ON_PAGE: Final = f"read.request_id = opened.request_id AND {day_of('us')} BETWEEN since AND until"
SEEN: Final = f"""
CREATE TEMP TABLE seen AS
SELECT page, item_id, position, us FROM read JOIN opened ON {_ON_PAGE} AND user_id = opened_by
WHERE reason IS NULL AND {IMPRESSION}
"""
OTHER: Final = f"""
CREATE TEMP TABLE other AS
SELECT user_id, item_id, us, event_type, read.request_id, position, page,
  CASE WHEN user_id <> opened_by THEN {literal(logic.FOREIGN_REQUEST)}
    WHEN {CLICK} AND us < opened_us THEN {literal(logic.EARLY_CLICK)} END AS reason
FROM read LEFT JOIN opened ON {_ON_PAGE} WHERE reason IS NULL AND NOT {IMPRESSION}
UNION ALL
SELECT user_id, item_id, us, event_type, read.request_id, position, page, {literal(logic.FOREIGN_REQUEST)}
FROM read JOIN (SELECT * FROM opened WHERE shared) opened ON {_ON_PAGE} AND user_id <> opened_by
WHERE reason IS NULL AND {IMPRESSION}
"""
DEED: Final = """
CREATE TEMP TABLE deed AS
SELECT user_id, item_id, us, event_type, request_id, any_value(page) AS page, count(*) AS times
FROM other WHERE reason IS NULL GROUP BY user_id, item_id, us, event_type, request_id
"""
OVER_CAP: Final = f"""
CREATE TEMP TABLE over_cap AS
WITH many AS (
  SELECT user_id, {day_of("us")} AS day, count(*) AS clicks FROM deed WHERE {CLICK} GROUP BY ALL
  HAVING count(*) > {{cap}}
)
SELECT deed.user_id, day, clicks, ({IN_TIME}) AS last
FROM deed JOIN many ON deed.user_id = many.user_id AND {day_of("us")} = day WHERE {CLICK}
QUALIFY row_number() OVER (PARTITION BY deed.user_id, day ORDER BY {IN_TIME}) = {{cap}}
"""
_SURPLUS: Final = f"""
{{table}}.user_id = over_cap.user_id AND {day_of("us")} = over_cap.day AND {CLICK} AND ({IN_TIME}) > over_cap.last
"""
ROWS_READ: Final = f"CREATE TEMP TABLE rows_read AS SELECT {day_of('us')} AS day, count(*) AS rows FROM read GROUP BY 1"
REJECTED: Final = """
CREATE TEMP TABLE rejected AS
SELECT 'events' AS "table", "row", reason, {day} AS day FROM read WHERE reason IS NOT NULL
UNION ALL SELECT 'events', {row}, reason, {day} FROM other WHERE reason IS NOT NULL
"""


def validate(db: duckdb.DuckDBPyConnection, events: str, max_clicks_per_day: int) -> None:
    """Make the tables above, and `rejected`: table, row (JSON), reason, day (null where it has none).

    events: a query, as of jobs.raw.duckdb_tables.read_events.  `read` is dropped in the end.
    """
    db.execute(READ.replace("{events}", events))
    for step in (ROWS_READ, OPENED, SEEN, OTHER, DEED, OVER_CAP.replace("{cap}", str(max_clicks_per_day))):
        db.execute(step)
    [[capped]] = db.sql("SELECT count(*) FROM over_cap").fetchall()
    if capped:
        surplus = _SURPLUS.replace("{table}", "other")
        reason = literal(logic.TOO_MANY_CLICKS)
        db.execute(f"UPDATE other SET reason = {reason} FROM over_cap WHERE other.reason IS NULL AND {surplus}")
        db.execute(f"DELETE FROM deed USING over_cap WHERE {_SURPLUS.replace('{table}', 'deed')}")
    db.execute(REJECTED.replace("{row}", _as_json()).replace("{day}", day_of("us")))
    db.execute("DROP TABLE read")


def _as_json() -> str:
    """An event that was acceptable by itself as JSON, as Spark writes it."""
    sources = {"event_time": "make_timestamptz(us)"}
    return json_object(
        {
            column.name: cells.as_json(sources.get(column.name, column.name), KINDS[column.kind])
            for column in contract.EVENTS
        }
    )
