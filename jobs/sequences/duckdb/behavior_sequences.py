"""Turn raw events into behaviour sequences on this machine: the artifact that Spark makes, row by row the same."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import duckdb

from jobs.config import SequencesConfig
from jobs.engines.duckdb_session import connect
from jobs.raw.canonical import CanonicalTable
from jobs.raw.duckdb_tables import read_events
from jobs.rules.sequence_tables import TABLES
from jobs.sequences.duckdb.event_validation import validate
from jobs.sequences.duckdb.facts import (
    capped_users,
    count_distinct,
    count_events,
    count_pages,
    count_periods,
    count_repeated,
)
from jobs.sequences.duckdb.histories import HISTORY_ROWS, clicks, conversions, histories, make_clicked, make_newest
from jobs.sequences.duckdb.page_views import impressions, make_known, make_shown, page_views, split_of
from jobs.sequences.duckdb.parts import PART_ROWS, Rows, write_parts
from jobs.sequences.facts import (
    notes,
    of_artifact,
    require_page_views,
    require_some,
    require_split,
    tell_written,
)
from jobs.sequences.splits import Splits
from model import artifact
from model.artifact import AnyPath, Manifest

KIND: Final = "sequences"
PART_SIZES: Final[Mapping[str, int]] = {"histories": HISTORY_ROWS}
SPILLED: Final = ".spilled"  # hidden, for no manifest lists it


def build(
    *,
    events: CanonicalTable,
    sampled_negatives: bool,
    inputs: Mapping[str, str],
    out: AnyPath,
    config: SequencesConfig,
    as_of: datetime | None = None,
    memory: int | None = None,
    threads: int | None = None,
) -> Manifest:
    """The sequences artifact: a folder of parquet parts for each of TABLES.

    sampled_negatives: whether the items that were not clicked were drawn, not shown.  inputs: for the manifest.
    as_of: the clock that says which events lie in the future; None: that of this machine, now.
    memory, threads: as jobs.engines.duckdb_session.connect has them; no row depends on them.
    Raises RawTableUnusable where no impression is accepted.
    """
    began, as_of = time.monotonic(), as_of or datetime.now(UTC)
    with artifact.write(out, kind=KIND, inputs=inputs, config=asdict(config)) as draft:
        with connect(draft.path / SPILLED, memory=memory, threads=threads) as db:
            validate(db, read_events(db, events, as_of), config.max_clicks_per_day)
            make_clicked(db)
            make_tables(db, config)
            counted = count_events(db)[None]
            require_some(counted, events.path)
            counted |= count_pages(db, config.page_view_size).get(None, {})
            require_page_views(counted)
            counted |= count_distinct(db) | {"capped_users": capped_users(db), "sampled_negatives": sampled_negatives}
            splits = split_of(db, counted, config)
            counted["requests_by_period"] = count_periods(db, splits)
            require_split(counted, splits)  # before its tables are written
            db.execute("DROP TABLE seen")
            write_tables(db, tables(config, splits), draft.path)
        draft.facts, draft.notes = of_artifact(counted, splits), notes(counted | {"as_of": as_of.isoformat()})
    tell_written(draft.facts, began)
    return artifact.read(out, kind=KIND)


def make_tables(db: duckdb.DuckDBPyConnection, config: SequencesConfig) -> None:
    """Make what the tables are written of, of what `validate` and `make_clicked` have made."""
    make_shown(db)
    count_repeated(db)
    make_newest(db, config.pretrain_history)
    make_known(db, config.pretrain_history)


def tables(config: SequencesConfig, splits: Splits | None) -> dict[str, Rows]:
    """Every one of TABLES. splits: None for tables without periods."""
    return {
        "impressions": impressions(splits),
        "page_views": page_views(config, splits),
        "histories": histories(config.ctr_history),
        "clicks": clicks(),
        "conversions": conversions(),
        "rejected": rejected(),
    }


def rejected() -> Rows:
    """The rejected rows."""
    table = TABLES["rejected"]
    query = "SELECT * FROM rejected WHERE {range}"
    return Rows(query, "row", (*table.by, *table.then), table.columns, "rejected")


def write_tables(db: duckdb.DuckDBPyConnection, written: Mapping[str, Rows], folder: Path) -> None:
    """Write each table to a folder of its name."""
    for name, rows in written.items():
        write_parts(db, rows, folder / name, PART_SIZES.get(name, PART_ROWS))
