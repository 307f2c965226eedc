"""Checks of the probes: where a planted id may be seen, and, as positive controls, where it must be.

They read `probes`, `cutoff` and `planted` of jobs.leakage.planted_probes, and what jobs.leakage.probes opens.
"""

from collections.abc import Iterator
from typing import Final

from feature_repo.contract import WINDOWS_DAYS
from jobs.leakage.check import Check
from jobs.leakage.planted_probes import MICRO, PROBE_ID
from jobs.leakage.probe_run import EARLY, LATE, marked
from jobs.leakage.statistics_checks import STATISTICS
from jobs.rules.statistics import smoothed_ctr
from model.ctr.inputs.rows import CLUSTER_FEATURES, FEATURE_COLUMNS, ITEM_FEATURES, ROW_COLUMNS, USER_FEATURES

AT_CUTOFF: Final = f"starts_with(request_id, '{PROBE_ID}-cutoff-')"


def offline_checks() -> Iterator[Check]:
    """Of the rows and page views of the whole log."""
    yield from _history_checks()
    yield from _statistics_checks()
    yield from _label_checks()
    yield from _midnight_checks()
    yield from _backfill_checks()
    yield from _future_item_checks()


def _control(name: str, claim: str, rows: str, seen: str) -> Check:
    """A positive control, of what must be seen: each row of `rows` for which `seen` is not true violates it."""
    unseen = f"SELECT 'probe ' || n || ' at ' || moment AS example FROM {rows} WHERE ({seen}) IS NOT TRUE"
    return Check(name=f"probe.{name}", claim=claim, rows=rows, violations=unseen, must_see=True)


# --- offline --------------------------------------------------------------------------------------------------------


def _history_checks() -> Iterator[Check]:
    for table in ("rows", "page_views"):
        yield Check(
            name=f"probe.{table}.history",
            claim="no history holds an item clicked at or after the request",
            rows=table,
            violations=f"""
                WITH held AS (
                    SELECT user_id, request_id, request_time, unnest(history_item_ids) AS item_id FROM {table}
                ), clicked AS (
                    SELECT user_id, item_id, min(event_time) AS earliest FROM planted
                    WHERE event_type = 'click' GROUP BY ALL
                )
                SELECT request_id || ' at ' || request_time || ': ' || item_id || ', clicked at ' || earliest AS example
                FROM held JOIN clicked USING (user_id, item_id) WHERE earliest >= request_time
            """,
            must_see=True,
        )
    seen = f"list_contains(history_item_ids, '{PROBE_ID}-before-' || n)"
    yield _control("rows.history_seen", "a click one microsecond before a request is in its history", "probed", seen)
    pages = """(SELECT n, moment, history_item_ids FROM probes LEFT JOIN page_views
        ON page_views.request_id = probes.request_id AND page_views.request_time = probes.moment)"""
    yield _control(
        "page_views.history_seen", "a click one microsecond before a page view is in its history", pages, seen
    )


def _statistics_checks() -> Iterator[Check]:
    # The day before every planted item and user met one impression and one click, and more on the day itself.
    ctr = smoothed_ctr(1, 1)
    for prefix, table in (("item", "probed"), ("user", "probed_by_other")):
        names = [feature.name for feature in STATISTICS[prefix].features]
        expected = {name: repr(ctr) if "_ctr_" in name else "1" for name in names}
        more = " OR ".join(f"{name} > {value}" for name, value in expected.items())
        enough = " AND ".join(f"{name} >= {value}" for name, value in expected.items())
        counted = f"{prefix}_clicks_{WINDOWS_DAYS[0]}d"
        yield Check(
            name=f"probe.rows.{prefix}_statistics",
            claim=f"{prefix} statistics hold nothing of the request's own day",
            rows=table,
            violations=f"""
                SELECT request_id || ' at ' || moment || ': {counted} is ' || {counted} || ', not 1' AS example
                FROM {table} WHERE {more}
            """,
            must_see=True,
        )
        yield _control(
            f"rows.{prefix}_statistics_seen", f"{prefix} statistics hold the day before's events", table, enough
        )


def _label_checks() -> Iterator[Check]:
    yield Check(
        name="probe.rows.label",
        claim="a click in one page view labels no other page view",
        rows="probed_by_other",
        violations="SELECT request_id || ' at ' || moment AS example FROM probed_by_other WHERE clicked = 1",
        must_see=True,
    )
    yield _control("rows.label_seen", "a click in the page view's own moment is its label", "probed", "clicked = 1")


def _midnight_checks() -> Iterator[Check]:
    at, over = "(FROM midnights WHERE page = 'at')", "(FROM midnights WHERE page = 'over')"
    late = f"FROM {over} WHERE item = 'evening' AND clicked = 1"
    sides = {prefix: [feature.name for feature in view.features] for prefix, view in STATISTICS.items()}
    counts = {prefix: [name for name in names if "_ctr_" not in name] for prefix, names in sides.items()}
    new = " OR ".join(f"{name} > 0" for name in counts["item"])
    more = " OR ".join(f"{name} > {int('_impressions_' in name)}" for name in (*counts["item"], *counts["user"]))
    seen = " AND ".join(f"{name} = 1" for names in counts.values() for name in names if "_impressions_" in name)
    yield Check(
        name="probe.rows.midnight_statistics",
        claim="of a page view that is open over midnight, midnight's statistics hold what was shown before it",
        rows=at,
        violations=f"""
            SELECT request_id || ': ' || item_id || ' was shown before ' || moment AS example FROM {at}
            WHERE (item = 'morning' AND ({new})) OR (item = 'evening' AND ({more}))
        """,
        must_see=True,
    )
    yield _control(
        "rows.midnight_statistics_seen",
        "what a page view that is open over midnight shows before it is counted at midnight",
        "(FROM midnights WHERE page = 'at' AND item = 'evening')",
        seen,
    )
    yield Check(
        name="probe.rows.label_ends",
        claim="no click labels a page view after the day that follows it",
        rows=over,
        violations=f"SELECT request_id || ': ' || item_id AS example {late}",
        must_see=True,
    )
    yield _control(
        "rows.midnight_label_seen",
        "a click after midnight labels the page view that was opened before it",
        "(FROM midnights WHERE page = 'over' AND item = 'morning')",
        f"clicked = 1 AND request_time = moment - {MICRO}",
    )


