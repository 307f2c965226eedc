"""Make page views of validated events: what was shown from the top down, with labels, histories, and periods.

shown    a row per distinct item of a page view: page, item_id, position, shown_us, clicks, times (repeats included)
known    page, history_item_ids: the user's newest clicks strictly before the page view, where there are some
"""

from collections.abc import Mapping
from typing import Any, Final

import duckdb

from jobs.config import SequencesConfig
from jobs.rules.page_views import TEST, TRAIN, VALID, cut
from jobs.rules.sequence_tables import PERIOD, TABLES
from jobs.sequences.duckdb.event_validation import CLICK
from jobs.sequences.duckdb.parts import Rows
from jobs.sequences.splits import Splits

SHOWN: Final = f"""
CREATE TEMP TABLE shown AS
WITH once AS (
  SELECT page, item_id, min(position) AS position, min(us) AS shown_us, count(*) AS times FROM seen GROUP BY ALL
), clicked AS (
  SELECT page, item_id, count(*) AS clicks FROM deed WHERE {CLICK} AND page IS NOT NULL GROUP BY ALL
)
SELECT once.*, coalesce(clicks, 0) AS clicks FROM once LEFT JOIN clicked USING (page, item_id)
ORDER BY page, position, item_id
"""
KNOWN: Final = """
CREATE TEMP TABLE known AS
SELECT page, newest.history_item_ids[:{history}] AS history_item_ids
FROM opened ASOF JOIN newest ON opened_by = newest.user_id AND opened_us > newest.us
"""
_OPENED: Final = "SELECT page, request_id, opened_by AS user_id, opened_us AS request_time FROM opened WHERE {range}"
IMPRESSIONS: Final = f"""
SELECT *, shown_us AS shown_at, (clicks > 0)::TINYINT AS clicked
FROM shown JOIN ({_OPENED}) page USING (page) WHERE {{range}}
"""
PAGE_VIEWS: Final = f"""
WITH kept AS (
  SELECT page, item_id, position, (clicks > 0)::TINYINT AS clicked FROM shown WHERE {{range}}
  QUALIFY row_number() OVER (PARTITION BY page ORDER BY clicked DESC, position, item_id) <= {{size}}
), items AS (
  SELECT page, list(item_id ORDER BY position, item_id) AS item_ids, list(clicked ORDER BY position, item_id) AS labels
  FROM kept GROUP BY page
)
SELECT * EXCLUDE (history_item_ids), coalesce(history_item_ids, []) AS history_item_ids
FROM items JOIN ({_OPENED}) page USING (page) LEFT JOIN (SELECT * FROM known WHERE {{range}}) known USING (page)
"""


def make_shown(db: duckdb.DuckDBPyConnection) -> None:
    """Make the table `shown` of `seen` and `deed`."""
    db.execute(SHOWN)


def make_known(db: duckdb.DuckDBPyConnection, history: int) -> None:
    """Make the table `known` of `opened` and `newest`."""
    db.execute(KNOWN.replace("{history}", str(history)))


def impressions(splits: Splits | None) -> Rows:
    """One row per distinct item of each page view: its label `clicked`, and when it was first shown there."""
    query = IMPRESSIONS if splits is None else _with_period(IMPRESSIONS, splits)
    return Rows(query, "page", ("page", "position", "item_id"), _columns("impressions", splits), "shown")


def page_views(config: SequencesConfig, splits: Splits | None) -> Rows:
    """The pre-training table: items of each page with labels, and the user's newest clicks strictly before it."""
    query = PAGE_VIEWS.replace("{size}", str(config.page_view_size))
    query = query if splits is None else _with_period(query, splits)
    return Rows(query, "page", ("page",), _columns("page_views", splits), "shown")


def written_page_views(splits: Splits) -> Rows:
    """The pre-training table of page views that days have written, each already whole in `opened`."""
    query = "SELECT *, opened_by AS user_id, opened_us AS request_time FROM opened WHERE {range}"
    return Rows(_with_period(query, splits), "page", ("page",), _columns("page_views", splits), "shown")


def _columns(table: str, splits: Splits | None) -> dict[str, str]:
    return dict(TABLES[table].columns) | ({} if splits is None else {PERIOD: "text"})


def _with_period(query: str, splits: Splits) -> str:
    return f"SELECT *, {period('request_time', splits)} AS {PERIOD} FROM ({query})"


def period(us: str, splits: Splits) -> str:
    """The period that a moment in microseconds falls in."""
    return (
        f"CASE WHEN {us} < {splits.valid_start} THEN '{TRAIN}' WHEN {us} < {splits.test_start} THEN '{VALID}' "
        f"ELSE '{TEST}' END"
    )


def split_of(db: duckdb.DuckDBPyConnection, counted: Mapping[str, Any], config: SequencesConfig) -> Splits:
    """The moments that part the periods of the page views in `opened`.

    counted: how many page views there are (`requests` > 0), and when the first and the last event happened.
    """
    views, train = counted["requests"], config.train_fraction
    valid_start, test_start = (
        db.sql(f"SELECT opened_us FROM opened ORDER BY 1 LIMIT 1 OFFSET {place}").fetchall()[0][0]
        for place in (cut(views, train), cut(views, train + config.valid_fraction))
    )
    return Splits(start=counted["first"], valid_start=valid_start, test_start=test_start, end=counted["last"] + 1)
