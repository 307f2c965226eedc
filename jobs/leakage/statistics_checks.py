"""Checks of statistics: impressions and clicks of whole days, counted anew."""

from collections.abc import Iterator
from typing import Final

from feature_repo.contract import (
    EVENT_TIME,
    ITEM_STATISTICS,
    SMOOTHING_CLICKS,
    SMOOTHING_IMPRESSIONS,
    USER_STATISTICS,
    WINDOWS_DAYS,
    View,
)
from jobs.leakage.check import Check

STATISTICS: Final = {"item": ITEM_STATISTICS, "user": USER_STATISTICS}


def statistics_checks() -> Iterator[Check]:
    """The statistics of items and users, in the rows and in the feature tables."""
    for prefix, view in STATISTICS.items():
        yield _statistics_check("rows", "request_time", prefix, view)
        yield _statistics_check(view.name, EVENT_TIME, prefix, view)


def _statistics_check(table: str, moment: str, prefix: str, view: View) -> Check:
    [key] = view.keys
    names = [feature.name for feature in view.features]
    differs = " OR ".join(f"stored.{name} IS DISTINCT FROM counted.{name}" for name in names)
    difference = " || ', ' || ".join(f"stored.{name} || ' not ' || counted.{name}" for name in names[:2])
    return Check(
        name=f"{table}.{prefix}_statistics",
        claim=f"{prefix} statistics count [midnight - window, midnight) before {moment}, and nothing of that day",
        rows=table,
        violations=f"""
            WITH stored AS (SELECT {key}, {moment} AS moment, {", ".join(names)} FROM {table}),
            counted AS ({_recount(key, prefix)})
            SELECT stored.{key} || ' at ' || moment || ': {names[0]}, {names[1]} ' || {difference} AS example
            FROM stored JOIN counted ON counted.{key} = stored.{key} AND counted.day = stored.moment::DATE
            WHERE {differs}
        """,
    )


def _recount(key: str, prefix: str) -> str:
    """SQL: key, day and the statistics as of that day's midnight, for each key and day of the table `stored`."""
    columns = []
    for days in WINDOWS_DAYS:
        count = {
            what: f"coalesce(sum({what}) FILTER (daily.day >= asked.day - {days}), 0)::BIGINT"
            for what in ("impressions", "clicks")
        }
        columns += [f"{sql} AS {prefix}_{what}_{days}d" for what, sql in count.items()]
        clicks, impressions = (
            f"{count['clicks']} + {SMOOTHING_CLICKS}",
            f"{count['impressions']} + {SMOOTHING_IMPRESSIONS}",
        )
        columns.append(f"({clicks}::DOUBLE) / ({impressions}::DOUBLE) AS {prefix}_ctr_{days}d")
    return f"""
        SELECT asked.{key}, asked.day, {", ".join(columns)}
        FROM (SELECT DISTINCT {key}, moment::DATE AS day FROM stored) AS asked
        LEFT JOIN (
            SELECT {key}, day, count(*) FILTER (what = 1) AS impressions, count(*) FILTER (what = 2) AS clicks
            FROM (SELECT {key}, shown_at::DATE AS day, 1 AS what FROM impressions
                UNION ALL SELECT {key}, event_time::DATE, 2 FROM clicks)
            GROUP BY ALL
        ) AS daily
        ON daily.{key} = asked.{key} AND daily.day < asked.day AND daily.day >= asked.day - {max(WINDOWS_DAYS)}
        GROUP BY asked.{key}, asked.day
    """
