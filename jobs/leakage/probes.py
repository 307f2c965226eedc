"""Run the stages over planted probes, and look where these are seen: in no training row and no online row too early.

The same log cut at a midnight, the `cutoff`, must give the same rows before it, and an online store that is loaded at
the cutoff must answer as the offline one does for that moment.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_repo.arrow_types import KIND_TYPES
from feature_repo.contract import CODEBOOK_KEY, EVENT_TIME, ITEM_KEY, USER_KEY
from jobs.config import SequencesConfig
from jobs.features.offline import connect, read_parquet
from jobs.features.training_rows import features_as_of
from jobs.leakage import probe_checks
from jobs.leakage.audit import read_rows
from jobs.leakage.check import CheckResult, run_check
from jobs.leakage.daily_log import grow_log
from jobs.leakage.planted_probes import CLICKS_A_DAY, MICRO, PROBE_ID, draw_sample, plant
from jobs.leakage.probe_checks import AT_CUTOFF
from jobs.leakage.probe_run import ProbeRun, run_stages
from model import artifact
from model.ctr.inputs.rows import (
    CLUSTER_FEATURES,
    FEATURE_COLUMNS,
    HISTORY,
    ITEM_FEATURES,
    USER_FEATURES,
    filled,
    with_history_facts,
)

if TYPE_CHECKING:
    import duckdb
    from feast import FeatureStore


def check_probes(stages: Mapping[str, Path], scratch: Path, *, users: int) -> Iterator[CheckResult]:
    """Every check of the probes, one result each. stages: the folder of each stage in jobs.leakage.probe_run.SOURCES.

    scratch: an empty folder to work in.  users: how many of the workspace's users the probes are planted among.
    Raises ProbeIdsTaken, ArtifactMissing, ArtifactMismatch, and what the stages raise.
    """
    config = SequencesConfig(**artifact.read(stages["sequences"], kind="sequences").config)
    config = replace(config, max_clicks_per_day=config.max_clicks_per_day + CLICKS_A_DAY)
    with closing(connect()) as connection:
        draw_sample(connection, stages, users)
        plant(connection)
        whole = run_stages(connection, stages, scratch / "whole", config, cut=False)
        _open_views(connection, whole, "")
        _ask_as_of(connection, whole)
        for check in probe_checks.offline_checks():
            yield run_check(connection, check)
        before = run_stages(connection, stages, scratch / "before", config, cut=True)
        _open_views(connection, before, "_before")
        yield run_check(connection, probe_checks.truncation_check())
        _look_up_at_cutoff(connection, before)
        for check in probe_checks.online_checks():
            yield run_check(connection, check)
        yield from grow_log(connection, scratch / "daily", whole=whole, before=before, config=config)


def _open_views(connection: "duckdb.DuckDBPyConnection", run: ProbeRun, suffix: str) -> None:
    # `rows` and `page_views` of the run; `probed`, the probes' own page views with their rows.
    connection.execute(f"CREATE VIEW rows{suffix} AS {read_rows(run.rows)}")
    connection.execute(f"CREATE VIEW page_views{suffix} AS FROM {read_parquet(run.sequences / 'page_views')}")
    if not suffix:
        shows = f"rows.item_id = '{PROBE_ID}-at-' || n AND rows.request_time = probes.moment"
        connection.execute(
            f"""
            CREATE VIEW probed AS SELECT n, probes.moment, rows.* FROM probes
            LEFT JOIN rows ON {shows} AND rows.request_id = probes.request_id AND rows.user_id = probes.user_id;
            CREATE VIEW probed_by_other AS SELECT n, probes.moment, rows.* FROM probes
            LEFT JOIN rows ON {shows} AND rows.request_id = '{PROBE_ID}-moment-' || n;
            CREATE VIEW midnights AS
            SELECT n, date_trunc('day', probes.moment) AS moment, page, item, rows.*
            FROM probes CROSS JOIN (VALUES ('over'), ('at')) AS pages(page)
            CROSS JOIN (VALUES ('evening'), ('morning')) AS items(item) LEFT JOIN rows
            ON rows.user_id = '{PROBE_ID}-midnight-' || n
                AND rows.request_id = '{PROBE_ID}-' || page || '-midnight-' || n
                AND rows.item_id = '{PROBE_ID}-' || item || '-' || n
            """
        )


def _ask_as_of(connection: "duckdb.DuckDBPyConnection", run: ProbeRun) -> None:
    """The table `future`: what the store says of each item created later, just before its creation and at it."""
    keys = connection.sql(
        f"""
        SELECT n, '{PROBE_ID}-future-' || n AS {ITEM_KEY}, unnest([created - {MICRO}, created]) AS {EVENT_TIME},
            unnest([FALSE, TRUE]) AS created
        FROM (SELECT n, moment + INTERVAL 1 DAY AS created FROM probes)
        """
    ).df()
    known = features_as_of(_store(run), keys, ("ranking_item",)).to_arrow()
    connection.register("asked_as_of", known.select([*keys.columns, "category"]))
    connection.execute(f"CREATE TABLE future AS SELECT *, {EVENT_TIME} AS moment FROM asked_as_of")


def _store(run: ProbeRun) -> "FeatureStore":
    from feature_repo.definitions import open_store

    return open_store(run.workspace)


def _look_up_at_cutoff(connection: "duckdb.DuckDBPyConnection", run: ProbeRun) -> None:
    """The tables `online_users` and `online_items`: what the store loaded at the cutoff answers."""
    asked = connection.sql(f"SELECT DISTINCT user_id, item_id FROM rows WHERE {AT_CUTOFF}").to_arrow_table()
    users, items = (sorted(set(asked.column(key).to_pylist())) for key in (USER_KEY, ITEM_KEY))
    codebook_id = str(artifact.read(run.rows, kind="rows").facts["codebook_id"])
    store = _store(run)
    user = _answers(store, "ranking_user", {USER_KEY: users})
    clicked = {item for history in user.column(HISTORY).to_pylist() for item in history or []}
    met = sorted(clicked | set(items))
    profiles = _answers(store, "ranking_item", {ITEM_KEY: met})
    clusters = _answers(store, "item_cluster_ids", {ITEM_KEY: met, CODEBOOK_KEY: [codebook_id] * len(met)})
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
    asked = {key: list(values) for key, values in keys.items()}
    found = store.get_online_features(store.get_feature_service(service), asked).to_dict()
    columns = {key: pa.array(values, pa.string()) for key, values in keys.items()}
    return pa.table(columns | {f.name: pa.array(found[f.name], KIND_TYPES[f.kind]) for f in features[service]})
