"""Write the feature views' offline sources: one folder of parquet per view of the contract, as Feast reads them."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import structlog

from feature_repo.arrow_types import KIND_TYPES, TIME
from feature_repo.contract import (
    CODEBOOK_KEY,
    EMBEDDING_DIM,
    EVENT_TIME,
    ITEM_CLUSTER,
    ITEM_EMBEDDING,
    ITEM_PROFILE,
    SPACE_KEY,
    USER_HISTORY,
    VIEWS,
    View,
)
from jobs.features.item_profiles import UnknownPast, place_states, profile_changes, unknown_past
from jobs.features.value_checks import ViewSummary, check_rows
from jobs.rules.statistics import midnight_after
from jobs.sequences.duckdb import item_statistics
from model import artifact
from model.artifact import ArtifactMismatch, Manifest

log = structlog.get_logger()

BATCH_ROWS: Final = 10_000  # a row of history or embedding weighs about 1 kB


def build(
    *,
    sequences: Path,
    images: Path,
    embed: Path,
    cluster: Path,
    out: Path,
    workspace: Path | None = None,
    master: str | None = None,
) -> Manifest:
    """The features artifact: `<view>/*.parquet` for every view of the contract.

    Facts: rows (per view), start and as_of (ISO; every row is valid from a moment between them), space_id, codebook_id,
    newest (per view, the last moment at which a row becomes valid, ISO; null without rows), null_shares (per view and
    feature, in how many of its rows the value is not known), profiles_of_unknown_past (of how many items the profile is
    not known since they are, and how many impressions fall into that time: there the first known one stands for it).
    workspace: whose ingests' item profiles are taken, as `write_item_facts` does.
    master: where Spark counts the statistics; without one DuckDB does, here.
    Raises ArtifactMissing or ArtifactMismatch where an input is not what it should be, or embeddings and clusters are
    of different spaces, ValuesRefused where a value is not what the contract allows.
    """
    space_id, codebook_id = shared_space(embed, cluster)
    artifact.read(images, kind="images")
    start, as_of = period(sequences)
    paths = {"sequences": sequences, "images": images, "embed": embed, "cluster": cluster}
    inputs = artifact.digests(paths)
    with artifact.write(out, kind="features", inputs=inputs, config={}) as draft:
        _write_statistics(sequences, draft.path, master)
        write_histories(sequences, draft.path)
        unknown = write_item_facts(
            sequences,
            images,
            embed,
            cluster,
            draft.path,
            space_id=space_id,
            codebook_id=codebook_id,
            workspace=workspace,
        )
        views = {view.name: check_view(draft.path, view) for view in VIEWS}
        draft.facts = {
            "rows": {name: view.rows for name, view in views.items()},
            "start": start.isoformat(),
            "as_of": as_of.isoformat(),
            "space_id": space_id,
            "codebook_id": codebook_id,
            "newest": {name: view.newest and view.newest.isoformat() for name, view in views.items()},
            "null_shares": {name: view.null_shares for name, view in views.items()},
            "profiles_of_unknown_past": asdict(unknown),
        }
    log.info("features_written", as_of=as_of.isoformat(), **draft.facts["rows"])
    if unknown.items:
        log.info("profiles_of_unknown_past", **asdict(unknown), stands_for_it="the first profile that is known")
    return artifact.read(out, kind="features")


def _write_statistics(sequences: Path, out: Path, master: str | None) -> None:
    if master:
        from jobs.sequences.spark import item_statistics as on_spark  # Spark's own import costs seconds

        on_spark.write_statistics(sequences, out, master)
    else:
        item_statistics.write_statistics(sequences, out)


def shared_space(embed: Path, cluster: Path) -> tuple[str, str]:
    """The space of embeddings and clusters, and the clusters' codebook. Raises ArtifactMismatch where spaces differ."""
    space_id = str(artifact.read(embed, kind="embed").facts["space_id"])
    clustered = artifact.read(cluster, kind="cluster").facts
    if clustered["space_id"] != space_id:
        raise ArtifactMismatch(f"{cluster} is of space {clustered['space_id']}, {embed} of {space_id}: cluster again")
    return space_id, str(clustered["codebook_id"])


def period(sequences: Path) -> tuple[datetime, datetime]:
    """(start, as_of): the first event's moment, and the midnight after the last event.

    Raises ArtifactMismatch if the artifact holds no event.
    """
    end = datetime.fromisoformat(artifact.read(sequences, kind="sequences").facts["splits"]["end"])
    [start] = connect().execute(f"SELECT min(moment) FROM ({_shown_or_clicked(sequences)})").fetchone() or [None]
    if start is None:
        raise ArtifactMismatch(f"{sequences} holds neither impressions nor clicks: bring events in and build it again")
    return start.astimezone(UTC), midnight_after(end)


def write_histories(sequences: Path, out: Path) -> None:
    """Write the view user_history: the artifact's histories in the contract's columns, by user and time."""
    query = f"""
        SELECT {", ".join(source_schema(USER_HISTORY).names)}
        FROM {read_parquet(sequences / "histories")}
        ORDER BY {", ".join((*USER_HISTORY.keys, EVENT_TIME))}
    """
    _write(USER_HISTORY, connect().sql(query).to_arrow_reader(BATCH_ROWS), out)


