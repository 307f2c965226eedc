"""What each user clicked before a moment, newest first: a snapshot after every click.

clicked  each user's clicks, an item clicked twice at one moment once: user_id, us, item_id, fresh
newest   user_id, us, history_item_ids: the snapshots, as short as page views need them
"""

from typing import Final

import duckdb

from jobs.rules.sequence_tables import TABLES
from jobs.sequences.duckdb.event_validation import CLICK
from jobs.sequences.duckdb.parts import Rows

HISTORY_ROWS: Final = 100_000  # of a part: each holds up to a thousand clicks

CLICKED: Final = f"""
CREATE TEMP TABLE clicked AS SELECT DISTINCT user_id, us, item_id, TRUE AS fresh FROM deed WHERE {CLICK} AND {{since}}
"""
# Newest first; of clicks at one moment only the first row has all of them ahead.
_SNAPSHOTS: Final = """
SELECT user_id, us, fresh, list(item_id) OVER newest_first AS items{more}
FROM clicked WHERE {range}
WINDOW newest_first AS (
  PARTITION BY user_id ORDER BY us DESC, item_id ROWS BETWEEN CURRENT ROW AND {following} FOLLOWING
)
QUALIFY lag(us) OVER (PARTITION BY user_id ORDER BY us DESC, item_id) IS DISTINCT FROM us
"""


def make_clicked(db: duckdb.DuckDBPyConnection, since: int | None = None) -> None:
    """Make the table `clicked` of `deed`: of all clicks, or of those since a moment in microseconds."""
    db.execute(CLICKED.replace("{since}", "TRUE" if since is None else f"us >= {since}"))


def make_newest(db: duckdb.DuckDBPyConnection, length: int) -> None:
    """Make the table `newest` of `clicked`: each snapshot with `length` items at most."""
    rows = _snapshots(length).replace("{range}", "TRUE")
    db.execute(f"CREATE TEMP TABLE newest AS SELECT user_id, us, items AS history_item_ids FROM ({rows})")


def histories(length: int) -> Rows:
    """Feast's source of the view user_history: each snapshot valid from one microsecond after its last click."""
    rows = _snapshots(length, ", list(us) OVER newest_first AS times")
    query = (
        "SELECT user_id, us + 1 AS event_timestamp, items AS history_item_ids, times AS history_clicked_at "
        f"FROM ({rows}) WHERE fresh"
    )
    table = TABLES["histories"]
    return Rows(query, "user_id", (*table.by, *table.then), table.columns, "clicked")


def clicks() -> Rows:
    """The accepted clicks."""
    return _deeds("clicks", CLICK)


def conversions() -> Rows:
    """The accepted carts and purchases."""
    return _deeds("conversions", f"NOT {CLICK}")


def _deeds(name: str, condition: str) -> Rows:
    table = TABLES[name]
    query = f"SELECT *, us AS event_time FROM deed WHERE {condition} AND {{range}}"
    return Rows(query, "user_id", (*table.by, *table.then), table.columns, f"(SELECT * FROM deed WHERE {condition})")


def _snapshots(length: int, more: str = "") -> str:
    return _SNAPSHOTS.replace("{following}", str(length - 1)).replace("{more}", more)
