"""A Feast offline store over parquet files: Feast's own `duckdb` store with its point-in-time joins as ASOF joins.

    offline_store: {type: feature_repo.offline_store.AsofOfflineStore, memory: 2GB, spill: /var/tmp}

Feast's store pairs each row of the entity frame with all earlier rows of its entity and keeps the newest pair; an ASOF
join sorts both sides once. The answers are the same, in the order of the entity frame.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from feast import FeatureView
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from pydantic import StrictStr

from feature_repo.asof_join import (
    MOMENT,
    Frame,
    Tables,
    asof_query,
    check_names,
    connected,
    entity_frame,
    parquet_path,
    quoted,
    rows_between,
    view_rows,
)

ROWS_A_BATCH: Final = 20_000


class AsofOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """The store's settings in feature_store.yaml."""

    type: StrictStr = "feature_repo.offline_store.AsofOfflineStore"
    memory: StrictStr = "50%"  # what DuckDB may hold; more goes to disk. The answer that is asked for comes on top
    spill: StrictStr | None = None  # where a query's folder for that is made, and removed; None: the system's for such
    staging_location: None = None  # export to remote storage is Feast's own store's
    staging_location_endpoint_override: None = None


class AsofOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]
    """Reads by queries of ours; writing and monitoring are those of Feast's DuckDB store, whose files are the same."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: Sequence[FeatureView],
        feature_refs: Sequence[str],
        entity_df: pd.DataFrame | str,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> "AsofRetrievalJob":
        """The features of each row of the entity frame as of its moment, null where there are none.

        A view answers with its newest row at or before the moment, and among rows of one event time with the one
        created last; with a ttl, only if it is not older than that: event <= moment <= event + ttl.
        filter_by_created_timestamp: only rows created at or before the moment are known.
        Moments are microseconds: of finer ones that of a request is rounded down and that of a feature up.
        entity_df: a SQL text is DuckDB's, whose file functions it may use.
        Raises FeastEntityDFMissingColumnsError, or CourierError where a source is no parquet or a name is there twice.
        """
        tables: dict[str, pa.Table | ds.Dataset] = {}
        with connected(config) as db:
            frame = entity_frame(db, entity_df, tables)
            views = [
                view_rows(db, view, feature_refs, config, tables, full_feature_names, filter_by_created_timestamp)
                for view in feature_views
            ]
        check_names(frame, views)
        on_demand = OnDemandFeatureView.get_requested_odfvs(list(feature_refs), project, registry)
        return AsofRetrievalJob(
            config,
            asof_query(frame, views),
            tables,
            on_demand_feature_views=on_demand,
            full_feature_names=full_feature_names,
            frame=frame,
            feature_refs=feature_refs,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: Sequence[str],
        feature_name_columns: Sequence[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> "AsofRetrievalJob":
        """Each entity's newest row in [start_date, end_date]."""
        newest_first = ", ".join(
            f"{quoted(name)} DESC NULLS LAST" for name in (timestamp_field, created_timestamp_column) if name
        )
        entity = ", ".join(quoted(key) for key in join_key_columns)
        by = f"PARTITION BY {entity} " if entity else ""
        query, tables = rows_between(
            config,
            data_source,
            [*join_key_columns, *feature_name_columns],
            [timestamp_field, created_timestamp_column],
            (start_date, end_date),
        )
        latest = f"{query} QUALIFY row_number() OVER ({by}ORDER BY {newest_first}) = 1"
        return AsofRetrievalJob(config, latest, tables)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: Sequence[str],
        feature_name_columns: Sequence[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> "AsofRetrievalJob":
        """All rows in [start_date, end_date]; an end that is None is open."""
        query, tables = rows_between(
            config,
            data_source,
            [*join_key_columns, *feature_name_columns],
            [timestamp_field, created_timestamp_column],
            (start_date, end_date),
        )
        return AsofRetrievalJob(config, query, tables)


class AsofRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A query, run anew in a database of its own each time that its rows are asked for."""

    def __init__(
        self,
        config: RepoConfig,
        query: str,
        tables: Tables,
        *,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        full_feature_names: bool = False,
        frame: "Frame | None" = None,
        feature_refs: Sequence[str] = (),
    ) -> None:
        """tables: what the query names besides files.  frame, feature_refs: what was asked, for `metadata`."""
        self._config = config
        self._query = query
        self._tables = tables
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._full_feature_names = full_feature_names
        self._frame = frame
        self._feature_refs = list(feature_refs)

    def to_sql(self) -> str:
        """The query in DuckDB's SQL; entity frames that are no SQL it calls `entity_frame`."""
        return self._query

    def to_arrow_batches(self, rows: int = ROWS_A_BATCH) -> Iterator[pa.RecordBatch]:
        """The answer in order, some `rows` at a time: memory holds no more of it, unless features on demand are asked.

        The query ends, and what it has spilled is removed, when the iterator is exhausted or closed.
        """
        if self._on_demand_feature_views:
            yield from self.to_arrow().to_batches(rows)
            return
        with self._reader(rows) as reader:
            yield from reader

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,  # noqa: ARG002 (Feast's name; DuckDB has none)
    ) -> None:
        """Write the answer, features on demand too, as parquet: to a file, or into a folder, in place of its files.

        Raises SavedDatasetLocationAlreadyExists where something is there and must not be overwritten.
        """
        source = storage.to_data_source()
        target = Path(FileSource.get_uri_for_file_path(self._config.repo_path, parquet_path(source)))
        if target.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=source.path)
        is_file = target.suffix == ".parquet"
        folder = target.parent if is_file else target
        folder.mkdir(parents=True, exist_ok=True)
        replaced = [] if is_file else list(folder.glob("*.parquet"))
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".persist-") as aside:
            written = Path(aside) / "part-00000.parquet"
            self._write(written)
            for part in replaced:
                part.unlink()
            written.replace(target if is_file else folder / written.name)

    def _write(self, path: Path) -> None:
        if self._on_demand_feature_views:
            pq.write_table(self.to_arrow(), path)
            return
        with self._reader(ROWS_A_BATCH) as reader, pq.ParquetWriter(path, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)

    @property
    def full_feature_names(self) -> bool:
        """Whether features bear the names of their views."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """What is computed from the joined features, by Feast."""
        return self._on_demand_feature_views

    @cached_property
    def metadata(self) -> RetrievalMetadata | None:
        """What was asked, from the first moment to the last; None of a source's rows."""
        if self._frame is None:
            return None
        with connected(self._config, self._tables) as db:
            query = f"SELECT min({MOMENT}), max({MOMENT}) FROM ({self._frame.query})"
            [first, last] = db.execute(query).fetchone() or (None, None)
        keys = [name for name in self._frame.columns if name != self._frame.moment]
        return RetrievalMetadata(self._feature_refs, keys, first, last)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 (Feast's name)
        with connected(self._config, self._tables) as db:
            return db.sql(self._query).to_arrow_table()

    @contextmanager
    def _reader(self, rows: int) -> Iterator[pa.RecordBatchReader]:
        with connected(self._config, self._tables) as db:
            yield db.sql(self._query).to_arrow_reader(rows)
