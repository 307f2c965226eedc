"""Checks of histories: what a user's last clicks were, gathered anew from the clicks."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from feature_repo.contract import EVENT_TIME, USER_HISTORY
from jobs.config import SequencesConfig
from jobs.leakage.check import Check

if TYPE_CHECKING:
    import duckdb


def gather_histories(connection: "duckdb.DuckDBPyConnection", length: int) -> None:
    """The table `known`: what a user's last `length` clicks were after each moment `at` at which that user clicked.

    item_ids and clicked_at (microseconds since 1970): newest first, equal times by item_id; a click that two requests
    tell of stands once.
    """
    connection.execute(
        f"""
        CREATE TABLE known AS
        SELECT user_id, event_time AS at, list_reverse(list(item_id) OVER newest) AS item_ids,
            list_reverse(list(epoch_us(event_time)) OVER newest) AS clicked_at
        FROM (SELECT DISTINCT user_id, item_id, event_time FROM clicks)
        WINDOW newest AS (
            PARTITION BY user_id ORDER BY event_time, item_id DESC ROWS BETWEEN {length - 1} PRECEDING AND CURRENT ROW
        ), in_time AS (PARTITION BY user_id ORDER BY event_time, item_id DESC)
        QUALIFY lead(event_time) OVER in_time IS DISTINCT FROM event_time
        """
    )


def history_checks(config: SequencesConfig) -> Iterator[Check]:
    """Each history of page views, of rows and of user_history against the table `known`."""
    lengths = {"page_views": config.pretrain_history, "rows": config.ctr_history, USER_HISTORY.name: config.ctr_history}
    for table, length in lengths.items():
        moment = EVENT_TIME if table == USER_HISTORY.name else "request_time"
        who = f"stored.user_id || ' at ' || stored.{moment}"
        timed = table != "page_views"
        if timed:
            yield Check(
                name=f"{table}.history_is_past",
                claim=f"every click of a history lies strictly before {moment}",
                rows=table,
                violations=f"""
                    SELECT {who} || ': holds a click of ' || make_timestamptz(list_max(history_clicked_at)) AS example
                    FROM {table} AS stored WHERE list_max(history_clicked_at) >= epoch_us({moment})
                """,
            )
        expected = f"coalesce(known.item_ids[:{length}], [])"
        times = f"OR history_clicked_at IS DISTINCT FROM coalesce(known.clicked_at[:{length}], [])" if timed else ""
        yield Check(
            name=f"{table}.history",
            claim=f"a history is the user's last {length} clicks strictly before {moment}",
            rows=table,
            violations=f"""
                SELECT {who} || ': ' || history_item_ids[:3]::TEXT || ' ..., not ' || ({expected})[:3]::TEXT AS example
                FROM (SELECT user_id, {moment}, history_item_ids{", history_clicked_at" if timed else ""} FROM {table})
                    AS stored ASOF LEFT JOIN known ON known.user_id = stored.user_id AND known.at < stored.{moment}
                WHERE history_item_ids IS DISTINCT FROM {expected} {times}
            """,
        )