def _backfill_checks() -> Iterator[Check]:
    carried = " OR ".join(f"{f.name} = {marked(f, LATE)}" for f in (*USER_FEATURES, *ITEM_FEATURES, *CLUSTER_FEATURES))
    asked = f"""(
        SELECT n, probes.moment, rows.* FROM probes LEFT JOIN rows
        ON rows.request_id = '{PROBE_ID}-moment-' || n AND rows.item_id = '{PROBE_ID}-late-' || n
    )"""
    yield Check(
        name="probe.rows.backfill",
        claim="a feature row created later and valid after the request is joined to no earlier row",
        rows=asked,
        violations=f"SELECT request_id || ' at ' || moment || ': ' || item_id AS example FROM {asked} WHERE {carried}",
        must_see=True,
    )
    early = " AND ".join(f"{f.name} = {marked(f, EARLY)}" for f in (*ITEM_FEATURES, *CLUSTER_FEATURES))
    yield _control("rows.backfill_seen", "a feature row valid one microsecond before the request is seen", asked, early)


def _future_item_checks() -> Iterator[Check]:
    yield Check(
        name="probe.item_created_later",
        claim="an item is unknown one microsecond before its creation",
        rows="future WHERE NOT created",
        violations="SELECT item_id || ' at ' || moment AS example FROM future WHERE NOT created AND category <> ''",
        must_see=True,
    )
    rows = "(FROM future WHERE created)"
    yield _control("item_created_seen", "an item is known at its creation", rows, f"category = '{PROBE_ID}'")


def truncation_check() -> Check:
    """Of the rows of the whole log, against those of the log that ends at the cutoff, `rows_before`."""
    # Labels may still come while the next day has not been read; `cold` and the period look at the whole log by design.
    compared = [name for name in ROW_COLUMNS if name not in ("cold", "clicked")]
    same = " AND ".join(f"a.{name} IS NOT DISTINCT FROM b.{name}" for name in compared)
    label = "(a.clicked = b.clicked OR a.request_time >= cutoff.moment - INTERVAL 1 DAY)"
    real = f"NOT starts_with(user_id, '{PROBE_ID}')"
    before = f"(SELECT rows.* FROM rows, cutoff WHERE rows.request_time < cutoff.moment AND {real})"
    key = "a.request_id = b.request_id AND a.request_time = b.request_time AND a.item_id = b.item_id"
    return Check(
        name="probe.rows.truncation",
        claim="rows before a midnight are the same from a log that ends there",
        rows=before,
        violations=f"""
            SELECT coalesce(a.request_id, b.request_id) || ': ' || coalesce(a.item_id, b.item_id) AS example
            FROM {before} AS a FULL JOIN (FROM rows_before WHERE {real}) AS b ON {key}, cutoff
            WHERE (({same}) AND {label}) IS NOT TRUE
        """,
        must_see=True,
    )


def online_checks() -> Iterator[Check]:
    """Of the online store that was loaded at the cutoff: `online_users` and `online_items`."""
    sides = {name: "u" if name in _USER_COLUMNS else "i" for name in FEATURE_COLUMNS}
    same = " AND ".join(f"o.{name} IS NOT DISTINCT FROM {side}.{name}" for name, side in sides.items())
    yield Check(
        name="probe.online",
        claim="what the online store answers at a moment is what a training row of that moment holds",
        rows=f"rows WHERE {AT_CUTOFF}",
        violations=f"""
            SELECT o.user_id || ', ' || o.item_id || ' at ' || o.request_time AS example
            FROM (FROM rows WHERE {AT_CUTOFF}) AS o
            LEFT JOIN online_users AS u USING (user_id) LEFT JOIN online_items AS i ON i.item_id = o.item_id
            WHERE ({same}) IS NOT TRUE
        """,
        must_see=True,
    )
    yield Check(
        name="probe.online.history",
        claim="no online history holds a click at or after the moment of the load",
        rows="online_users",
        violations="""
            SELECT user_id || ': holds a click of ' || make_timestamptz(list_max(history_clicked_at)) AS example
            FROM online_users, cutoff WHERE list_max(history_clicked_at) >= epoch_us(cutoff.moment)
        """,
        must_see=True,
    )
    rows = "(SELECT n, moment, u.* FROM probes LEFT JOIN online_users AS u USING (user_id) WHERE at_cutoff)"
    seen = f"list_contains(history_item_ids, '{PROBE_ID}-before-' || n)"
    yield _control(
        "online.history_seen", "a click one microsecond before the load is in the online history", rows, seen
    )


_USER_COLUMNS: Final = (*(feature.name for feature in USER_FEATURES), "history_cluster_ids", "history_categories")
