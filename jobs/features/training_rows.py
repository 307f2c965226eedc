"""Join every impression with the features as of its request, through Feast, into the CTR models' rows."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from feature_repo.contract import (
    EVENT_TIME,
    ITEM_CLUSTER,
    ITEM_KEY,
    ITEM_PROFILE,
    PERIODS,
    SERVICES,
    SPACE_KEY,
    USER_KEY,
    View,
)
from jobs.features.materialize import check_sources, quiet
from jobs.features.offline import connect, read_parquet
from jobs.features.row_parts import NUMBER, PART, RowParts
from model import artifact
from model.artifact import ArtifactMismatch, Manifest
from model.ctr.inputs.rows import REQUEST_COLUMNS, ROW_COLUMNS, features_of, fill, with_history_facts
from model.errors import RowsLost

if TYPE_CHECKING:
    import duckdb
    from feast import FeatureStore

log = structlog.get_logger()

# Feast pairs a key with every row of its entity that was valid by then, whole, before it keeps the newest: so much of
# such pairs a call may make. A log of decades makes hundreds of millions of them.
BYTES_A_CALL: Final = 512 * 2**20
BYTES_A_KEY: Final = 1024  # on its way to Feast and back
BYTES_A_PAIR: Final = 128  # besides its features: the key as one text, and what sorting takes
BYTES_A_VALUE: Final = 16
ROWS_A_PART: Final = 100_000  # whose features are in memory together: with histories of 50 some 200 MB
ROWS_A_WRITE: Final = 20_000
DUCKDB_MEMORY: Final = "1GB"  # for keys and requests; what is more goes to disk


def build(*, sequences: Path, features: Path, materialize: Path, workspace: Path, out: Path) -> Manifest:
    """The rows artifact: train.parquet, valid.parquet, test.parquet in the form of
    model.ctr.inputs.rows, in time order.

    User features are joined once per (user, request time), item features once per (item, request time), in order of the
    entity; a row puts the two together, in order of time. Between the two they lie in parts on disk, so that memory
    depends neither on the length of the log nor on that of a user's history.
    Facts: rows and positives (per period), impressions_read, cold_test_rows, space_id.
    Raises ArtifactMismatch where the workspace's feature store holds other features than these, RowsLost where an
    impression has no row.
    """
    loaded = artifact.read(materialize, kind="materialize")
    splits = artifact.read(sequences, kind="sequences").facts["splits"]
    space_id = str(loaded.facts["space_id"])
    store = _opened(workspace, features, loaded)
    paths = {"sequences": sequences, "features": features, "materialize": materialize}
    inputs = artifact.digests(paths)
    with (
        artifact.write(out, kind="rows", inputs=inputs, config={}) as draft,
        artifact.scratch(out.parent) as scratch,
        closing(connect()) as connection,
    ):
        aside = cast(Path, scratch)  # as `out` is
        _limit_memory(connection, aside)
        connection.execute(f"CREATE VIEW impressions AS SELECT * FROM {read_parquet(sequences / 'impressions')}")
        warm = _clicked_before(connection, sequences, datetime.fromisoformat(splits["test_start"]))
        sides = _joined(store, connection, features, space_id, aside)
        counts = {
            period: _write(draft.path / f"{period}.parquet", _shown(connection, period), sides, warm)
            for period in PERIODS
        }
        draft.facts = {
            "space_id": space_id,
            "impressions_read": _impressions(connection, sum(count.rows for count in counts.values())),
            "rows": {period: count.rows for period, count in counts.items()},
            "positives": {period: count.positives for period, count in counts.items()},
            "cold_test_rows": counts["test"].cold,
        }
    log.info("rows_written", cold_test_rows=draft.facts["cold_test_rows"], **draft.facts["rows"])
    return artifact.read(out, kind="rows")


def _opened(workspace: Path, features: Path, loaded: Manifest) -> "FeatureStore":
    check_sources(workspace, features)
    if loaded.inputs["features"] != artifact.digest(features):
        raise ArtifactMismatch(f"the feature store was not loaded from {features}: run the materialize stage again")
    with quiet():
        from feature_repo.definitions import open_store, source_path

        store = open_store(workspace)
        registered = Path(store.get_feature_view(ITEM_PROFILE.name).batch_source.path)
    if registered != source_path(workspace.absolute(), ITEM_PROFILE):
        raise ArtifactMismatch(f"the registry of {workspace} reads {registered}: run the materialize stage again")
    return store


def _limit_memory(connection: "duckdb.DuckDBPyConnection", aside: Path) -> None:
    quoted = str(aside / "duckdb").replace("'", "''")
    connection.execute(f"SET memory_limit = '{DUCKDB_MEMORY}'; SET temp_directory = '{quoted}'")


def _joined(
    store: "FeatureStore", connection: "duckdb.DuckDBPyConnection", features: Path, space_id: str, aside: Path
) -> tuple[RowParts, RowParts]:
    # The features of every (user, request time) and of every (item, request time), by the numbers of these keys.
    connection.execute(
        f"""
        CREATE TABLE moments AS
        SELECT {EVENT_TIME}, CAST((sum(rows) OVER (ORDER BY {EVENT_TIME}) - rows) // {ROWS_A_PART} AS INT) AS {PART}
        FROM (SELECT request_time AS {EVENT_TIME}, count(*) AS rows FROM impressions GROUP BY 1)
        """
    )
    clusters, categories = _clusters(features, space_id), _categories(features)
    users = RowParts(aside / "users", lambda rows: with_history_facts(rows, clusters, categories))
    items = RowParts(aside / "items")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for key, services, parts in (
            (USER_KEY, ("ranking_user",), users),
            (ITEM_KEY, ("ranking_item", "item_cluster_ids"), items),
        ):
            calls = _number_keys(connection, key, features, services)
            for call in progress.track(range(calls), description=f"joining {services[0]}"):
                keys = _keys_of(connection, key, call)
                asked = keys.drop_columns([PART]).append_column(SPACE_KEY, pa.array([space_id] * keys.num_rows))
                joined = features_as_of(store, asked, services)
                parts.append(joined.append_column(NUMBER, keys[NUMBER]).append_column(PART, keys[PART]))
    return users, items


def _number_keys(connection: "duckdb.DuckDBPyConnection", key: str, features: Path, services: Sequence[str]) -> int:
    """Make the table `<key>_keys`: each key's number, its part and its call of Feast; returns how many calls.

    In order of the entity, so that a call meets few entities. A call takes as many keys as BYTES_A_CALL allows, and at
    least one.
    """
    views = [view for service in services for view in SERVICES[service]]
    joins = "".join(
        f"""
        ASOF LEFT JOIN (
            SELECT {key}, {EVENT_TIME}, row_number() OVER (PARTITION BY {key} ORDER BY {EVENT_TIME}) AS rows
            FROM {read_parquet(features / view.name)}
        ) AS {view.name}
        ON keys.{key} = {view.name}.{key} AND keys.{EVENT_TIME} >= {view.name}.{EVENT_TIME}
        """
        for view in views
    )
    pairs = " + ".join(f"coalesce({view.name}, 0) * {_pair_bytes(view)}" for view in views)
    connection.execute(
        f"""
        CREATE TABLE {key}_keys AS
        SELECT * EXCLUDE (budget), CAST(dense_rank() OVER (ORDER BY budget) AS INT) - 1 AS call
        FROM (
            SELECT {key}, {EVENT_TIME}, {PART}, row_number() OVER entity - 1 AS {NUMBER},
                sum({BYTES_A_KEY} + {pairs}) OVER entity // {BYTES_A_CALL} AS budget
            FROM (
                SELECT keys.{key}, keys.{EVENT_TIME}, {", ".join(f"{view.name}.rows AS {view.name}" for view in views)}
                FROM (SELECT DISTINCT {key}, request_time AS {EVENT_TIME} FROM impressions) AS keys {joins}
            )
            JOIN moments USING ({EVENT_TIME})
            WINDOW entity AS (ORDER BY {key}, {EVENT_TIME} ROWS UNBOUNDED PRECEDING)
        )
        """
    )
    [(calls,)] = connection.execute(f"SELECT count(DISTINCT call) FROM {key}_keys").fetchall()
    return int(calls)


def _pair_bytes(view: View) -> int:
    return BYTES_A_PAIR + BYTES_A_VALUE * sum(max(1, feature.width) for feature in view.features)


def _keys_of(connection: "duckdb.DuckDBPyConnection", key: str, call: int) -> pa.Table:
    query = f"SELECT {key}, {EVENT_TIME}, {PART}, {NUMBER} FROM {key}_keys WHERE call = $call ORDER BY {NUMBER}"
    return connection.sql(query, params={"call": call}).to_arrow_table()


def features_as_of(store: "FeatureStore", keys: pa.Table, services: Sequence[str]) -> pa.Table:
    """The services' features of each key as of its moment, in the keys' order; null where there is none."""
    columns: dict[str, pa.ChunkedArray] = {}
    for service in services:
        with quiet():
            job = store.get_historical_features(keys.to_pandas(), store.get_feature_service(service))
            joined = job.to_arrow().sort_by(NUMBER)  # Feast keeps no order
            if joined[NUMBER].to_pylist() != keys[NUMBER].to_pylist():
                raise ArtifactMismatch(f"{service}: Feast answered {joined.num_rows} rows for {keys.num_rows} keys")
        columns |= {feature.name: joined.column(feature.name) for feature in features_of(service)}
    return pa.table(columns)


def _clusters(features: Path, space_id: str) -> pa.Table:
    # One row an item and space, and valid since the item is known: no as-of join is needed to look a click up.
    source = ds.dataset(features / ITEM_CLUSTER.name, format="parquet")
    return source.to_table(columns=[ITEM_KEY, "cluster_id"], filter=pc.field(SPACE_KEY) == space_id)


def _categories(features: Path) -> pa.Table:
    return ds.dataset(features / ITEM_PROFILE.name, format="parquet").to_table(columns=[ITEM_KEY, "category"])


def _impressions(connection: "duckdb.DuckDBPyConnection", rows: int) -> int:
    """How many impressions there are. Raises RowsLost unless there are as many rows."""
    [(read,)] = connection.execute("SELECT count(*) FROM impressions").fetchall()
    if read != rows:
        raise RowsLost(f"{read} impressions were read, and {rows} rows written")
    return int(read)


def _clicked_before(connection: "duckdb.DuckDBPyConnection", sequences: Path, moment: datetime) -> pa.Array:
    # Distinct item_ids.
    query = f"SELECT DISTINCT item_id FROM {read_parquet(sequences / 'clicks')} WHERE event_time < $moment"
    return connection.sql(query, params={"moment": moment}).to_arrow_table().column(ITEM_KEY).combine_chunks()


def _shown(connection: "duckdb.DuckDBPyConnection", period: str) -> pa.RecordBatchReader:
    query = f"""
        SELECT {", ".join(f"shown.{name}" for name in REQUEST_COLUMNS)},
            users.{PART}, users.{NUMBER} AS user_number, items.{NUMBER} AS item_number
        FROM impressions AS shown
        JOIN {USER_KEY}_keys AS users
        ON users.{USER_KEY} = shown.{USER_KEY} AND users.{EVENT_TIME} = shown.request_time
        JOIN {ITEM_KEY}_keys AS items
        ON items.{ITEM_KEY} = shown.{ITEM_KEY} AND items.{EVENT_TIME} = shown.request_time
        WHERE period = $period
        ORDER BY shown.request_time, shown.request_id, shown.position, shown.{ITEM_KEY}
    """
    return connection.sql(query, params={"period": period}).to_arrow_reader(ROWS_A_WRITE)


@dataclass(slots=True)
class _Count:
    rows: int = 0
    positives: int = 0
    cold: int = 0


def _write(path: Path, shown: pa.RecordBatchReader, sides: tuple[RowParts, RowParts], warm: pa.Array) -> _Count:
    count = _Count()
    with pq.ParquetWriter(path, pa.schema(list(ROW_COLUMNS.items()))) as writer:
        for batch in shown:
            rows = _assembled(pa.Table.from_batches([batch]), sides, warm)
            writer.write_table(rows)
            count.rows += rows.num_rows
            count.positives += _sum(rows.column("clicked"))
            count.cold += _sum(rows.column("cold"))
    return count


def _assembled(shown: pa.Table, sides: tuple[RowParts, RowParts], warm: pa.Array) -> pa.Table:
    columns: dict[str, Any] = {name: shown.column(name) for name in REQUEST_COLUMNS}
    parts = pc.unique(shown.column(PART)).to_pylist()
    for side, number in zip(sides, ("user_number", "item_number"), strict=True):
        found = side.rows(shown.column(number), parts)
        columns |= {name: found.column(name) for name in found.column_names}
    columns["cold"] = pc.invert(pc.is_in(shown.column(ITEM_KEY), value_set=warm))
    return fill(pa.table(columns))


def _sum(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)
