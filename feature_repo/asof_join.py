"""The SQL of a point-in-time join: an entity frame and the histories of feature views, by DuckDB's ASOF joins.

Each view is joined by its keys with the last row that is valid at or before the moment of the frame's row.
"""

import glob
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from feast import FeatureView
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.errors import FeastEntityDFMissingColumnsError, InvalidEntityType
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.repo_config import RepoConfig

from feature_repo.errors import CourierError

MICROSECOND: Final = timedelta(microseconds=1)
TIME: Final = pa.timestamp("us", tz="UTC")
SETTINGS: Final = {
    "TimeZone": "UTC",  # casts between texts, days and moments follow it; DuckDB's own is the machine's
    "enable_progress_bar": "false",
    "autoinstall_known_extensions": "false",  # nothing is fetched from anywhere
}
FRAME: Final = "entity_frame"
# Columns that the query adds to the entity frame: the row's place, and its moment in microseconds UTC.
PLACE: Final = "__asof_place"
MOMENT: Final = "__asof_moment"
READ_PARQUET: Final = "read_parquet("
ROW: Final = ("file_index", "file_row_number")  # DuckDB's: which row of which file of a read_parquet

Tables = Mapping[str, pa.Table | ds.Dataset]


# --- what is asked --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """The entity frame: its query with PLACE and MOMENT, its columns, and which of them holds the moment."""

    query: str
    columns: tuple[str, ...]
    moment: str


def entity_frame(db: duckdb.DuckDBPyConnection, asked: pd.DataFrame | str, tables: dict[str, Any]) -> Frame:
    if isinstance(asked, str):
        found = f"({asked.strip().rstrip(';')})"
        moment = infer_event_timestamp_from_entity_df(dict(db.sql(f"FROM {found} LIMIT 0").df().dtypes))
    elif isinstance(asked, pd.DataFrame):
        found = FRAME
        moment = infer_event_timestamp_from_entity_df(dict(asked.dtypes))
        tables[FRAME] = _arrow_frame(asked, moment)
        db.register(FRAME, tables[FRAME])
    else:
        raise InvalidEntityType(type(asked))
    kinds = _kinds(db, found)
    at = _microseconds(quoted(moment), kinds[moment], up=False)
    # The window has no order: it numbers rows as they come, without a sort.
    query = f"SELECT *, {at} AS {MOMENT}, row_number() OVER () AS {PLACE} FROM {found}"
    return Frame(query, tuple(kinds), moment)


def _arrow_frame(frame: pd.DataFrame, moment: str) -> pa.Table:
    # Texts and moments without a zone are UTC, as Feast takes them.
    moments = pd.to_datetime(frame[moment], utc=True).dt.floor("us")
    table = pa.Table.from_pandas(frame.drop(columns=[moment]), preserve_index=False)
    place = list(frame.columns).index(moment)
    return table.add_column(place, moment, pa.Array.from_pandas(moments, type=TIME))


@dataclass(frozen=True, slots=True)
class ViewRows:
    """A feature view in a query: what it selects, by which columns it joins, what it answers under which names."""

    query: str  # key_0, key_1, ..., event and valid_from (microseconds UTC); feature_0, feature_1, ..., or ROW
    values: str  # ROW and feature_0, feature_1, ..., where they come after the join; otherwise empty
    frame_keys: tuple[str, ...]  # the frame's columns for key_0, key_1, ...
    names: tuple[str, ...]  # the answer's for feature_0, feature_1, ...
    ttl: timedelta | None


