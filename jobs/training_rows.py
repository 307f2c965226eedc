"""Join every impression with the features as of its request, through Feast, into the CTR models' rows."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from feature_repo.contract import EVENT_TIME, ITEM_CLUSTER, ITEM_KEY, ITEM_PROFILE, PERIODS, SPACE_KEY, USER_KEY
from jobs.features import connect, read_parquet
from jobs.materialize import check_sources, quiet
from model import artifact
from model.artifact import ArtifactMismatch, Manifest
from model.ctr.rows import REQUEST_COLUMNS, ROW_COLUMNS, features_of, fill, with_history_facts

if TYPE_CHECKING:
    import duckdb
    from feast import FeatureStore

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

# Feast's join pairs a key with every earlier row of its entity before it keeps the newest: a call's memory grows with
# both. 47k user keys with histories of 50 in one call took 3 GB, 300k item keys 1.8 GB.
USER_KEYS_A_CALL: Final = 20_000
ITEM_KEYS_A_CALL: Final = 200_000
ROWS_A_WRITE: Final = 20_000
NUMBER: Final = "key_number"


def build(*, sequences: Path, features: Path, materialize: Path, workspace: Path, out: Path) -> Manifest:
    """The rows artifact: train.parquet, valid.parquet, test.parquet in the form of model.ctr.rows, in time order.

    User features are joined once per (user, request time), item features once per (item, request time); a row puts the
    two together. Facts: rows and positives (per period), cold_test_rows, space_id.
    Raises ArtifactMismatch where the workspace's feature store holds other features than these.
    """
    loaded = artifact.read(materialize, kind="materialize")
    splits = artifact.read(sequences, kind="sequences").facts["splits"]
    space_id = str(loaded.facts["space_id"])
    store = _opened(workspace, features, loaded)
    paths = {"sequences": sequences, "features": features, "materialize": materialize}
    inputs = {name: artifact.digest(path) for name, path in paths.items()}
    with artifact.write(out, kind="rows", inputs=inputs, config={}) as draft, closing(connect()) as connection:
        connection.execute(f"CREATE VIEW impressions AS SELECT * FROM {read_parquet(sequences / 'impressions')}")
        warm = _clicked_before(connection, sequences, datetime.fromisoformat(splits["test_start"]))
        users, items = _joined(store, connection, space_id)
        users = with_history_facts(users, _clusters(features, space_id), _categories(features))
        counts = {
            period: _write(draft.path / f"{period}.parquet", _shown(connection, period), users, items, warm)
            for period in PERIODS
        }
        draft.facts = {
            "space_id": space_id,
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


def _joined(store: "FeatureStore", connection: "duckdb.DuckDBPyConnection", space_id: str) -> tuple[pa.Table, pa.Table]:
    # The features of every (user, request time) and of every (item, request time): row i is key number i.
    user_keys = _numbered_keys(connection, "user_keys", USER_KEY)
    item_keys = _numbered_keys(connection, "item_keys", ITEM_KEY)
    item_keys = item_keys.append_column(SPACE_KEY, pa.array([space_id] * item_keys.num_rows, pa.string()))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        users = _as_of(store, user_keys, ("ranking_user",), USER_KEYS_A_CALL, progress)
        items = _as_of(store, item_keys, ("ranking_item", "item_cluster_ids"), ITEM_KEYS_A_CALL, progress)
    return users, items


def _numbered_keys(connection: "duckdb.DuckDBPyConnection", table: str, key: str) -> pa.Table:
    # In order of the entity, so that one call of Feast meets few entities.
    connection.execute(
        f"""
        CREATE TABLE {table} AS
        SELECT {key}, {EVENT_TIME}, row_number() OVER (ORDER BY {key}, {EVENT_TIME}) - 1 AS {NUMBER}
        FROM (SELECT DISTINCT {key}, request_time AS {EVENT_TIME} FROM impressions)
        """
    )
    return connection.sql(f"SELECT * FROM {table} ORDER BY {NUMBER}").to_arrow_table()


def _as_of(
    store: "FeatureStore", keys: pa.Table, services: Sequence[str], keys_a_call: int, progress: Progress
) -> pa.Table:
    task = progress.add_task(f"joining {services[0]}", total=keys.num_rows)
    parts = []
    for first in range(0, keys.num_rows, keys_a_call):
        part = keys.slice(first, keys_a_call)
        parts.append(features_as_of(store, part, services))
        progress.advance(task, part.num_rows)
    return pa.concat_tables(parts)


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


def _clicked_before(connection: "duckdb.DuckDBPyConnection", sequences: Path, moment: datetime) -> pa.Array:
    # Distinct item_ids.
    query = f"SELECT DISTINCT item_id FROM {read_parquet(sequences / 'clicks')} WHERE event_time < $moment"
    return connection.sql(query, params={"moment": moment}).to_arrow_table().column(ITEM_KEY).combine_chunks()


def _shown(connection: "duckdb.DuckDBPyConnection", period: str) -> pa.RecordBatchReader:
    query = f"""
        SELECT {", ".join(f"shown.{name}" for name in REQUEST_COLUMNS)},
            users.{NUMBER} AS user_number, items.{NUMBER} AS item_number
        FROM impressions AS shown
        JOIN user_keys AS users ON users.{USER_KEY} = shown.{USER_KEY} AND users.{EVENT_TIME} = shown.request_time
        JOIN item_keys AS items ON items.{ITEM_KEY} = shown.{ITEM_KEY} AND items.{EVENT_TIME} = shown.request_time
        WHERE period = $period
        ORDER BY shown.request_time, shown.request_id, shown.position, shown.{ITEM_KEY}
    """
    return connection.sql(query, params={"period": period}).to_arrow_reader(ROWS_A_WRITE)


@dataclass(slots=True)
class _Count:
    rows: int = 0
    positives: int = 0
    cold: int = 0


def _write(path: Path, shown: pa.RecordBatchReader, users: pa.Table, items: pa.Table, warm: pa.Array) -> _Count:
    count = _Count()
    with pq.ParquetWriter(path, pa.schema(list(ROW_COLUMNS.items()))) as writer:
        for batch in shown:
            rows = _assembled(pa.Table.from_batches([batch]), users, items, warm)
            writer.write_table(rows)
            count.rows += rows.num_rows
            count.positives += _sum(rows.column("clicked"))
            count.cold += _sum(rows.column("cold"))
    return count


def _assembled(shown: pa.Table, users: pa.Table, items: pa.Table, warm: pa.Array) -> pa.Table:
    sides = (users.take(shown.column("user_number")), items.take(shown.column("item_number")))
    columns: dict[str, Any] = {name: shown.column(name) for name in REQUEST_COLUMNS}
    columns |= {name: side.column(name) for side in sides for name in side.column_names}
    columns["cold"] = pc.invert(pc.is_in(shown.column(ITEM_KEY), value_set=warm))
    return fill(pa.table(columns))


def _sum(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)


@app.command()
def training_rows(
    sequences: Annotated[Path, typer.Option(help="the sequences artifact")],
    features: Annotated[Path, typer.Option(help="the features artifact")],
    materialize: Annotated[Path, typer.Option(help="the materialize artifact")],
    workspace: Annotated[Path, typer.Option(help="the workspace whose Feast registry is asked")],
    out: Annotated[Path, typer.Option(help="where the rows artifact goes")],
) -> None:
    """Build the CTR models' rows by a point-in-time join through Feast."""
    build(sequences=sequences, features=features, materialize=materialize, workspace=workspace, out=out)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line."""
    app(args=argv)


if __name__ == "__main__":
    main()
