"""Checks of periods and labels, and of the events in tables of their own: conversions and what was rejected."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from jobs.leakage.check import REQUEST, Check
from jobs.rules.events import CONVERSIONS, EARLY_CLICK, FOREIGN_REQUEST, TOO_MANY_CLICKS

CONTRADICTIONS: Final = (FOREIGN_REQUEST, EARLY_CLICK, TOO_MANY_CLICKS)


def period_checks(splits: Mapping[str, str]) -> Iterator[Check]:
    """Each row's period against the splits by time, name -> ISO 8601."""
    valid, test = (f"TIMESTAMPTZ '{splits[name]}'" for name in ("valid_start", "test_start"))
    expected = f"CASE WHEN request_time < {valid} THEN 'train' WHEN request_time < {test} THEN 'valid' ELSE 'test' END"
    for table in ("impressions", "page_views", "rows"):
        yield Check(
            name=f"{table}.period",
            claim="a row is in the period of its request_time; periods are half open and follow each other",
            rows=table,
            violations=f"""
                SELECT {REQUEST} || ' is in ' || period AS example FROM {table} WHERE period <> {expected}
                UNION ALL SELECT 'valid_start {splits["valid_start"]}, test_start {splits["test_start"]}'
                WHERE {valid} > {test}
            """,
        )


def label_checks() -> Iterator[Check]:
    """Each label of 1 against the clicks."""
    labelled = {
        "impressions": "SELECT request_id, user_id, item_id, request_time, clicked FROM impressions",
        "page_views": "SELECT request_id, user_id, unnest(item_ids) AS item_id, request_time, "
        "unnest(labels) AS clicked FROM page_views",
        "rows": "SELECT request_id, user_id, item_id, request_time, clicked FROM rows",
    }
    # A page view takes clicks of its own day and the next; it may open on either, so two days bound it from outside.
    own = """
        clicks.request_id = labelled.request_id AND clicks.user_id = labelled.user_id
        AND clicks.item_id = labelled.item_id AND clicks.event_time >= request_time
        AND clicks.event_time < date_trunc('day', request_time) + INTERVAL 2 DAY
    """
    for table, query in labelled.items():
        yield Check(
            name=f"{table}.label",
            claim="a label of 1 has a click of that user on that item in that page view, at or after its request",
            rows=f"({query}) WHERE clicked = 1",
            violations=f"""
                SELECT {REQUEST} || ': ' || item_id || ' was never clicked there' AS example
                FROM ({query}) AS labelled WHERE clicked = 1 AND NOT EXISTS (FROM clicks WHERE {own})
            """,
            note=f"""
                SELECT 'latest label ' || max(clicks.event_time - request_time) || ' after its request'
                FROM ({query}) AS labelled JOIN clicks ON {own} WHERE clicked = 1
            """,
        )


def conversion_checks() -> Iterator[Check]:
    """What conversions may be, and whose."""
    what = "event_type || ' of ' || item_id || ' by ' || user_id || ' at ' || event_time"
    yield Check(
        name="conversions.kind",
        claim="a conversion is a cart or a purchase, and is kept once",
        rows="conversions",
        violations=f"""
            SELECT {what} AS example FROM conversions GROUP BY user_id, item_id, event_time, event_type, request_id
            HAVING count(*) > 1 OR event_type NOT IN ({_texts(CONVERSIONS)})
        """,
    )
    yield Check(
        name="conversions.user",
        claim="a conversion is of a user who saw its request, where that was opened on its day or one beside it",
        rows="conversions",
        violations=f"""
            SELECT {what} AS example
            FROM conversions JOIN page_views AS shown ON shown.request_id = conversions.request_id
                AND request_time::DATE BETWEEN event_time::DATE - 1 AND event_time::DATE + 1
            GROUP BY conversions.user_id, item_id, event_time, event_type, conversions.request_id
            HAVING NOT bool_or(shown.user_id = conversions.user_id)
        """.replace("by ' || user_id", "by ' || conversions.user_id"),
    )


def rejected_checks(counts: Mapping[str, int]) -> Iterator[Check]:
    """The rejected rows against the counts of the manifest, reason -> rows, and against all other tables."""
    values = ", ".join(f"('{reason}', {count})" for reason, count in counts.items()) or "(NULL, 0)"
    yield Check(
        name="rejected.counted",
        claim="every rejected row is stored with its reason, as many as the manifest says",
        rows="rejected",
        violations=f"""
            SELECT reason || ': ' || coalesce(stored, 0) || ' stored, ' || coalesce(counted, 0) || ' counted' AS example
            FROM (SELECT reason, count(*) AS stored FROM rejected GROUP BY reason)
            FULL JOIN (FROM (VALUES {values}) AS counts(reason, counted) WHERE reason IS NOT NULL) USING (reason)
            WHERE stored IS DISTINCT FROM counted
        """,
    )
    rows = f"(SELECT {_as_event()}, reason FROM rejected WHERE reason IN ({_texts(CONTRADICTIONS)}))"
    yield Check(
        name="rejected.nowhere_else",
        claim="an event that contradicts its page view, or is one too many, is in no other table",
        rows=rows,
        violations=f"""
            SELECT reason || ': ' || event_type || ' of ' || item_id || ' by ' || user_id AS example
            FROM {rows} SEMI JOIN (
                SELECT user_id, item_id, request_id, 'impression' AS event_type, shown_at AS event_time FROM impressions
                UNION ALL SELECT user_id, item_id, request_id, 'click', event_time FROM clicks
                UNION ALL SELECT user_id, item_id, request_id, event_type, event_time FROM conversions
            ) USING (user_id, item_id, request_id, event_type, event_time)
        """,
    )


def _as_event() -> str:
    """SQL: the columns of a rejected row that say which event it was."""
    names = ("user_id", "item_id", "request_id", "event_type", "event_time")
    sql = {name: f"json_extract_string(\"row\", '$.{name}')" for name in names}
    sql["event_time"] += "::TIMESTAMPTZ"
    return ", ".join(f"{expression} AS {name}" for name, expression in sql.items())


def _texts(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)