def view_rows(
    db: duckdb.DuckDBPyConnection,
    view: FeatureView,
    feature_refs: Sequence[str],
    config: RepoConfig,
    tables: dict[str, Any],
    full_feature_names: bool,
    by_creation: bool,
) -> ViewRows:
    if view.batch_source is None:
        raise CourierError(f"feature view {view.name} has no batch source: nothing is known of its past")
    source = view.batch_source
    found = _source_rows(db, source, config, tables)
    kinds = _kinds(db, found)
    mapped = {new: old for old, new in source.field_mapping.items() if old in kinds}

    def column(name: str) -> str:
        return quoted(mapped.get(name, name))

    def moment(name: str) -> str:
        return _microseconds(column(name), kinds[mapped.get(name, name)], up=True)

    aliases = view.projection.join_key_map
    keys = {name: aliases.get(name, name) for name in view.join_keys if name != DUMMY_ENTITY_ID}
    asked = [ref.split(":", 1)[1] for ref in feature_refs if ref.startswith(f"{view.projection.name_to_use()}:")]
    needed = [*keys, *asked, source.timestamp_field, *filter(None, [source.created_timestamp_column])]
    if missing := [name for name in needed if mapped.get(name, name) not in kinds]:
        raise CourierError(f"{source.name}, the source of {view.name}, has no column {', '.join(missing)}")
    event = moment(source.timestamp_field)
    created = moment(source.created_timestamp_column) if source.created_timestamp_column else None
    columns = [f"{column(name)} AS key_{n}" for n, name in enumerate(keys)]
    features = [f"{column(name)} AS feature_{n}" for n, name in enumerate(asked)]
    # An ASOF join sorts and holds all of a row; lists and bytes are read again for the rows that it has found.
    late = found.startswith(READ_PARQUET) and any(_is_wide(kinds[mapped.get(name, name)]) for name in asked)
    columns += ROW if late else features
    columns += [f"{event} AS event", f"{created} AS created" if created else "NULL AS created"]
    rows = f"FROM (SELECT {', '.join(columns)} FROM {found}) AS found"
    if keys:  # a few entities of many: only their rows are sorted
        on = " AND ".join(f"found.key_{n} = asked.{quoted(name)}" for n, name in enumerate(keys.values()))
        rows += f" SEMI JOIN asked ON {on}"
    rows += " WHERE event IS NOT NULL"
    prefix = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
    return ViewRows(
        values=f"SELECT {', '.join([*ROW, *features])} FROM {found}" if late else "",
        query=_valid(rows, len(keys), has_created=created is not None, by_creation=by_creation),
        frame_keys=tuple(keys.values()),
        names=tuple(f"{prefix}{name}" for name in asked),
        ttl=view.ttl or None,
    )


def _valid(rows: str, keys: int, *, has_created: bool, by_creation: bool) -> str:
    """The rows that can be a newest one, with `valid_from`: of these the last at or before a moment is the answer.

    By creation, a row is known from its creation on, and it is an answer only where it is then the newest of all known.
    """
    entity = [f"key_{n}" for n in range(keys)]
    if not has_created:
        return f"SELECT *, event AS valid_from {rows}"
    if not by_creation:
        by = ", ".join([*entity, "event"])
        newest = f"row_number() OVER (PARTITION BY {by} ORDER BY created DESC NULLS LAST) = 1"
        return f"SELECT *, event AS valid_from {rows} QUALIFY {newest}"
    by = f"PARTITION BY {', '.join(entity)}" if entity else ""
    so_far = f"OVER ({by} ORDER BY valid_from RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)"
    known = f"SELECT *, greatest(event, created) AS valid_from {rows} AND created IS NOT NULL"
    return f"FROM ({known}) QUALIFY (event, created) = max((event, created)) {so_far}"


def asof_query(frame: Frame, views: Sequence[ViewRows]) -> str:
    columns = [
        f"{f'asked.{MOMENT}' if name == frame.moment else f'asked.{quoted(name)}'} AS {quoted(name)}"
        for name in frame.columns
    ]
    joins = []
    for n, view in enumerate(views):
        on = [f"asked.{quoted(name)} = view_{n}.key_{k}" for k, name in enumerate(view.frame_keys)]
        on.append(f"asked.{MOMENT} >= view_{n}.valid_from")
        joins.append(f"ASOF LEFT JOIN ({view.query}) AS view_{n} ON {' AND '.join(on)}")
        if view.values:
            same = " AND ".join(f"view_{n}.{name} = values_{n}.{name}" for name in ROW)
            joins.append(f"LEFT JOIN ({view.values}) AS values_{n} ON {same}")
        for f, name in enumerate(view.names):
            value = f"{'values' if view.values else 'view'}_{n}.feature_{f}"
            if view.ttl is not None:
                fresh = f"epoch_us(asked.{MOMENT}) - epoch_us(view_{n}.event) <= {view.ttl // MICROSECOND}"
                value = f"CASE WHEN {fresh} THEN {value} END"
            columns.append(f"{value} AS {quoted(name)}")
    asked = f"WITH asked AS MATERIALIZED ({frame.query})"
    return "\n".join([asked, f"SELECT {', '.join(columns)}", "FROM asked", *joins, f"ORDER BY asked.{PLACE}"])


