"""A sample of real requests, and around each the probes: events of ids that exist nowhere else, at known moments.

Around a request at a moment lie clicks one microsecond before it, which must be seen, at it and one microsecond after
it, which must not; events of the day before and of the day itself; a page view that is open over midnight.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobs.features.offline import read_parquet
from model.errors import CourierError

if TYPE_CHECKING:
    import duckdb

PROBE_ID: Final = "courier-probe"  # begins every id of a probe
CLICKS_A_DAY: Final = 6  # that two probes add to one user's day: the bot cap must not swallow them
PAGE_VIEWS: Final = 2_000  # a user of more is no sample
CUTOFF_PROBES: Final = 25
DAY_FRACTION: Final = 0.8  # of the page views lie before the cutoff
MICRO: Final = "INTERVAL 1 MICROSECOND"


class ProbeIdsTaken(CourierError):
    """The workspace's own data uses the probes' ids; the message says where."""


def draw_sample(connection: "duckdb.DuckDBPyConnection", stages: Mapping[str, Path], users: int) -> None:
    """The tables `base` (accepted events of some users, whole), `cutoff` (one midnight) and `probes`.

    A probe is a moment of a user: one page view of each user, and, of some users, the cutoff itself, where a page view
    is planted that repeats the user's latest.
    """
    for name in ("impressions", "clicks"):
        connection.execute(f"CREATE VIEW {name} AS FROM {read_parquet(stages['sequences'] / name)}")
    taken = " OR ".join(f"starts_with({name}, '{PROBE_ID}')" for name in ("user_id", "item_id"))
    if connection.execute(f"SELECT 1 FROM impressions WHERE {taken} LIMIT 1").fetchall():
        raise ProbeIdsTaken(
            f"{stages['sequences']} holds ids that begin with {PROBE_ID}: check a workspace without them"
        )
    connection.execute(
        f"""
        CREATE TABLE sampled AS
        SELECT user_id FROM impressions GROUP BY user_id
        HAVING count(DISTINCT (request_id, request_time)) <= {PAGE_VIEWS} ORDER BY md5(user_id) LIMIT {users};
        CREATE TABLE base AS
        SELECT user_id, item_id, request_time AS event_time, 'impression' AS event_type, request_id, "position"
        FROM impressions SEMI JOIN sampled USING (user_id)
        UNION ALL SELECT user_id, item_id, event_time, 'click', request_id, NULL
        FROM clicks SEMI JOIN sampled USING (user_id);
        CREATE VIEW pages AS SELECT DISTINCT user_id, request_id, event_time AS moment FROM base
        WHERE event_type = 'impression';
        CREATE TABLE cutoff AS
        SELECT CASE WHEN min(moment) < late THEN late ELSE date_trunc('day', max(moment)) + INTERVAL 1 DAY END AS moment
        FROM pages, (SELECT date_trunc('day', quantile_disc(moment, {DAY_FRACTION})) AS late FROM pages) GROUP BY late;
        CREATE TABLE probes AS
        WITH latest AS (
            SELECT user_id, max_by(request_id, (pages.moment, request_id)) AS repeated, max(pages.moment) AS repeated_at
            FROM pages, cutoff WHERE pages.moment < cutoff.moment
            GROUP BY user_id ORDER BY md5(user_id) LIMIT {CUTOFF_PROBES}
        )
        SELECT row_number() OVER (ORDER BY at_cutoff, md5(user_id)) AS n, * FROM (
            SELECT user_id, request_id, moment, FALSE AS at_cutoff, NULL AS repeated, NULL AS repeated_at FROM pages
            QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY md5(request_id), moment) = 1
            UNION ALL
            SELECT user_id, '{PROBE_ID}-cutoff-' || user_id, cutoff.moment, TRUE, repeated, repeated_at
            FROM latest, cutoff
        )
        """
    )


def plant(connection: "duckdb.DuckDBPyConnection") -> None:
    """The table `planted`: the probes' events, each with the number of its probe."""
    day = "date_trunc('day', moment)"
    own, other, midnight = "user_id", "'{c}-user-' || n", "'{c}-midnight-' || n"
    # Of each: whose, which item, when, what, in which page view (none: one of its own), where on the page.
    plants = [
        (own, "at", "moment", "impression", "request_id", 9999),  # the page view shows one more item ...
        (own, "at", "moment", "click", "request_id", None),  # ... which is clicked in that very moment
        (own, "before", f"moment - {MICRO}", "click", None, None),
        (own, "after", f"moment + {MICRO}", "click", None, None),
        (other, "late", "moment", "impression", "'{c}-moment-' || n", 1),
        (other, "future", "moment + INTERVAL 1 DAY", "impression", None, 0),
    ]
    others = {"yesterday": f"{day} - {MICRO}", "morning": day, "moment": "moment", "later": f"moment + {MICRO}"}
    for name, when in others.items():
        plants.append((other, "at", when, "impression", f"'{{c}}-{name}-' || n", 0))
        if name != "moment":
            plants.append((other, "at", when, "click", f"'{{c}}-{name}-' || n", None))
    over, after = "'{c}-over-midnight-' || n", "'{c}-at-midnight-' || n"
    plants += [
        (midnight, "evening", f"{day} - {MICRO}", "impression", over, 0),  # one page view, open over midnight ...
        (midnight, "morning", day, "impression", over, 1),
        (midnight, "morning", f"{day} + {MICRO}", "click", over, None),  # ... with a click of the next day,
        (midnight, "evening", f"{day} + INTERVAL 1 DAY", "click", over, None),  # ... and one a day too late for a label
        (midnight, "evening", day, "impression", after, 0),  # and what another one, at midnight, may know of all that
        (midnight, "morning", day, "impression", after, 1),
    ]
    rows = [_planted(*one) for one in plants]
    connection.execute(
        f"""
        CREATE TABLE planted AS {" UNION ALL ".join(rows)}
        UNION ALL SELECT n, probes.user_id, item_id, moment, 'impression', probes.request_id, "position"
        FROM probes JOIN base ON base.user_id = probes.user_id AND base.request_id = repeated
            AND base.event_time = repeated_at AND event_type = 'impression'
        """
    )


def _planted(user: str, item: str, when: str, what: str, request: str | None, position: int | None) -> str:
    request = request or f"'{{c}}-{item}-' || n"
    return f"""
        SELECT n, {user} AS user_id, '{{c}}-{item}-' || n AS item_id, {when} AS event_time, '{what}' AS event_type,
            {request} AS request_id, {"NULL" if position is None else position}::INTEGER AS "position" FROM probes
    """.replace("{c}", PROBE_ID)
