"""Load the newest rows of a features artifact into the online store, then compare what it holds with them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from feature_repo.contract import CTR_HISTORY, EVENT_TIME, USER_HISTORY, VIEWS, View
from feature_repo.online_views import OnlineViews, open_views
from feature_repo.packed.arrow_rows import ROWS_A_BATCH
from jobs.engines import duckdb_session
from jobs.engines.duckdb_session import literal
from jobs.features.history_store import HistoryStore, histories_of
from jobs.features.offline import source_schema
from jobs.rules.online_histories import reconcile
from model.errors import CourierError

if TYPE_CHECKING:
    import duckdb

log = structlog.get_logger()

SAMPLE: Final = 1_000  # entities of a view that are read back


class StoreDiffers(CourierError):
    """The online store does not hold what was loaded into it."""


def load_features(features: Path, workspace: Path, *, as_of: datetime, scratch: Path) -> dict[str, int]:
    """Load each entity's newest row as of this moment of every view; of each view, how many.

    Whoever was killed in between starts anew: a row that is there already is written again. A user whom a stream has
    taken further keeps that (jobs.rules.online_histories.reconcile).
    scratch: a folder to be made, and removed, for what does not fit into memory.
    Raises StoreDiffers where fewer rows are there afterwards, or one of a sample is another, and what the store raises.
    """
    views, histories = open_views(workspace), HistoryStore(workspace)
    with duckdb_session.connect(scratch) as db, _progress() as progress:
        counts = {view.name: find_newest(db, features, view, as_of) for view in VIEWS}
        task, kept = progress.add_task("loading", total=sum(counts.values()), view=""), 0
        for view in VIEWS:
            progress.update(task, view=view.name)
            for rows in newest_rows(db, features, view):
                if view is USER_HISTORY:
                    kept += histories.load(rows, as_of=as_of)
                else:
                    views.write(view, rows, as_of=as_of)
                progress.advance(task, rows.num_rows)
        for view in VIEWS:
            check_count(views, view, counts[view.name])
            for rows in newest_rows(db, features, view, SAMPLE):
                check_rows(views, view, rows, as_of)
    log.info("online_store_loaded", users_further_by_stream=kept, **counts)
    return counts


def find_newest(db: "duckdb.DuckDBPyConnection", features: Path, view: View, as_of: datetime) -> int:
    """Make the table newest_VIEW: where each entity's newest row lies; of rows of a moment always the same."""
    keys = ", ".join(view.keys)
    db.execute(
        f"""
        CREATE TABLE newest_{view.name} AS
        SELECT {keys}, max(struct_pack(at := {EVENT_TIME}, file := filename, n := file_row_number)) AS place
        FROM {_source(features, view)} WHERE {EVENT_TIME} <= $as_of GROUP BY {keys}
        """,
        {"as_of": as_of},
    )
    [(count,)] = db.execute(f"SELECT count(*) FROM newest_{view.name}").fetchall()
    return int(count)


def newest_rows(
    db: "duckdb.DuckDBPyConnection", features: Path, view: View, sample: int | None = None
) -> Iterator[pa.RecordBatch]:
    """The newest rows, some thousands at a time; of a sample of entities only, always the same of the same."""
    schema = source_schema(view)
    some = f"ORDER BY hash({', '.join(view.keys)}) LIMIT {sample}" if sample else ""
    query = f"""
        SELECT {", ".join(f"rows.{name}" for name in schema.names)} FROM {_source(features, view)} AS rows
        JOIN (SELECT place FROM newest_{view.name} {some})
        ON rows.filename = place.file AND rows.file_row_number = place.n
    """
    for batch in db.sql(query).to_arrow_reader(ROWS_A_BATCH):
        if batch.num_rows:
            yield batch.cast(schema)


def _source(features: Path, view: View) -> str:
    files = literal(features / view.name / "*.parquet")
    return f"read_parquet({files}, filename = TRUE, file_row_number = TRUE)"


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[view]}"), console=Console(stderr=True))


# --- is it there? ---------------------------------------------------------------------------------------------------


def check_count(views: OnlineViews, view: View, offline: int) -> None:
    """Raise StoreDiffers where the store holds fewer rows of a view than were loaded.

    It may hold more: of other spaces, and of users whom only a stream knows.
    """
    online = views.count(view)
    if online is not None and online < offline:
        raise StoreDiffers(
            f"the online store holds {online} rows of {view.name}, the offline tables {offline}: run materialize again"
        )


def check_rows(views: OnlineViews, view: View, offline: pa.RecordBatch, as_of: datetime) -> None:
    """Raise StoreDiffers where the store holds other features of these entities, unless somebody has written since."""
    keys = {key: offline.column(key).to_pylist() for key in view.keys}
    held = views.read_timed(view, keys, as_of=datetime.now(UTC))
    differ = _other_histories if view is USER_HISTORY else _other_features
    place = next(differ(view, offline, held, as_of), None)
    if place is not None:
        entity = ", ".join(f"{key} {values[place]!r}" for key, values in keys.items())
        raise StoreDiffers(f"{view.name} of {entity} is another online than offline: run materialize again")


def _other_features(view: View, offline: pa.RecordBatch, online: pa.Table, as_of: datetime) -> Iterator[int]:
    # The places of rows that differ, but for those that someone has written since.
    names = [feature.name for feature in view.features]
    rows = zip(offline.select(names).to_pylist(), online.to_pylist(), strict=True)
    for place, (wanted, found) in enumerate(rows):
        newer = found[EVENT_TIME] is not None and found[EVENT_TIME] > as_of
        if not newer and not all(_same(wanted[name], found[name]) for name in names):
            yield place


def _other_histories(_: View, offline: pa.RecordBatch, online: pa.Table, __: datetime) -> Iterator[int]:
    wanted, [held] = histories_of(offline), online.combine_chunks().to_batches()
    found = histories_of(held)
    for place, user in enumerate(wanted):
        if reconcile(found[user], wanted[user], CTR_HISTORY) != found[user]:
            yield place


def _same(one: Any, other: Any) -> bool:
    # NaN is not equal to itself; Feast writes it into a store as a null.
    return bool(one == other or (one != one and (other is None or other != other)))