def check_names(frame: Frame, views: Sequence[ViewRows]) -> None:
    expected = {name for view in views for name in view.frame_keys}
    if missing := expected - set(frame.columns):
        raise FeastEntityDFMissingColumnsError(expected, missing)
    names = [*frame.columns, *(name for view in views for name in view.names)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CourierError(
            f"{', '.join(twice)}: there twice; ask with full_feature_names, or rename the entity frame's"
        )


# --- what is read ---------------------------------------------------------------------------------------------------


def rows_between(
    config: RepoConfig,
    source: DataSource,
    fields: Sequence[str],
    moments: Sequence[str | None],
    interval: tuple[datetime | None, datetime | None],
) -> tuple[str, Tables]:
    """A query for these fields and moments of a source, whose first moment lies in the interval, and its tables."""
    tables: dict[str, pa.Table | ds.Dataset] = {}
    with connected(config) as db:
        found = _source_rows(db, source, config, tables)
        kinds = _kinds(db, found)
    times = [name for name in moments if name]
    # A feature log's column of its folders is no field of the log, as Feast has it.
    columns = [quoted(name) for name in fields if name not in ("__log_date", *times)]
    columns += [f"{_microseconds(quoted(name), kinds[name], up=True)} AS {quoted(name)}" for name in times]
    start, end = interval
    bounds = [
        f"{quoted(times[0])} {sign} TIMESTAMPTZ '{moment.astimezone(UTC).isoformat()}'"
        for sign, moment in ((">=", start), ("<=", end))
        if moment is not None
    ]
    where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
    return f"SELECT * FROM (SELECT {', '.join(columns)} FROM {found}){where}", tables


def _source_rows(db: duckdb.DuckDBPyConnection, source: DataSource, config: RepoConfig, tables: dict[str, Any]) -> str:
    """DuckDB's expression for a source's rows; of a remote one, the name of the dataset that is put into `tables`."""
    path = FileSource.get_uri_for_file_path(config.repo_path, parquet_path(source))
    if "://" not in path:
        if Path(path).is_dir():
            path = f"{glob.escape(path)}/**/*.parquet"
        elif Path(path).exists():
            path = glob.escape(path)  # any other may be a pattern
        return f"{READ_PARQUET}{_literal(path)})"
    filesystem, place = FileSource.create_filesystem_and_path(
        path, source.s3_endpoint_override, source.resolve_credentials()
    )
    name = f"source_{len(tables)}"
    tables[name] = ds.dataset(place, format="parquet", filesystem=filesystem)
    db.register(name, tables[name])
    return name


def parquet_path(source: DataSource) -> str:
    if isinstance(source, FileSource) and isinstance(source.file_format, ParquetFormat | None):
        return str(source.path)
    raise CourierError(f"{source.name} is no parquet file: this store reads no other; Feast's own (type: duckdb) does")


def _kinds(db: duckdb.DuckDBPyConnection, rows: str) -> dict[str, str]:
    """The columns of a table and their types, in DuckDB's words."""
    found = db.sql(f"FROM {rows} LIMIT 0")
    return dict(zip(found.columns, map(str, found.dtypes), strict=True))


def _is_wide(kind: str) -> bool:
    return kind == "BLOB" or kind.endswith("]") or kind.startswith(("STRUCT(", "MAP("))


def _microseconds(column: str, kind: str, *, up: bool) -> str:
    """The column as moments in microseconds UTC; finer ones rounded up or down (DuckDB's cast rounds to the nearer)."""
    if not kind.endswith("_NS"):
        return f"CAST({column} AS TIMESTAMPTZ)"
    nanoseconds = f"epoch_ns({column})" if not up else f"(epoch_ns({column}) + 999)"
    return f"make_timestamptz(({nanoseconds} - ({nanoseconds} % 1000 + 1000) % 1000) // 1000)"


@contextmanager
def connected(config: RepoConfig, tables: Tables | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory with these tables, within the memory of the store's settings; gone with what it spilled."""
    settings = config.offline_store
    if settings.spill is not None:
        Path(settings.spill).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="feast-join-", dir=settings.spill) as spill, duckdb.connect() as db:
        for name, value in (SETTINGS | {"memory_limit": settings.memory, "temp_directory": spill}).items():
            db.execute(f"SET {name} = {_literal(value)}")
        for name, table in (tables or {}).items():
            db.register(name, table)
        yield db


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
