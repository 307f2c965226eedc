"""Whom a workspace has been told to forget: salted hashes of ids, and what becomes of their rows in canonical parquet.

WORKSPACE/forgotten.json is written before anything is removed, and only grows: raw files stay with their owner, so a
row that comes again, in an old file or a new one, is dropped again. It names nobody: without an id at hand, nothing in
it says whose it is.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb

from feature_repo.contract import ITEM_KEY, USER_KEY
from jobs.engines.duckdb_session import literal
from jobs.raw.columns import COLUMNS
from jobs.raw.typed import CORRUPT, FILE, LOST, NUMBER, REASON, ROW, WRITTEN
from model import artifact, strict_json

FORGOTTEN_FILE: Final = "forgotten.json"  # in the workspace
FORGOTTEN: Final = "forgotten"  # the reason of a row that was dropped because of it
KEYS: Final = (USER_KEY, ITEM_KEY)
KEYS_OF: Final = {"events": KEYS, "items": (ITEM_KEY,)}
NOTHING: Final = "{}"  # what is kept of such a row's text


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """Hashes of ids in hex, sorted, by key column; salt: 32 hex digits, empty where nobody was forgotten."""

    salt: str = ""
    hashes: Mapping[str, Sequence[str]]

    def holds(self, key: str, entity_id: str) -> bool:
        """Whether this id is among them."""
        return hash_of(self.salt, key, entity_id) in self.hashes.get(key, ())

    def digest_of(self, table: str) -> str:
        """What changes when other rows of a raw table are to be dropped; empty where none are."""
        said = {key: list(self.hashes[key]) for key in KEYS_OF[table] if self.hashes.get(key)}
        return hashlib.sha256(strict_json.dumps(said, sort_keys=True).encode()).hexdigest()[:32] if said else ""


def hash_of(salt: str, key: str, entity_id: str) -> str:
    """The SHA-256 of salt, key and id, in hex."""
    return hashlib.sha256(f"{salt}{key}={entity_id}".encode()).hexdigest()


def read_forgotten(workspace: Path | None) -> Forgotten:
    """Whom this workspace has been told to forget."""
    file = workspace / FORGOTTEN_FILE if workspace else None
    if file is None or not file.is_file():
        return Forgotten(hashes={})
    said = json.loads(file.read_text("utf-8"))
    return Forgotten(salt=said["salt"], hashes={key: tuple(said[key]) for key in KEYS})


def add_forgotten(workspace: Path, key: str, entity_id: str) -> bool:
    """Forget this id from now on; whether it was not among them before. Only for the holder of the workspace's lock."""
    before = read_forgotten(workspace)
    if before.holds(key, entity_id):
        return False
    salt = before.salt or secrets.token_hex(16)
    said = {one: set(before.hashes.get(one, ())) for one in KEYS}
    said[key].add(hash_of(salt, key, entity_id))
    listed = {one: sorted(hashes) for one, hashes in said.items()}
    artifact.write_whole(workspace / FORGOTTEN_FILE, strict_json.dumps({"salt": salt, **listed}, indent=1).encode())
    return True


def drop_forgotten(db: duckdb.DuckDBPyConnection, piece: Path, table: str, forgotten: Forgotten) -> None:
    """Empty the forgotten rows of an ingested file: each keeps its place, and FORGOTTEN as its reason, and no value.

    A line that was no row at all may name anyone, so once somebody is forgotten none keeps its text.
    """
    if not forgotten.digest_of(table):
        return
    theirs = " OR ".join(_is_theirs(key, forgotten) for key in KEYS_OF[table] if forgotten.hashes.get(key))
    emptied = [f"CASE WHEN _theirs THEN NULL ELSE {column.name} END AS {column.name}" for column in COLUMNS[table]]
    lost = [f"CASE WHEN _theirs THEN [] ELSE {LOST} END AS {LOST}"] if table == "items" else []
    reason = f"CASE WHEN _theirs THEN {literal(FORGOTTEN)} ELSE {REASON} END AS {REASON}"
    corrupt = f"json_extract_string({ROW}, '$.{CORRUPT}') IS NOT NULL"
    text = f"CASE WHEN _theirs OR {corrupt} THEN {literal(NOTHING)} ELSE {ROW} END AS {ROW}"
    query = (
        f"SELECT {', '.join([*emptied, reason, text, *lost, FILE, NUMBER])} "
        f"FROM (SELECT *, coalesce({theirs}, FALSE) AS _theirs FROM read_parquet({literal(piece)}))"
    )
    aside = piece.with_suffix(".without")
    db.execute(f"COPY ({query}) TO {literal(aside)} ({WRITTEN})")
    aside.replace(piece)


def _is_theirs(key: str, forgotten: Forgotten) -> str:
    # As a column has it, and as a rejected row was read.
    as_read = f"json_extract_string({ROW}, '$.{key}')"
    listed = ", ".join(map(literal, forgotten.hashes[key]))
    hashed = (f"sha256({literal(forgotten.salt + key + '=')} || {text})" for text in (key, as_read))
    return " OR ".join(f"coalesce({one} IN ({listed}), FALSE)" for one in hashed)
