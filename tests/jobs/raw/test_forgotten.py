"""Rows of whom a workspace was told to forget: dropped at every reading, counted, and nowhere in what is written."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contract import ITEM_KEY, USER_KEY
from jobs.config import IngestConfig
from jobs.raw.forgotten import FORGOTTEN, FORGOTTEN_FILE, add_forgotten, read_forgotten
from jobs.raw.identity import tables_inputs
from jobs.raw.ingest import read_tables

HEADER = ["user_id", "item_id", "event_time", "event_type", "request_id", "position"]
ROWS = [
    ["anna", "red shoe", "2024-03-01T10:00:00Z", "click", "r1", "1"],
    ["bert", "red shoe", "2024-03-01T11:00:00Z", "click", "r2", "1"],
    ["anna", "hat", "yesterday", "click", "r3", "2"],  # rejected, and kept as it was read
    [" ann ", "hat", "2024-03-02T10:00:00Z", "impression", "r4", "3"],
    ["annabel", "hat", "2024-03-02T10:00:00Z", "impression", "r5", "3"],
]


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    with (folder / "events.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([HEADER, *ROWS])
        stream.write("anna,not enough cells\n")
    with (folder / "items.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["item_id", "image_uri"], ["red shoe", "a.jpg"], ["hat", "b.jpg"]])
    return folder


def ingested(raw: Path, workspace: Path, version: str):
    out = workspace / "ingest" / version
    manifest = read_tables(raw=raw, raw_digest="", out=out, config=IngestConfig(), workspace=workspace)
    tables = {
        name: pa.concat_tables(map(pq.read_table, sorted((out / name).glob("*")))) for name in ("events", "items")
    }
    return manifest.facts, tables, out


def everything(folder: Path) -> bytes:
    values = [pq.read_table(path).to_pylist() for path in folder.rglob("*.parquet")]
    return json.dumps(values, default=str).encode() + b"".join(path.read_bytes() for path in folder.rglob("*.json"))


def test_a_forgotten_users_rows_are_counted_and_hold_nothing(raw, tmp_path):
    _, before, out = ingested(raw, tmp_path, "before")
    assert b'"anna"' in everything(out)
    assert b"not enough cells" in everything(out)
    add_forgotten(tmp_path, USER_KEY, "anna")
    facts, after, out = ingested(raw, tmp_path, "after")
    found = everything(out).replace(b"annabel", b"")
    assert b"anna" not in found
    assert facts["events"]["rows"] == len(before["events"]) == len(after["events"])
    assert facts["events"]["rejected"][FORGOTTEN] == 2
    assert [row["user_id"] for row in after["events"].to_pylist() if row["reason"] is None] == [
        "bert",
        " ann ",
        "annabel",
    ]
    assert after["items"].equals(before["items"])


def test_a_forgotten_item_goes_from_both_tables(raw, tmp_path):
    add_forgotten(tmp_path, ITEM_KEY, "red shoe")
    facts, _, out = ingested(raw, tmp_path, "k")
    assert b"red shoe" not in everything(out)
    assert facts["events"]["rejected"][FORGOTTEN] == 2
    assert facts["items"]["rejected"] == {FORGOTTEN: 1}


def test_rows_of_the_others_stand_where_they_stood(raw, tmp_path):
    _, before, _ = ingested(raw, tmp_path, "before")
    add_forgotten(tmp_path, USER_KEY, "anna")
    _, after, _ = ingested(raw, tmp_path, "after")
    pairs = zip(before["events"].to_pylist(), after["events"].to_pylist(), strict=True)
    assert [old == new for old, new in pairs if new["reason"] is None] == [True] * 3


def test_a_table_used_in_its_place_is_read_once_rows_of_it_are_forgotten(tmp_path, write_events, drawn_events):
    raw = write_events(tmp_path / "raw", drawn_events(range(1, 4000, 7)))
    items = pa.table({name: pa.array(["i"], pa.string()) for name in ("item_id", "image_uri", "category", "title")})
    missing = {"price": pa.array([None], pa.float64()), "created_at": pa.array([None], pa.timestamp("us", tz="UTC"))}
    pq.write_table(
        pa.table({**dict(zip(items.column_names, items.columns, strict=True)), **missing}), raw / "items.parquet"
    )
    out = tmp_path / "ingest" / "k"
    facts = read_tables(raw=raw, raw_digest="", out=out, config=IngestConfig(), workspace=tmp_path).facts
    assert facts["events"]["in_place"]
    add_forgotten(tmp_path, USER_KEY, "u1")
    facts, tables, _ = ingested_events(raw, tmp_path)
    assert not facts["events"]["in_place"]
    assert "u1" not in tables["user_id"].to_pylist()
    assert facts["items"]["in_place"]


def ingested_events(raw: Path, workspace: Path):
    out = workspace / "ingest" / "after"
    facts = read_tables(raw=raw, raw_digest="", out=out, config=IngestConfig(), workspace=workspace).facts
    return facts, pa.concat_tables(map(pq.read_table, sorted((out / "events").glob("*")))), out


def test_being_told_twice_changes_nothing_and_being_told_makes_ingest_stale(raw, tmp_path):
    first = tables_inputs(tmp_path, raw)
    assert add_forgotten(tmp_path, USER_KEY, "anna")
    second, said = tables_inputs(tmp_path, raw), (tmp_path / FORGOTTEN_FILE).read_bytes()
    assert not add_forgotten(tmp_path, USER_KEY, "anna")
    assert (tmp_path / FORGOTTEN_FILE).read_bytes() == said
    assert first != second == tables_inputs(tmp_path, raw)


def test_the_list_names_nobody(tmp_path):
    add_forgotten(tmp_path, USER_KEY, "anna")
    add_forgotten(tmp_path, ITEM_KEY, "red shoe")
    found = read_forgotten(tmp_path)
    assert found.holds(USER_KEY, "anna")
    assert found.holds(ITEM_KEY, "red shoe")
    assert not found.holds(ITEM_KEY, "anna")
    text = (tmp_path / FORGOTTEN_FILE).read_text()
    assert "anna" not in text
    assert "shoe" not in text