def write_item_facts(
    sequences: Path,
    images: Path,
    embed: Path,
    cluster: Path,
    out: Path,
    *,
    space_id: str,
    codebook_id: str,
    workspace: Path | None = None,
) -> UnknownPast:
    """Write the views item_cluster (of the codebook), item_embedding (of the space), a row an item, and item_profile.

    They say what the item and its picture are, so they hold since the item is known: since its stated creation, or its
    first event where that comes earlier, within the period of the data. Later profiles: jobs.rules.profiles.
    workspace: whose ingests' states of items are taken; of an item without any it is the profile of `images`.
    """
    connection = connect()
    start, as_of = period(sequences)
    connection.execute(
        f"""
        CREATE TABLE known AS
        WITH seen AS (SELECT item_id, min(moment) AS first_seen FROM ({_shown_or_clicked(sequences)}) GROUP BY item_id)
        SELECT items.*, greatest($start, least(coalesce(created_at, $start), first_seen, $as_of)) AS {EVENT_TIME}
        FROM {read_parquet(images / "items.parquet")} AS items LEFT JOIN seen USING (item_id)
        """,
        {"start": start, "as_of": as_of},
    )
    place_states(connection, workspace)
    _write(ITEM_PROFILE, connection.sql(profile_changes(as_of)).to_arrow_reader(BATCH_ROWS), out)
    clusters = f"""
        SELECT item_id, '{codebook_id}' AS {CODEBOOK_KEY}, {EVENT_TIME}, cluster_id
        FROM {read_parquet(cluster / "items.parquet")} JOIN known USING (item_id) ORDER BY item_id
    """
    _write(ITEM_CLUSTER, connection.sql(clusters).to_arrow_reader(BATCH_ROWS), out)
    rows = f"""
        SELECT item_id, '{space_id}' AS {SPACE_KEY}, {EVENT_TIME}, "row"
        FROM {read_parquet(embed / "items.parquet")} JOIN known USING (item_id) ORDER BY item_id
    """
    vectors = np.load(embed / "vectors.npy", mmap_mode="r")
    _write(ITEM_EMBEDDING, _with_vectors(connection.sql(rows).to_arrow_reader(BATCH_ROWS), vectors), out)
    return unknown_past(connection, read_parquet(sequences / "impressions"))


def _with_vectors(batches: pa.RecordBatchReader, vectors: np.ndarray) -> Iterator[pa.RecordBatch]:
    # vectors: (N, EMBEDDING_DIM) float32, read row by row of the batch: the whole may be larger than memory.
    if vectors.shape[1] != EMBEDDING_DIM:
        raise ArtifactMismatch(f"vectors are {vectors.shape[1]} wide, the contract says {EMBEDDING_DIM}: embed again")
    name = ITEM_EMBEDDING.features[0].name
    for batch in batches:
        picked = np.ascontiguousarray(vectors[batch.column("row").to_numpy()], dtype="<f4")
        packed = pa.array([row.tobytes() for row in picked], pa.binary())
        yield batch.drop_columns(["row"]).append_column(name, packed)


def source_schema(view: View) -> pa.Schema:
    """The columns of a view's source: its keys, the moment a row is valid from, its features."""
    keys = [(key, pa.string()) for key in view.keys]
    return pa.schema([*keys, (EVENT_TIME, TIME), *((f.name, KIND_TYPES[f.kind]) for f in view.features)])


def checked_rows(folder: Path, view: View) -> int:
    """How many rows a view's source holds.

    Raises ArtifactMismatch if a column is missing or of another type than the contract's: Feast would cast or drop it
    in silence.
    """
    source = ds.dataset(folder / view.name, format="parquet")
    for column in source_schema(view):
        found = source.schema.field(column.name).type if column.name in source.schema.names else None
        if found is None or not _same_type(found, column.type):
            raise ArtifactMismatch(f"{folder / view.name}: column {column.name} is {found}, expected {column.type}")
    return int(source.count_rows())


def check_view(folder: Path, view: View) -> ViewSummary:
    """What a view's source holds. Raises ArtifactMismatch as `checked_rows` does, and ValuesRefused."""
    checked_rows(folder, view)
    with closing(connect()) as connection:
        return check_rows(connection, view, read_parquet(folder / view.name))


def _same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    # Two writers name the element of a list differently, and their lists are still the same.
    if pa.types.is_list(expected):
        return bool(pa.types.is_list(found) and found.value_type == expected.value_type)
    return bool(found == expected)


def connect() -> duckdb.DuckDBPyConnection:
    """A DuckDB of its own, in UTC: its casts of timestamps follow the session's zone."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _write(view: View, batches: pa.RecordBatchReader | Iterator[pa.RecordBatch], out: Path) -> None:
    folder = out / view.name
    folder.mkdir()
    schema = source_schema(view)
    with pq.ParquetWriter(folder / "part-00000.parquet", schema) as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]).select(schema.names).cast(schema))


def _shown_or_clicked(sequences: Path) -> str:
    return f"""
        SELECT item_id, request_time AS moment FROM {read_parquet(sequences / "impressions")}
        UNION ALL
        SELECT item_id, event_time AS moment FROM {read_parquet(sequences / "clicks")}
    """


def read_parquet(path: Path) -> str:
    """DuckDB's expression for a parquet file, or for the parquet files of a folder."""
    quoted = str(path / "*.parquet" if path.is_dir() else path).replace("'", "''")
    return f"read_parquet('{quoted}')"
