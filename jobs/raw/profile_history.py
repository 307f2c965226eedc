"""What the items tables that a workspace has ingested said of each item, and since when: kept, and only ever added to.

A folder of parquet files, one for each ingest that saw something new, never rewritten. The moment at which a profile
was first seen is written down with it, once; from then on it is content like any other (docs/decisions/0012).
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, cast

from jobs.engines.duckdb_session import connect, literal
from jobs.raw.canonical import KIND, CanonicalTable, canonical_table
from jobs.raw.cells import timestamptz
from jobs.raw.duckdb_tables import read_items
from jobs.raw.identity import Hasher, hash_files
from jobs.raw.typed import REASON
from jobs.rules.items import SUPERSEDED
from model import artifact
from model.artifact import AnyPath

FOLDER: Final = "item_profiles"  # in the workspace
MARK: Final = "recorded"  # in it: which items were recorded last, by the digest of the ingest artifact's part
PROFILE: Final = ("category", "price", "created_at")
COLUMNS: Final = {
    "item_id": "VARCHAR",
    "category": "VARCHAR",
    "price": "DOUBLE",
    "created_at": "TIMESTAMPTZ",
    "updated_at": "TIMESTAMPTZ",
    "first_seen": "TIMESTAMPTZ",
}


def record(workspace: Path, ingest: Path, raw: AnyPath, *, now: datetime) -> int:
    """Remember what an ingest artifact's items say that was not known; returns how many states of items are new.

    now: the clock of the ingest. Killed at any moment and called again it ends the same, but for that clock.
    """
    folder = workspace / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    has_items = artifact.read(ingest, kind=KIND).facts["items"] is not None
    count = _append(workspace, canonical_table(ingest, "items", raw), now) if has_items else 0
    artifact.write_whole(folder / MARK, artifact.digest(ingest, "items").encode())
    return count


def _append(workspace: Path, items: CanonicalTable, now: datetime) -> int:
    artifact.sweep(workspace / FOLDER)
    with artifact.scratch(workspace / FOLDER) as aside, connect(cast(Path, aside) / "spill") as db:
        [(last,)] = db.execute(f"SELECT max(first_seen) FROM ({remembered(workspace)})").fetchall()
        seen = now if last is None else max(now, last + timedelta(microseconds=1))  # a clock may be set back
        db.execute(f"CREATE TEMP TABLE news AS {_news(read_items(db, items), remembered(workspace), seen)}")
        [(count,)] = db.execute("SELECT count(*) FROM news").fetchall()
        if count:
            file = workspace / FOLDER / f"{len(_files(workspace)):06d}.parquet"
            written = cast(Path, aside) / file.name
            db.execute(f"COPY (FROM news ORDER BY item_id, updated_at) TO {literal(written)} (FORMAT parquet)")
            written.replace(file)
    return int(count)


def stands(workspace: Path, ingest: Path, _: Mapping[str, Path]) -> bool:
    """Whether what was recorded last are the items of this ingest artifact."""
    try:
        return (workspace / FOLDER / MARK).read_text("utf-8") == artifact.digest(ingest, "items")
    except FileNotFoundError:
        return False


def history_inputs(workspace: Path, _: AnyPath, hasher: Hasher = hash_files) -> dict[str, str]:
    """What the features stage reads of a workspace's history."""
    files = _files(workspace)
    digests = hasher(files)
    said = "/".join(digests[file] for file in files)
    return {FOLDER: hashlib.sha256(said.encode()).hexdigest()}


def remembered(workspace: Path | None) -> str:
    """A query of all that is remembered: COLUMNS, a row for each state of an item that was seen."""
    files = _files(workspace) if workspace else []
    if not files:
        empty = ", ".join(f"NULL::{kind} AS {name}" for name, kind in COLUMNS.items())
        return f"SELECT {empty} WHERE FALSE"
    return f"SELECT {', '.join(COLUMNS)} FROM read_parquet([{', '.join(map(literal, files))}])"


def states_in_order(states: str) -> str:
    """A query of what counts of `remembered`, as jobs.rules.profiles.states_in_order has it: COLUMNS and known_from."""
    return f"""
        WITH states AS ({states}), last_seen AS (
            FROM states WHERE updated_at IS NULL
            UNION ALL
            FROM states WHERE updated_at IS NOT NULL
            QUALIFY row_number() OVER (PARTITION BY item_id, updated_at ORDER BY first_seen DESC) = 1
        )
        SELECT *, coalesce(updated_at, first_seen) AS known_from FROM last_seen AS one
        WHERE updated_at IS NOT NULL OR NOT EXISTS (
            FROM last_seen AS other WHERE other.item_id = one.item_id
                AND other.updated_at <= one.first_seen AND one.first_seen < other.first_seen
        )
    """


def _news(items: str, before: str, seen: datetime) -> str:
    # A superseded row without a moment is of no known time: it says nothing of when it held.
    said = f"{REASON} IS NULL OR ({REASON} = {literal(SUPERSEDED)} AND updated_at IS NOT NULL)"
    profile = ", ".join(PROFILE)
    differs = " OR ".join(f"now.{name} IS DISTINCT FROM before.{name}" for name in PROFILE)
    return f"""
        WITH before AS (
            SELECT item_id, updated_at, {profile} FROM ({before}) WHERE updated_at IS NOT NULL
            QUALIFY row_number() OVER (PARTITION BY item_id, updated_at ORDER BY first_seen DESC) = 1
            UNION ALL
            SELECT item_id, NULL AS updated_at, {profile} FROM ({states_in_order(before)})
            QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY known_from DESC, first_seen DESC) = 1
        )
        SELECT now.item_id, {", ".join(f"now.{name}" for name in PROFILE)}, now.updated_at,
            {timestamptz(seen)} AS first_seen
        FROM (SELECT * FROM ({items}) WHERE {said}) AS now LEFT JOIN before
        ON now.item_id = before.item_id AND now.updated_at IS NOT DISTINCT FROM before.updated_at
        WHERE before.item_id IS NULL OR {differs}
    """


def _files(workspace: Path) -> list[Path]:
    return sorted((workspace / FOLDER).glob("*.parquet"))
