"""--columns: files that call our columns otherwise are read by what the user says, of one table or of both."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_files import EVENT, ITEM, as_csv, as_jsonl

from jobs.config import IngestConfig
from jobs.options import parted
from jobs.raw.columns import parse_names
from jobs.raw.folder import RawTableUnusable
from jobs.raw.ingest import read_tables
from jobs.workspace import open_workspace, remember


def renamed(row: dict, names: dict[str, str]) -> dict:
    return {names.get(name, name): value for name, value in row.items()}


def as_parquet(rows: list[dict]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def laid(raw: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(content)
    return raw


def read(tmp_path: Path, columns: tuple[str, ...], files: dict[str, bytes]) -> dict[str, list[dict]]:
    read_tables(
        raw=laid(tmp_path / "raw", files), raw_digest="", out=tmp_path / "read", config=IngestConfig(columns=columns)
    )
    found = {}
    for table in ("events", "items"):
        pieces = sorted((tmp_path / "read" / table).glob("*.parquet"))
        found[table] = [row for piece in pieces for row in pq.ParquetFile(piece).read().to_pylist()]
    return found


THEIRS = {"user_id": "visitorid", "item_id": "sku", "event_type": "action"}
SAID = ("user_id=visitorid", "events.item_id=sku", "event_type=action")
ROWS = [renamed(EVENT, THEIRS), renamed(EVENT, THEIRS) | {"request_id": "r2"}]


@pytest.mark.parametrize(
    "events",
    [
        {"events.csv": as_csv(ROWS)},
        {"events.jsonl": as_jsonl(ROWS)},
        {"events.parquet": as_parquet(ROWS)},
        {
            "events/action=impression/a.csv": as_csv(
                [{name: value for name, value in row.items() if name != "action"} for row in ROWS]
            )
        },
    ],
    ids=["csv", "json", "parquet", "a folder's name"],
)
def test_columns_are_read_by_the_names_that_the_user_says(tmp_path, events) -> None:
    found = read(tmp_path, SAID, events | {"items.csv": as_csv([ITEM])})
    assert [(row["reason"], row["user_id"], row["item_id"], row["event_type"]) for row in found["events"]] == [
        (None, "u", "i", "impression")
    ] * 2
    assert [(row["reason"], row["item_id"]) for row in found["items"]] == [(None, "i")]


def test_a_name_said_of_both_tables_holds_for_both(tmp_path) -> None:
    sku = {"item_id": "sku"}
    files = {"events.csv": as_csv([renamed(EVENT, sku)]), "items.csv": as_csv([renamed(ITEM, sku)])}
    found = read(tmp_path, ("item_id=sku",), files)
    assert found["events"][0]["item_id"] == found["items"][0]["item_id"] == "i"


def test_a_name_that_only_one_table_has_is_refused_with_how_to_say_it_of_one(tmp_path) -> None:
    files = {"events.csv": as_csv([renamed(EVENT, {"item_id": "sku"})]), "items.csv": as_csv([ITEM])}
    with pytest.raises(RawTableUnusable, match=r"items\.csv has no column sku, .* say events\.item_id= or items"):
        read(tmp_path, ("item_id=sku",), files)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("user_id", r"'user_id' is no pair: say user_id=visitorid,item_id=sku$"),
        ("user_ids=v", r"names no column of the raw tables: did you mean user_id\?$"),
        ("items.user_id=v", r"names no column of the raw tables: did you mean items\.item_id\?$"),
        ("events.prize=v", r"names no column of the raw tables: "),
    ],
)
def test_what_names_no_column_of_ours_is_refused(said, message) -> None:
    with pytest.raises(RawTableUnusable, match=message):
        parse_names([said])


def test_a_workspace_remembers_the_names_until_others_or_none_are_said(tmp_path) -> None:
    (tmp_path / "raw").mkdir()

    def columns(said: str | None) -> tuple[str, ...]:
        opened = open_workspace(tmp_path / "workspace", tmp_path / "raw", columns=parted(said))
        opened.folder.mkdir(exist_ok=True)
        remember(opened)
        return opened.config.ingest.columns

    assert columns("user_id=visitorid, item_id=sku") == ("user_id=visitorid", "item_id=sku")
    assert columns(None) == ("user_id=visitorid", "item_id=sku")
    assert columns("user_id=uid") == ("user_id=uid",)
    assert columns("") == ()
    assert columns(None) == ()
