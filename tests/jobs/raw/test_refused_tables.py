"""A raw table that cannot be read is refused in one sentence that names the file and the cure."""

import bz2
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from raw_files import (
    EVENT,
    ITEM,
    NOON,
    Case,
    as_csv,
    as_jsonl,
    as_parquet,
    items,
    link,
    pipe,
    renamed,
    without,
    zipped,
)
from raw_readers import ingested

from jobs.raw.folder import RawTableUnusable


def tarred(name: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def archive(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped_files:
        for name in names:
            zipped_files.writestr(name, as_csv([ITEM]))
    return stream.getvalue()


def encrypted(packed: bytes) -> bytes:
    """A zip whose one file is marked as encrypted, in its own header and in the directory."""
    at = packed.index(b"PK\x01\x02") + 8
    return packed[:6] + b"\x01" + packed[7:at] + b"\x01" + packed[at + 1 :]


LATIN = [ITEM | {"item_id": f"i{n}", "title": "Schön"} for n in range(9)]

REFUSED = [
    Case("events lack a column", {"events.csv": as_csv([without(EVENT, "position")])}, "has no column position: add"),
    Case(
        "events lack a column in the third file",
        {f"events/{n}.csv": as_csv([EVENT if n != "c" else without(EVENT, "user_id")]) for n in "abcd"},
        r"events/c\.csv has no column user_id: add it; its columns are item_id, event_time",
    ),
    Case(
        "events lack a column in the second parquet file",
        {"events/a.parquet": as_parquet(EVENT), "events/b.parquet": as_parquet(EVENT, request_id=None)},
        r"events/b\.parquet has no column request_id",
    ),
    Case(
        "events lack a key in the third JSON lines file",
        {f"events/{n}.jsonl": as_jsonl([EVENT if n != "c" else without(EVENT, "item_id")]) for n in "abc"},
        r"events/c\.jsonl has no column item_id",
    ),
    Case("items lack a column", {"items.csv": as_csv([without(ITEM, "image_uri")])}, "has no column image_uri: add it"),
    Case(
        "items with capitals and blanks in the header",
        {"items.csv": as_csv([renamed(renamed(ITEM, "item_id", "Item ID"), "image_uri", "Image URI")])},
        r"rename 'Item ID' to item_id, rename 'Image URI' to image_uri; its columns are 'Item ID'",
    ),
    Case(
        "items of other names in parquet",
        {"items.parquet": as_parquet(renamed(ITEM, "item_id", "itemId"))},
        r"has no column item_id: rename itemId to item_id, or say --columns item_id=itemId; its",
    ),
    Case(
        "items of other names in JSON",
        {"items.jsonl": as_jsonl([renamed(ITEM, "item_id", "sku")])},
        "rename sku to item_id, or say --columns item_id=sku",
    ),
    Case(
        "events without a header",
        {"events.csv": as_csv([EVENT]).partition(b"\n")[2]},
        "has no header: let its first line be user_id,item_id,event_time",
    ),
    Case(
        "items with a column twice",
        {"items.csv": b"item_id,image_uri,title,item_id\na,b,c,d\n"},
        "has the column item_id 2 times: keep one",
    ),
    Case(
        "items with a column in two cases",
        {"items.parquet": as_parquet(ITEM, Title=pa.array(["x"]))},
        "has the columns Title and title, and either could be title: rename one",
    ),
    Case(
        "items in half a JSON array",
        {"items.json": b"[\n {\n"},
        r"holds one JSON array and is damaged .*jq -c '\.\[\]'$",
    ),
    Case(
        "items as one endless pretty object",
        {"items.json": json.dumps({"items": [ITEM] * 3000}, indent=1).encode()},
        "holds one object of items, each a whole column or list: write an object a row",
    ),
    Case(
        "items as an object of columns",
        {"items.json": json.dumps({"item_id": {"0": "a"}, "image_uri": {"0": "b"}}).encode()},
        "holds one object of item_id, image_uri, each a whole column or list: write an object a row",
    ),
    Case("items as Python writes them", {"items.json": repr(ITEM).encode()}, "holds Python's literals, not JSON"),
    Case("items as JSON in a CSV", {"items.csv": as_jsonl([ITEM])}, "holds JSON, not CSV: name it .jsonl"),
    Case(
        "items as garbage in JSON lines",
        {"items.jsonl": b"item_id: a\n"},
        "holds no JSON object in its first lines: write one a line",
    ),
    Case("items in UTF-16 unmarked", {"items.csv": as_csv([ITEM]).decode().encode("utf-16-le")}, "but UTF-16 without"),
    Case("items in Latin-1", {"items.csv": as_csv(LATIN).decode().encode("latin-1")}, r"\(see line 2; perhaps it is L"),
    Case("items with a Latin-1 header", {"items.csv": b"item_id,image_uri,gr\xf6\xdfe\n" * 99}, "see line 1"),
    Case("events in an empty CSV", {"events.csv": b""}, "events.csv holds no rows: fill it"),
    Case(
        "events in empty JSON lines", {"events/a.jsonl": b"", "events/b.jsonl": b"\n"}, "events holds no rows: fill it"
    ),
    Case("events in an empty parquet", {"events.parquet": b""}, "events.parquet holds no rows: fill it"),
    Case("events in a cut parquet", {"events.parquet": as_parquet(EVENT)[:-20]}, "not a readable parquet file"),
    Case("items in a parquet without its end", {"items.parquet": as_parquet(ITEM)[:-8]}, "not a readable parquet file"),
    Case("items compressed twice", {"items.csv.gz": zipped(zipped(as_csv([ITEM])))}, "is compressed twice: unpack it"),
    Case("items before garbage", {"items.csv.gz": zipped(as_csv([ITEM])) + b"x" * 9}, "goes on with other bytes after"),
    Case(
        "items before garbage in bzip2",
        {"items.csv.bz2": bz2.compress(as_csv([ITEM])) + b"x" * 9},
        "goes on with other bytes after the end of its bzip2: write it again",
    ),
    Case(
        "items before garbage in xz",
        {"items.csv.xz": lzma.compress(as_csv([ITEM])) + b"x" * 9},
        "goes on with other bytes after the end of its xz: write it again",
    ),
    Case("items in a cut bzip2", {"items.csv.bz2": bz2.compress(as_csv([ITEM]))[:-3]}, "does not unpack to its end"),
    Case("items in a cut xz", {"items.csv.xz": lzma.compress(as_csv([ITEM]))[:-3]}, "does not unpack to its end"),
    Case("items in a cut gzip", {"items.jsonl.gz": zipped(as_jsonl(items()))[:-20]}, "does not unpack to its end"),
    Case("items in half a zip", {"items.csv": b"PK\x03\x04 and more"}, "as its zip does not unpack to its end"),
    Case(
        "items in a workbook", {"items/a.xlsx": archive("xl/workbook.xml")}, "is an office file: save the table as CSV"
    ),
    Case(
        "items in a zip of two", {"items.zip": archive("a.csv", "b.csv")}, "is a zip of 2 files: unpack it into a fold"
    ),
    Case("items in an encrypted zip", {"items.zip": encrypted(archive("a.csv"))}, "is an encrypted zip: unpack it"),
    Case(
        "items not pulled in parquet", {"items.parquet": b"version https://git-lfs.github.com/spec/v1"}, "git lfs pull"
    ),
    Case("items in Avro", {"items/a.avro": b"Obj\x01 and more"}, "is an Avro file: write the table as parquet"),
    Case("items in ORC", {"items/a.orc": b"ORC and more"}, "is an ORC file: write the table as parquet"),
    Case("items not pulled", {"items.jsonl": b"version https://git-lfs.github.com/spec/v1\n"}, "run git lfs pull"),
    Case("items of an error", {"items.csv": b"\n<!DOCTYPE html><html>404"}, "is a web page, perhaps of an error"),
    Case("items in Delta", {"items/_delta_log/0.json": b"{}", "items/a.parquet": b""}, "is a Delta table, whose files"),
    Case("items in Hudi", {"items/.hoodie/hoodie.properties": b"", "items/a.parquet": b""}, "is a Hudi table, whose"),
    Case(
        "items in Iceberg", {"items/metadata/v1.metadata.json": b"{}", "items/data/a.parquet": b""}, "an Iceberg table"
    ),
    Case(
        "events of seconds since 1970",
        {"events.parquet": as_parquet(EVENT, event_time=pa.array([1709294400]))},
        r"event_time is int64, not a timestamp: .*\(event_time, unit='s', utc=True\)",
    ),
    Case(
        "events of milliseconds since 1970",
        {"events.parquet": as_parquet(EVENT, event_time=pa.array([1709294400000]))},
        "unit='ms'",
    ),
    Case(
        "events of naive times",
        {"events.parquet": as_parquet(EVENT, event_time=pa.array([NOON], pa.timestamp("us")))},
        "event_time has no time zone",
    ),
    Case(
        "items of naive times",
        {"items.parquet": as_parquet(ITEM, created_at=pa.array([NOON], pa.timestamp("ns")))},
        "created_at has no time zone, so its moments are not known: write it as UTC",
    ),
    Case(
        "events of days",
        {"events.parquet": as_parquet(EVENT, event_time=pa.array([date(2024, 3, 1)]))},
        r"event_time is date32\[day\], not a timestamp: cast it",
    ),
    Case("items of fractional ids", {"items.parquet": as_parquet(ITEM, item_id=pa.array([1.0]))}, "double, not text"),
    Case(
        "items of decimal ids",
        {"items.parquet": as_parquet(ITEM, item_id=pa.array([Decimal(7)]))},
        r"item_id is decimal128\(1, 0\), not text: cast it",
    ),
    Case("items of binary ids", {"items.parquet": as_parquet(ITEM, item_id=pa.array([b"a"]))}, "binary, not text"),
    Case("items of true prices", {"items.parquet": as_parquet(ITEM, price=pa.array([True]))}, "bool, not a number"),
    Case("items of lists", {"items.parquet": as_parquet(ITEM, title=pa.array([["a"]]))}, "title is list.*, not text"),
    Case(
        "items of half floats",
        {"items.parquet": as_parquet(ITEM, price=pa.array(np.array([1], np.float16)))},
        "price is halffloat, not a number",
    ),
    Case("events nowhere", {"items.csv": b""}, "holds no table events: add events.parquet, events.csv or events.jsonl"),
    Case(
        "events under a similar name", {"Event.csv": b""}, "if Event.csv is meant, save it under another name, or add"
    ),
    Case("events in a workbook", {"events.xlsx": archive("xl/workbook.xml")}, "events.xlsx is an office file: save"),
    Case("events in a tar", {"events.tar.gz": zipped(tarred("a.csv"))}, "events.tar.gz is a tar archive: unpack it"),
    Case("events in LZ4", {"events/a.csv.lz4": b"\x04\x22\x4d\x18" + bytes(9)}, "is compressed with LZ4: unpack it"),
    Case("events in Snappy", {"events.csv": b"\xff\x06\0\0sNaPpY" + bytes(9)}, "is compressed with Snappy: unpack it"),
    Case("events in Brotli", {"events/a.csv.br": b"\x8b\x07\x80ab"}, "is compressed with Brotli: unpack it"),
    Case("events in RAR", {"events/a.rar": b"Rar!\x1a\x07" + bytes(9)}, "is a RAR archive: unpack it"),
    Case("events in encrypted parquet", {"events.parquet": b"PARE" + bytes(9)}, "is parquet with an encrypted footer"),
    Case("events in a PDF", {"events.csv": b"%PDF-1.7\n"}, "is a PDF: export the table as CSV"),
    Case("events in NumPy", {"events.csv": b"\x93NUMPY\x01\0"}, "is a NumPy array: write the table as parquet"),
    Case("events in no file", {"events/_SUCCESS": b"", "events/.a.csv.crc": b""}, "events holds no files: put the eve"),
    Case(
        "events twice", {"events.csv": b"", "events/a.csv": b""}, r"more than once \(events and events.csv\): keep one"
    ),
    Case("events compressed and not", {"events.csv": b"", "events.csv.gz": b""}, "more than once"),
    Case("events in two formats", {"events/a.csv": b"", "events/b.jsonl": b""}, "one table in two formats: keep one"),
    Case(
        "events at the end of no link", link("events.csv", "gone.csv"), "events.csv is a link that leads nowhere: men"
    ),
    Case("events at the end of their own link", link("events.csv", "events.csv"), "a link that leads nowhere"),
    Case(
        "events with a part at the end of no link", link("events/b.csv", "gone.csv"), "events/b.csv is a link that le"
    ),
    Case(
        "events in a loop of folders", link("events/again", "."), "again leads to a folder that is read already: take"
    ),
    Case("events in a pipe", pipe, "events.csv is neither a file nor a folder: take it away"),
]


CASES = [pytest.param(case, id=case.name.replace(" ", "_")) for case in REFUSED]


@pytest.mark.parametrize("case", CASES)
def test_a_table_that_cannot_be_read_is_refused_in_a_sentence(tmp_path, case) -> None:
    raw = case.lay(tmp_path / "raw")
    with pytest.raises(RawTableUnusable, match=case.said) as refusal:
        ingested(raw, case.table)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user for a while")
@pytest.mark.parametrize("name", ["items.csv", "items.parquet", "items/part.csv"])
def test_what_may_not_be_read_is_no_empty_table(name) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own would keep the other user out of all of it
        Path(folder).chmod(0o777)
        raw = Case("items", {name: as_csv(items(1))}).lay(Path(folder) / "raw")
        (raw / name.partition("/")[0]).chmod(0)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError) as refusal:
                ingested(raw, "items")
        finally:
            os.seteuid(0)
    assert name.partition("/")[0] in str(refusal.value.filename)
    assert refusal.value.strerror == "Permission denied"


@pytest.mark.parametrize(("case", "said"), [(REFUSED[1], "has no column user_id"), (REFUSED[5], "rename 'Item ID'")])
def test_the_command_says_it_in_one_line(tmp_path, case, said) -> None:
    case.lay(tmp_path)
    for name, content in {"events": as_csv([EVENT]), "items": as_csv([ITEM])}.items():
        if name != case.table:
            (tmp_path / f"{name}.csv").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "courier", "check", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("courier: ")
    assert said in line
