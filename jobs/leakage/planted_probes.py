"""Release canaries on a scratch road, and look where they surface: in no training row and no online row too early.

A canary is an id that exists nowhere else. Around a request at a moment lie clicks one microsecond before it (which
must be seen, or the canary cannot sing), at it and one microsecond after it; events of the day before and of the day
itself; feature rows filled in later; an item created later. The same log cut at a midnight, the `dusk`, must give the
same rows before it, and an online store that answers at dusk as the offline one does for that moment.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from feature_repo.contract import EVENT_TIME, ITEM_KEY, SPACE_KEY, USER_KEY, WINDOWS_DAYS
from jobs.config import SequencesConfig
from jobs.features.materialize import quiet
from jobs.features.offline import connect, read_parquet
from jobs.features.training_rows import features_as_of
from jobs.leakage.audit import STATISTICS, Law, found, read_rows
from jobs.leakage.check_result import Finding
from jobs.leakage.daily_log import grow_log
from jobs.leakage.probe_run import CANARY, CLICKS_A_DAY, EARLY, LATE, MICRO, Walked, draw_sample, marked, plant, walk
from jobs.rules.statistics import smoothed_ctr
from model import artifact
from model.ctr.inputs.rows import (
    CLUSTER_FEATURES,
    FEATURE_COLUMNS,
    HISTORY,
    ITEM_FEATURES,
    KIND_TYPES,
    ROW_COLUMNS,
    USER_FEATURES,
    filled,
    with_history_facts,
)

if TYPE_CHECKING:
    import duckdb
    from feast import FeatureStore

AT_DUSK: Final = f"starts_with(request_id, '{CANARY}-dusk-')"


def release_canaries(stages: Mapping[str, Path], scratch: Path, *, users: int) -> Iterator[Finding]:
    """Every law of the canaries, one finding each. stages: the folder of each stage in jobs.leakage.probe_run.BORROWED.

    scratch: an empty folder to work in.  users: how many of the workspace's users are walked again.
    Raises CanaryTaken, ArtifactMissing, ArtifactMismatch, and what the stages raise.
    """
    config = SequencesConfig(**artifact.read(stages["sequences"], kind="sequences").config)
    config = replace(config, max_clicks_per_day=config.max_clicks_per_day + CLICKS_A_DAY)
    with closing(connect()) as connection:
        draw_sample(connection, stages, users)
        plant(connection)
        whole = walk(connection, stages, scratch / "whole", config, cut=False)
        _open(connection, whole, "")
        _ask_as_of(connection, whole)
        laws = (_history_laws, _statistics_laws, _label_laws, _midnight_laws, _late_laws, _future_item_laws)
        for law in (law for of_a_kind in laws for law in of_a_kind()):
            yield found(connection, law)
        before = walk(connection, stages, scratch / "before", config, cut=True)
        _open(connection, before, "_before")
        yield found(connection, _truncation_law())
        _look_up_at_dusk(connection, before)
        for law in _online_laws():
            yield found(connection, law)
        yield from grow_log(connection, scratch / "daily", whole=whole, before=before, config=config)


def _open(connection: "duckdb.DuckDBPyConnection", walked: Walked, suffix: str) -> None:
    # `rows` and `page_views` of the scratch road; `probed`, the probes' own page views with their rows.
    connection.execute(f"CREATE VIEW rows{suffix} AS {read_rows(walked.rows)}")
    connection.execute(f"CREATE VIEW page_views{suffix} AS FROM {read_parquet(walked.sequences / 'page_views')}")
    if not suffix:
        shows = f"rows.item_id = '{CANARY}-at-' || n AND rows.request_time = probes.moment"
        connection.execute(
            f"""
            CREATE VIEW probed AS SELECT n, probes.moment, rows.* FROM probes
            LEFT JOIN rows ON {shows} AND rows.request_id = probes.request_id AND rows.user_id = probes.user_id;
            CREATE VIEW probed_by_other AS SELECT n, probes.moment, rows.* FROM probes
            LEFT JOIN rows ON {shows} AND rows.request_id = '{CANARY}-moment-' || n;
            CREATE VIEW nights AS
            SELECT n, date_trunc('day', probes.moment) AS moment, page, item, rows.*
            FROM probes CROSS JOIN (VALUES ('night'), ('dawn')) AS pages(page)
            CROSS JOIN (VALUES ('eve'), ('morn')) AS items(item) LEFT JOIN rows
            ON rows.user_id = '{CANARY}-sleeper-' || n AND rows.request_id = '{CANARY}-' || page || '-' || n
                AND rows.item_id = '{CANARY}-' || item || '-' || n
            """
        )


def _control(check: str, law: str, rows: str, seen: str) -> Law:
    """A canary that must be seen: every row of `rows` for which `seen` is not true is a silent one."""
    broken = f"SELECT 'probe ' || n || ' at ' || moment || ': silent' AS example FROM {rows} WHERE ({seen}) IS NOT TRUE"
    return Law(check=f"canary.{check}", law=law, rows=rows, broken=broken, must_see=True)


# --- offline --------------------------------------------------------------------------------------------------------


def _history_laws() -> Iterator[Law]:
    for table in ("rows", "page_views"):
        yield Law(
            check=f"canary.{table}.history",
            law="no history holds a canary clicked at or after the request",
            rows=table,
            broken=f"""
                WITH sung AS (
                    SELECT user_id, request_id, request_time, unnest(history_item_ids) AS item_id FROM {table}
                ), clicked AS (
                    SELECT user_id, item_id, min(event_time) AS earliest FROM planted
                    WHERE event_type = 'click' GROUP BY ALL
                )
                SELECT request_id || ' at ' || request_time || ': ' || item_id || ', clicked at ' || earliest AS example
                FROM sung JOIN clicked USING (user_id, item_id) WHERE earliest >= request_time
            """,
            must_see=True,
        )
    heard = f"list_contains(history_item_ids, '{CANARY}-before-' || n)"
    yield _control("rows.history_sings", "a click one microsecond before a request is in its history", "probed", heard)
    pages = """(SELECT n, moment, history_item_ids FROM probes LEFT JOIN page_views
        ON page_views.request_id = probes.request_id AND page_views.request_time = probes.moment)"""
    yield _control(
        "page_views.history_sings", "a click one microsecond before a page view is in its history", pages, heard
    )


def _statistics_laws() -> Iterator[Law]:
    # The day before every canary item and user met one impression and one click, and more on the day itself.
    ctr = smoothed_ctr(1, 1)
    for prefix, table in (("item", "probed"), ("user", "probed_by_other")):
        names = [feature.name for feature in STATISTICS[prefix].features]
        expected = {name: repr(ctr) if "_ctr_" in name else "1" for name in names}
        more = " OR ".join(f"{name} > {value}" for name, value in expected.items())
        enough = " AND ".join(f"{name} >= {value}" for name, value in expected.items())
        told = f"{prefix}_clicks_{WINDOWS_DAYS[0]}d"
        yield Law(
            check=f"canary.rows.{prefix}_statistics",
            law=f"{prefix} statistics hold nothing of the request's own day",
            rows=table,
            broken=f"""
                SELECT request_id || ' at ' || moment || ': {told} is ' || {told} || ', not 1' AS example
                FROM {table} WHERE {more}
            """,
            must_see=True,
        )
        yield _control(
            f"rows.{prefix}_statistics_sing", f"{prefix} statistics hold the day before's events", table, enough
        )


def _label_laws() -> Iterator[Law]:
    yield Law(
        check="canary.rows.label",
        law="a click in one page view labels no other page view",
        rows="probed_by_other",
        broken="SELECT request_id || ' at ' || moment AS example FROM probed_by_other WHERE clicked = 1",
        must_see=True,
    )
    yield _control("rows.label_sings", "a click in the page view's own moment is its label", "probed", "clicked = 1")


def _midnight_laws() -> Iterator[Law]:
    dawn, night = "(FROM nights WHERE page = 'dawn')", "(FROM nights WHERE page = 'night')"
    sides = {prefix: [feature.name for feature in view.features] for prefix, view in STATISTICS.items()}
    counts = {prefix: [name for name in names if "_ctr_" not in name] for prefix, names in sides.items()}
    new = " OR ".join(f"{name} > 0" for name in counts["item"])
    more = " OR ".join(f"{name} > {int('_impressions_' in name)}" for name in (*counts["item"], *counts["user"]))
    seen = " AND ".join(f"{name} = 1" for names in counts.values() for name in names if "_impressions_" in name)
    yield Law(
        check="canary.rows.midnight_statistics",
        law="of a page view that is open over midnight, midnight's statistics hold what was shown before it",
        rows=dawn,
        broken=f"""
            SELECT request_id || ': ' || item_id || ' was shown before ' || moment AS example FROM {dawn}
            WHERE (item = 'morn' AND ({new})) OR (item = 'eve' AND ({more}))
        """,
        must_see=True,
    )
    yield _control(
        "rows.midnight_statistics_sing",
        "what a page view that is open over midnight shows before it is counted at midnight",
        "(FROM nights WHERE page = 'dawn' AND item = 'eve')",
        seen,
    )
    yield Law(
        check="canary.rows.label_ends",
        law="no click labels a page view after the day that follows it",
        rows=night,
        broken=f"SELECT request_id || ': ' || item_id AS example FROM {night} WHERE item = 'eve' AND clicked = 1",
        must_see=True,
    )
    yield _control(
        "rows.midnight_label_sings",
        "a click after midnight labels the page view that was opened before it",
        "(FROM nights WHERE page = 'night' AND item = 'morn')",
        f"clicked = 1 AND request_time = moment - {MICRO}",
    )


def _late_laws() -> Iterator[Law]:
    carried = " OR ".join(f"{f.name} = {marked(f, LATE)}" for f in (*USER_FEATURES, *ITEM_FEATURES, *CLUSTER_FEATURES))
    asked = f"""(
        SELECT n, probes.moment, rows.* FROM probes LEFT JOIN rows
        ON rows.request_id = '{CANARY}-moment-' || n AND rows.item_id = '{CANARY}-late-' || n
    )"""
    yield Law(
        check="canary.rows.filled_in_later",
        law="a feature row created later and valid after the request is joined to no earlier row",
        rows=asked,
        broken=f"SELECT request_id || ' at ' || moment || ': ' || item_id AS example FROM {asked} WHERE {carried}",
        must_see=True,
    )
    early = " AND ".join(f"{f.name} = {marked(f, EARLY)}" for f in (*ITEM_FEATURES, *CLUSTER_FEATURES))
    yield _control(
        "rows.filled_in_later_sings", "a feature row valid one microsecond before the request is seen", asked, early
    )


def _ask_as_of(connection: "duckdb.DuckDBPyConnection", walked: Walked) -> None:
    """The table `future`: what the store says of each item created later, just before its creation and at it."""
    keys = connection.sql(
        f"""
        SELECT n, '{CANARY}-future-' || n AS {ITEM_KEY}, unnest([created - {MICRO}, created]) AS {EVENT_TIME},
            unnest([FALSE, TRUE]) AS created, row_number() OVER () - 1 AS key_number
        FROM (SELECT n, moment + INTERVAL 1 DAY AS created FROM probes)
        """
    ).to_arrow_table()
    keys = keys.set_column(keys.schema.get_field_index("key_number"), "key_number", pa.array(range(len(keys))))
    told = features_as_of(_store(walked), keys.drop_columns(["n", "created"]), ("ranking_item",))
    connection.register("asked_as_of", keys.append_column("category", told.column("category")))
    connection.execute(f"CREATE TABLE future AS SELECT *, {EVENT_TIME} AS moment FROM asked_as_of")


def _future_item_laws() -> Iterator[Law]:
    yield Law(
        check="canary.item_created_later",
        law="an item is unknown one microsecond before its creation",
        rows="future WHERE NOT created",
        broken="SELECT item_id || ' is known ' || moment AS example FROM future WHERE NOT created AND category <> ''",
        must_see=True,
    )
    rows = "(FROM future WHERE created)"
    yield _control("item_created_sings", "an item is known at its creation", rows, f"category = '{CANARY}'")


def _truncation_law() -> Law:
    # Labels may still come while the next day has not been read; `cold` and the period look at the whole log by design.
    told = [name for name in ROW_COLUMNS if name not in ("cold", "clicked")]
    same = " AND ".join(f"a.{name} IS NOT DISTINCT FROM b.{name}" for name in told)
    label = "(a.clicked = b.clicked OR a.request_time >= dusk.moment - INTERVAL 1 DAY)"
    real = f"NOT starts_with(user_id, '{CANARY}')"
    before = f"(SELECT rows.* FROM rows, dusk WHERE rows.request_time < dusk.moment AND {real})"
    key = "a.request_id = b.request_id AND a.request_time = b.request_time AND a.item_id = b.item_id"
    return Law(
        check="canary.rows.truncation",
        law="rows before a midnight are the same from a log that ends there",
        rows=before,
        broken=f"""
            SELECT coalesce(a.request_id, b.request_id) || ': ' || coalesce(a.item_id, b.item_id) AS example
            FROM {before} AS a FULL JOIN (FROM rows_before WHERE {real}) AS b ON {key}, dusk
            WHERE (({same}) AND {label}) IS NOT TRUE
        """,
        must_see=True,
    )


# --- online ---------------------------------------------------------------------------------------------------------


def _store(walked: Walked) -> "FeatureStore":
    from feature_repo.definitions import open_store

    with quiet():
        return open_store(walked.workspace)


def _look_up_at_dusk(connection: "duckdb.DuckDBPyConnection", walked: Walked) -> None:
    """The tables `online_users` and `online_items`: what the store that was loaded at dusk answers, as serving asks."""
    asked = connection.sql(f"SELECT DISTINCT user_id, item_id FROM rows WHERE {AT_DUSK}").to_arrow_table()
    users, items = (sorted(set(asked.column(key).to_pylist())) for key in (USER_KEY, ITEM_KEY))
    space_id = str(artifact.read(walked.rows, kind="rows").facts["space_id"])
    store = _store(walked)
    user = _answers(store, "ranking_user", {USER_KEY: users})
    clicked = {item for history in user.column(HISTORY).to_pylist() for item in history or []}
    met = sorted(clicked | set(items))
    profiles = _answers(store, "ranking_item", {ITEM_KEY: met})
    clusters = _answers(store, "item_cluster_ids", {ITEM_KEY: met, SPACE_KEY: [space_id] * len(met)})
    user = with_history_facts(user, clusters, profiles.select([ITEM_KEY, "category"]))
    item = profiles.append_column("cluster_id", clusters.column("cluster_id"))
    for name, table in (("online_users", user), ("online_items", item)):
        columns = {
            column: filled(table.column(column), column) if column in FEATURE_COLUMNS else table.column(column)
            for column in table.column_names
        }
        connection.register(f"{name}_answered", pa.table(columns))
        connection.execute(f"CREATE TABLE {name} AS FROM {name}_answered")


def _answers(store: "FeatureStore", service: str, keys: Mapping[str, Sequence[str]]) -> pa.Table:
    features = {"ranking_user": USER_FEATURES, "ranking_item": ITEM_FEATURES, "item_cluster_ids": CLUSTER_FEATURES}
    with quiet():
        asked = {key: list(values) for key, values in keys.items()}
        found = store.get_online_features(store.get_feature_service(service), asked).to_dict()
    columns = {key: pa.array(values, pa.string()) for key, values in keys.items()}
    return pa.table(columns | {f.name: pa.array(found[f.name], KIND_TYPES[f.kind]) for f in features[service]})


def _online_laws() -> Iterator[Law]:
    sides = {name: "u" if name in _USER_COLUMNS else "i" for name in FEATURE_COLUMNS}
    same = " AND ".join(f"o.{name} IS NOT DISTINCT FROM {side}.{name}" for name, side in sides.items())
    yield Law(
        check="canary.online",
        law="what the online store answers at a moment is what a training row of that moment holds",
        rows=f"rows WHERE {AT_DUSK}",
        broken=f"""
            SELECT o.user_id || ', ' || o.item_id || ' at ' || o.request_time AS example
            FROM (FROM rows WHERE {AT_DUSK}) AS o
            LEFT JOIN online_users AS u USING (user_id) LEFT JOIN online_items AS i ON i.item_id = o.item_id
            WHERE ({same}) IS NOT TRUE
        """,
        must_see=True,
    )
    yield Law(
        check="canary.online.history",
        law="no online history holds a click at or after the moment of the load",
        rows="online_users",
        broken="""
            SELECT user_id || ': holds a click of ' || make_timestamptz(list_max(history_clicked_at)) AS example
            FROM online_users, dusk WHERE list_max(history_clicked_at) >= epoch_us(dusk.moment)
        """,
        must_see=True,
    )
    rows = "(SELECT n, moment, u.* FROM probes LEFT JOIN online_users AS u USING (user_id) WHERE at_dusk)"
    heard = f"list_contains(history_item_ids, '{CANARY}-before-' || n)"
    yield _control(
        "online.history_sings", "a click one microsecond before the load is in the online history", rows, heard
    )


_USER_COLUMNS: Final = (*(feature.name for feature in USER_FEATURES), "history_cluster_ids", "history_categories")
