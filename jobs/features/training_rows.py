"""Join every impression with the features as of its request, through Feast, into the CTR models' rows."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from feature_repo.contract import (
    CODEBOOK_KEY,
    EVENT_TIME,
    ITEM_CLUSTER,
    ITEM_KEY,
    ITEM_PROFILE,
    PERIODS,
    SERVICES,
)
from jobs.features.offline import connect, read_parquet
from jobs.features.offline_sources import check_sources
from jobs.sequences.build import SPARK, choose
from model import artifact
from model.artifact import ArtifactMismatch, Manifest
from model.ctr.inputs.rows import REQUEST_COLUMNS, ROW_COLUMNS, fill, with_history_facts
from model.errors import RowsLost

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    from feast import FeatureStore

    from feature_repo.offline_store import AsofRetrievalJob

log = structlog.get_logger()

ROWS_A_CALL: Final = 500_000  # whose features DuckDB holds and sorts: with histories of 50 some 600 MB, or on disk
# Of which memory holds the features, with histories of 50 some 100 MB. Each batch looks its clicks up anew, among all
# items, so that smaller ones cost time.
ROWS_A_BATCH: Final = 50_000
ROWS_A_GROUP: Final = 20_000  # of the files: what a reader of them holds
END_OF_TIME: Final = 253_402_300_800_000_000  # the year 10000, in microseconds since 1970
SCRATCH: Final = "joined"  # in the draft: what Spark has joined, until it is written in order
ASKED: Final = ("ranking_user", "ranking_item", "item_cluster_ids")


# (period, start, end) -> its impressions whose request times lie in [start, end), in order, with their features.
Joined: TypeAlias = Callable[[str, int, int], Iterator[pa.RecordBatch]]


def build(
    *,
    sequences: Path,
    features: Path,
    materialize: Path,
    workspace: Path,
    out: Path,
    engine: str | None = None,
    master: str | None = None,
) -> Manifest:
    """The rows artifact: train.parquet, valid.parquet, test.parquet in the form of
    model.ctr.inputs.rows, in time order.

    The features are asked of Feast for one part of the impressions after another, in time order, and written as they
    come, so that memory depends neither on the length of the log nor on that of a user's history.
    Facts: rows and positives (per period), impressions_read, cold_test_rows, space_id, codebook_id.
    engine, master: as of jobs.sequences.build.choose. Spark joins all of them at once, for any length of the log, and
    the files are the same; what Beam is asked for DuckDB does.
    Raises ArtifactMismatch where the workspace's feature store holds other features than these, RowsLost where an
    impression has no row, EngineRefused, JavaMissing.
    """
    loaded = artifact.read(materialize, kind="materialize")
    splits = artifact.read(sequences, kind="sequences").facts["splits"]
    codebook_id = str(loaded.facts["codebook_id"])
    chosen, _ = choose(engine, master)
    store = _opened(workspace, features, loaded)
    paths = {"sequences": sequences, "features": features, "materialize": materialize}
    inputs = artifact.digests(paths)
    with artifact.write(out, kind="rows", inputs=inputs, config={}) as draft, closing(connect()) as connection:
        connection.execute(f"CREATE VIEW impressions AS SELECT * FROM {read_parquet(sequences / 'impressions')}")
        facts = _Facts(
            clusters=clusters_in(features, codebook_id),
            categories=categories_in(features),
            clicked=_clicked_before(connection, sequences, datetime.fromisoformat(splits["test_start"])),
        )
        read = _count_impressions(connection)
        joined: Joined = partial(_joined_here, store, sequences, codebook_id)
        if chosen == SPARK:
            _join_on_spark(store, sequences, codebook_id, out=draft.path / SCRATCH, master=master)
            joined = partial(_read_joined, store, draft.path / SCRATCH)
        counts = {}
        with _progress() as progress:
            told = partial(progress.advance, progress.add_task("joining impressions", total=read))
            for period in PERIODS:
                batches = _batches(joined, period, _spans(connection, period))
                counts[period] = _write(draft.path / f"{period}.parquet", batches, facts, told)
        _check_all(read, sum(count.rows for count in counts.values()))
        if chosen == SPARK:
            shutil.rmtree(draft.path / SCRATCH)
        draft.facts = {
            "space_id": loaded.facts["space_id"],
            "codebook_id": codebook_id,
            "impressions_read": read,
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
    from feature_repo.definitions import open_store, source_path  # Feast's import costs seconds

    store = open_store(workspace)
    registered = Path(store.get_feature_view(ITEM_PROFILE.name).batch_source.path)
    if registered != source_path(workspace.absolute(), ITEM_PROFILE):
        raise ArtifactMismatch(f"the registry of {workspace} reads {registered}: run the materialize stage again")
    return store


def _spans(connection: "duckdb.DuckDBPyConnection", period: str) -> list[tuple[int, int]]:
    """[start, end) of request times, in order, microseconds since 1970: each holds some ROWS_A_CALL impressions."""
    query = f"""
        SELECT DISTINCT epoch_us(request_time) AS start FROM (
            SELECT request_time, row_number() OVER (ORDER BY request_time) - 1 AS n FROM impressions
            WHERE period = $period
        ) WHERE n % {ROWS_A_CALL} = 0 ORDER BY start
    """
    starts = [start for (start,) in connection.execute(query, {"period": period}).fetchall()]
    return list(pairwise([*starts, END_OF_TIME]))


def _batches(joined: Joined, period: str, spans: Sequence[tuple[int, int]]) -> Iterator[pa.RecordBatch]:
    for start, end in spans:
        yield from joined(period, start, end)


def _shown_between(rows: Path, period: str, start: int, end: int) -> str:
    return f"""
        FROM {read_parquet(rows)}
        WHERE period = '{period}' AND request_time >= make_timestamptz({start})
            AND request_time < make_timestamptz({end})
        ORDER BY request_time, request_id, position, {ITEM_KEY}
    """


def _joined_here(
    store: "FeatureStore", sequences: Path, codebook_id: str, period: str, start: int, end: int
) -> Iterator[pa.RecordBatch]:
    shown = f"""
        SELECT {", ".join(REQUEST_COLUMNS)}, request_time AS {EVENT_TIME}, '{codebook_id}' AS {CODEBOOK_KEY}
        {_shown_between(sequences / "impressions", period, start, end)}
    """
    yield from features_as_of(store, shown, ASKED).to_arrow_batches(ROWS_A_BATCH)


def _join_on_spark(store: "FeatureStore", sequences: Path, codebook_id: str, *, out: Path, master: str | None) -> None:
    # What joins is left to Spark, what orders a span to DuckDB, whose batches, and so the files, are then the same.
    from pyspark.sql import functions as F

    from jobs.engines.spark_session import spark_place, spark_session
    from jobs.features.spark_asof_join import as_of, history

    spark = spark_session("courier rows", master)
    shown = spark.read.parquet(spark_place(spark, sequences / "impressions"))
    asked = shown.select(*REQUEST_COLUMNS, "period", F.lit(codebook_id).alias(CODEBOOK_KEY))
    views = [store.get_feature_view(view.name) for service in ASKED for view in SERVICES[service]]
    rows = as_of(asked, [history(spark, view) for view in views], moment="request_time")
    # Row groups of few hours, so that a span is read from few. By hash: a range would be sampled, and joined again.
    by_hour = rows.repartition(F.date_trunc("hour", "request_time")).sortWithinPartitions("request_time")
    by_hour.write.parquet(spark_place(spark, out))


def _read_joined(store: "FeatureStore", joined: Path, period: str, start: int, end: int) -> Iterator[pa.RecordBatch]:
    from feature_repo.asof_join import connected  # Feast's import costs seconds

    with connected(store.config) as db:
        yield from db.sql(f"SELECT * {_shown_between(joined, period, start, end)}").to_arrow_reader(ROWS_A_BATCH)


def features_as_of(store: "FeatureStore", asked: "pd.DataFrame | str", services: Sequence[str]) -> "AsofRetrievalJob":
    """The services' features of each asked row as of its moment, in the rows' order; null where there is none.

    asked: a frame or DuckDB's SQL, with the keys, `event_timestamp` and whatever shall stand beside the features.
    """
    views = [view for service in services for view in SERVICES[service]]
    features = [f"{view.name}:{feature.name}" for view in views for feature in view.features]
    job: AsofRetrievalJob = store.get_historical_features(asked, features)
    return job


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def clusters_in(features: Path, codebook_id: str) -> pa.Table:
    # One row an item and codebook, and valid since the item is known: no as-of join is needed to look a click up.
    source = ds.dataset(features / ITEM_CLUSTER.name, format="parquet")
    return source.to_table(columns=[ITEM_KEY, "cluster_id"], filter=pc.field(CODEBOOK_KEY) == codebook_id)


def categories_in(features: Path) -> pa.Table:
    # A row for each category that an item has had, in order.
    query = f"""
        SELECT {ITEM_KEY}, category, {EVENT_TIME} FROM {read_parquet(features / ITEM_PROFILE.name)}
        WINDOW item AS (PARTITION BY {ITEM_KEY} ORDER BY {EVENT_TIME})
        QUALIFY row_number() OVER item = 1 OR category <> lag(category) OVER item
        ORDER BY {ITEM_KEY}, {EVENT_TIME}
    """
    with closing(connect()) as connection:
        return connection.sql(query).to_arrow_table()


def _count_impressions(connection: "duckdb.DuckDBPyConnection") -> int:
    [(read,)] = connection.execute("SELECT count(*) FROM impressions").fetchall()
    return int(read)


def _check_all(read: int, rows: int) -> None:
    if read != rows:
        raise RowsLost(f"{read} impressions were read, and {rows} rows written")


def _clicked_before(connection: "duckdb.DuckDBPyConnection", sequences: Path, moment: datetime) -> pa.Array:
    # Distinct item_ids.
    query = f"SELECT DISTINCT item_id FROM {read_parquet(sequences / 'clicks')} WHERE event_time < $moment"
    return connection.sql(query, params={"moment": moment}).to_arrow_table().column(ITEM_KEY).combine_chunks()


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is looked up rather than joined: of items by clicks of a history, and which items were clicked before."""

    clusters: pa.Table
    categories: pa.Table
    clicked: pa.Array


@dataclass(slots=True)
class _Count:
    rows: int = 0
    positives: int = 0
    cold: int = 0


def _write(path: Path, batches: Iterable[pa.RecordBatch], facts: _Facts, told: Callable[[int], None]) -> _Count:
    count = _Count()
    with pq.ParquetWriter(path, pa.schema(list(ROW_COLUMNS.items()))) as writer:
        for batch in batches:
            rows = _completed(pa.Table.from_batches([batch]), facts)
            writer.write_table(rows, row_group_size=ROWS_A_GROUP)
            told(rows.num_rows)
            count.rows += rows.num_rows
            count.positives += _sum(rows.column("clicked"))
            count.cold += _sum(rows.column("cold"))
    return count


def _completed(joined: pa.Table, facts: _Facts) -> pa.Table:
    rows = with_history_facts(joined, facts.clusters, facts.categories)
    cold = pc.invert(pc.is_in(rows.column(ITEM_KEY), value_set=facts.clicked))
    return fill(rows.append_column("cold", cold))


def _sum(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)
