"""Turn raw events into behaviour sequences on this machine: the artifact that Spark makes, row by row the same."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import duckdb

from jobs.config import SequencesConfig
from jobs.engines.duckdb_session import connect
from jobs.raw.duckdb_tables import read_events
from jobs.raw.folder import source
from jobs.rules.sequence_tables import TABLES
from jobs.sequences.duckdb.event_validation import validate
from jobs.sequences.duckdb.facts import capped_users, count_distinct, count_events, count_pages, count_repeated
from jobs.sequences.duckdb.histories import HISTORY_ROWS, clicks, conversions, histories, make_clicked, make_newest
from jobs.sequences.duckdb.page_views import impressions, make_known, make_shown, page_views, time_splits
from jobs.sequences.duckdb.parts import PART_ROWS, Rows, write_parts
from jobs.sequences.facts import notes, of_artifact, require_page_views, require_some, tell_written
from jobs.sequences.splits import Splits
from model import artifact
from model.artifact import AnyPath, Manifest

KIND: Final = "sequences"
PART_SIZES: Final[Mapping[str, int]] = {"histories": HISTORY_ROWS}
SPILLED: Final = ".spilled"  # hidden, for no manifest lists it


def build(
    *,
    raw: AnyPath,
    raw_digest: str,
    out: AnyPath,
    config: SequencesConfig,
    as_of: datetime | None = None,
    memory: int | None = None,
    threads: int | None = None,
) -> Manifest:
    """The sequences artifact: a folder of parquet parts for each of TABLES.

    as_of: the clock that says which events lie in the future; None: that of this machine, now.
    memory, threads: as jobs.engines.duckdb_session.connect has them; no row depends on them.
    Raises RawTableUnusable where the events cannot be read or hold no accepted impression.
    """
    began, as_of = time.monotonic(), as_of or datetime.now(UTC)
    sampled = bool(source(raw).get("sampled_negatives", False))
    with artifact.write(out, kind=KIND, inputs={"raw": raw_digest}, config=asdict(config)) as draft:
        with connect(draft.path / SPILLED, memory=memory, threads=threads) as db:
            sequences(db, read_events(db, raw, as_of), config)
            counted = count_events(db)[None]
            require_some(counted, raw)
            counted |= count_pages(db).get(None, {})
            require_page_views(counted)
            counted |= count_distinct(db) | {"capped_users": capped_users(db), "sampled_negatives": sampled}
            splits = _splits(db, counted, config)
            db.execute("DROP TABLE seen")
            for name, rows in tables(config, splits).items():
                write_parts(db, rows, draft.path / name, PART_SIZES.get(name, PART_ROWS))
        draft.facts, draft.notes = of_artifact(counted, splits), notes(counted | {"as_of": as_of.isoformat()})
    tell_written(draft.facts, began)
    return artifact.read(out, kind=KIND)


def sequences(db: duckdb.DuckDBPyConnection, events: str, config: SequencesConfig) -> None:
    """Make of raw events what the tables are written of.  events: as of jobs.raw.duckdb_tables.read_events."""
    validate(db, events, config.max_clicks_per_day)
    make_shown(db)
    count_repeated(db)
    make_clicked(db)
    make_newest(db, config.pretrain_history)
    make_known(db, config.pretrain_history)


def tables(config: SequencesConfig, splits: Splits | None) -> dict[str, Rows]:
    """Every one of TABLES. splits: None for tables without periods."""
    rejected = TABLES["rejected"]
    return {
        "impressions": impressions(splits),
        "page_views": page_views(config, splits),
        "histories": histories(config.ctr_history),
        "clicks": clicks(),
        "conversions": conversions(),
        "rejected": Rows(
            "SELECT * FROM rejected WHERE {range}",
            '"row"',
            ('"row"', "reason"),
            {f'"{name}"': kind for name, kind in rejected.columns.items()},
            "rejected",
        ),
    }


def _splits(db: duckdb.DuckDBPyConnection, counted: Mapping[str, Any], config: SequencesConfig) -> Splits:
    ends = counted["first"], counted["last"]
    return time_splits(db, "SELECT opened_us FROM opened", *ends, config.train_fraction, config.valid_fraction)
