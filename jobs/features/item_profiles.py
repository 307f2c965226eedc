"""Item profiles as a history: a row for each change, and how much of the past nobody saw."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb

from feature_repo.contract import EVENT_TIME
from jobs.raw.cells import timestamptz
from jobs.raw.profile_history import PROFILE, remembered, states_in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownPast:
    """What is not known of item profiles, and stands for it: the first that is known, since the item is.

    items: how many items are known before their profile is.  impressions: how many were shown before it.
    """

    items: int
    impressions: int


def place_states(connection: duckdb.DuckDBPyConnection, workspace: Path | None) -> None:
    """Make the table `states`: what is remembered of the items of `known`, each item's in order, its `place` from 1.

    known: a table of items with their profile, and `event_timestamp`, the moment an item is known since.  workspace:
    whose ingests are asked; of an item that none has seen there is one state, of `known`, from no known moment on.
    """
    connection.execute(
        f"""
        CREATE TABLE states AS
        SELECT states.*, known.{EVENT_TIME} AS since FROM known JOIN (
            SELECT *, row_number() OVER (PARTITION BY item_id ORDER BY known_from, first_seen) AS place
            FROM ({states_in_order(remembered(workspace))})
        ) AS states USING (item_id)
        UNION ALL BY NAME
        SELECT item_id, {", ".join(PROFILE)}, 1 AS place, {EVENT_TIME} AS since FROM known
        ANTI JOIN ({remembered(workspace)}) AS states USING (item_id)
        """
    )


def profile_changes(as_of: datetime) -> str:
    """A query of the rows of item_profile, by item and time, of `states`: as jobs.rules.profiles.profiles has them."""
    moment = f"CASE WHEN place = 1 THEN since ELSE greatest(since, least(known_from, {timestamptz(as_of)})) END"
    return f"""
        WITH placed AS (
            SELECT item_id, {moment} AS {EVENT_TIME}, place, coalesce(category, '') AS category,
                coalesce(price, 'NaN') AS price, coalesce(epoch_us(created_at), -1) AS created_at
            FROM states
        ), last AS (
            FROM placed QUALIFY row_number() OVER (PARTITION BY item_id, {EVENT_TIME} ORDER BY place DESC) = 1
        )
        SELECT item_id, {EVENT_TIME}, category, price, created_at FROM last
        WINDOW item AS (PARTITION BY item_id ORDER BY {EVENT_TIME})
        QUALIFY row_number() OVER item = 1 OR {" OR ".join(f"{one} <> lag({one}) OVER item" for one in PROFILE)}
        ORDER BY item_id, {EVENT_TIME}
    """


def unknown_past(connection: duckdb.DuckDBPyConnection, impressions: str) -> UnknownPast:
    """How much lies before the first of `states`. impressions: SQL, a table with item_id and request_time."""
    [(items, shown)] = connection.execute(
        f"""
        WITH first AS (
            SELECT item_id, coalesce(known_from, 'infinity') AS known FROM states WHERE place = 1 AND known > since
        )
        SELECT (SELECT count(*) FROM first), (
            SELECT count(*) FROM {impressions} JOIN first USING (item_id) WHERE request_time < known
        )
        """
    ).fetchall()
    return UnknownPast(items=items, impressions=shown)
