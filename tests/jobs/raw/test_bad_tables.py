"""Bad raw tables: each is refused in one sentence or its bad rows are counted, alike in Spark and Beam."""

import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.raw import layout as raw_layout
from jobs.raw.folder import RawTableUnusable, table_files
from jobs.rules import items as catalogue
from jobs.rules.events import micros

AT = "2024-03-01T12:00:00Z"
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
EVENT = {
    "user_id": "u",
    "item_id": "i",
    "event_time": AT,
    "event_type": "impression",
    "request_id": "r",
    "position": "0",
}
ITEM = {
    "item_id": "i",
    "image_uri": "i.png",
    "category": "shoe",
    "title": "Schön",
    "price": "1.5",
    "created_at": AT,
}


def items(count: int = 30, **changed: Any) -> list[dict[str, Any]]:
    """Good items, of which the last one is changed."""
    rows = [ITEM | {"item_id": f"i{n}"} for n in range(count)]
    return [*rows[:-1], rows[-1] | changed]


def events(count: int = 30, **changed: Any) -> list[dict[str, Any]]:
    rows = [EVENT | {"request_id": f"r{n}"} for n in range(count)]
    return [*rows[:-1], rows[-1] | changed]


def as_csv(rows: Sequence[Mapping[str, Any]], **options: Any) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), **{"lineterminator": "\n"} | options)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def as_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def as_parquet(row: Mapping[str, Any], **columns: Any) -> bytes:
    """One row of text, and other columns as arrays of one value; None leaves a column out."""
    table = {name: pa.array([value]) for name, value in row.items()} | columns
    stream = io.BytesIO()
    pq.write_table(pa.table({name: column for name, column in table.items() if column is not None}), stream)
    return stream.getvalue()


def moments(unit: str, *values: int) -> pa.Array:
    return pa.array(values, pa.timestamp(unit, tz="UTC"))


Files = (
    Mapping[str, bytes] | Callable[[Path], None]
)  # path below the raw folder -> content, or whatever lays them there


@dataclass(frozen=True)
class Case:
    """A raw table and what becomes of it: `said` of it, or `counted` in it: rows by reason, None for the accepted."""

    name: str
    files: Files
    said: str = ""
    counted: Mapping[str | None, int] | None = None

    def lay(self, raw: Path) -> Path:
        raw.mkdir(exist_ok=True)
        if callable(self.files):
            self.files(raw)
        else:
            for path, content in self.files.items():
                (raw / path).parent.mkdir(parents=True, exist_ok=True)
                (raw / path).write_bytes(content)
        return raw

    @property
    def table(self) -> str:
        return "events" if self.name.startswith("events") else "items"


def without(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def renamed(row: Mapping[str, Any], name: str, other: str) -> dict[str, Any]:
    return {other if key == name else key: value for key, value in row.items()}


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def noise(lines: int) -> bytes:
    """Lines from which nothing else can be read: without commas, quotes, NULs or line breaks, many of them no UTF-8."""
    rng = np.random.default_rng(0)
    kept = np.array([byte for byte in range(1, 256) if chr(byte) not in '\n\r",'], np.uint8)
    return b"".join(b"#" + rng.choice(kept, 40).tobytes() + b"\n" for _ in range(lines))


def strewn(good: bytes, bad: bytes, head: int) -> bytes:
    """The lines of `good` and `bad` in any order, after the first `head` lines of `good`."""
    lines = good.splitlines(keepends=True)
    rest = lines[head:] + bad.splitlines(keepends=True)
    random.Random(0).shuffle(rest)
    return b"".join(lines[:head] + rest)


def link(path: str, target: str, **files: bytes) -> Callable[[Path], None]:
    def lay(raw: Path) -> None:
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (raw / path).with_name(f"{name}.csv").write_bytes(content)
        (raw / path).symlink_to(target)

    return lay


def pipe(raw: Path) -> None:
    os.mkfifo(raw / "events.csv")


TWO_LINES = b'{"item_id": "a"}\n'
LATIN = [ITEM | {"item_id": f"i{n}", "title": "Schön"} for n in range(9)]
HUGE = "x" * 10_000_000
ARRAY = json.dumps([ITEM, ITEM]).encode()
PRETTY = json.dumps(ITEM, indent=1).encode() + b"\n"
CUT_IN_CELLS = as_csv(items(3)).replace(b"shoe", b"sh\xf6e", 1)

# --- refused: one sentence that names the file and the cure ----------------------------------------------------------

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
        {"items.csv": as_csv([renamed(renamed(ITEM, "item_id", "Item ID"), "image_uri", " image_uri")])},
        r"rename 'Item ID' to item_id, rename ' image_uri' to image_uri; its columns are 'Item ID'",
    ),
    Case(
        "items of other names in parquet",
        {"items.parquet": as_parquet(renamed(ITEM, "item_id", "itemId"))},
        r"has no column item_id: rename itemId to item_id",
    ),
    Case(
        "items of other names in JSON",
        {"items.jsonl": as_jsonl([renamed(ITEM, "item_id", "ITEM_ID")])},
        "rename ITEM_ID to item_id",
    ),
    Case(
        "events without a header",
        {"events.csv": as_csv([EVENT]).partition(b"\n")[2]},
        "has no header: let its first line be user_id,item_id,event_time",
    ),
    Case("items by semicolons", {"items.csv": as_csv([ITEM], delimiter=";")}, "separated by semicolons, not by commas"),
    Case("items by tabs", {"items.csv": as_csv([ITEM], delimiter="\t")}, "separated by tabs, not by commas: save it"),
    Case(
        "items with a column twice",
        {"items.csv": b"item_id,image_uri,title,item_id\na,b,c,d\n"},
        "has the column item_id 2 times: keep one",
    ),
    Case(
        "items with a column in two cases",
        {"items.parquet": as_parquet(ITEM, Title=pa.array(["x"]))},
        "has the columns Title and title, one for Spark: rename one",
    ),
    Case("items as a JSON array", {"items.json": ARRAY}, "is one JSON array: write one object a line"),
    Case("items as a pretty JSON array", {"items.json": b"[\n {\n"}, "is one JSON array: write one object a line"),
    Case("items as pretty JSON", {"items.json": PRETTY * 2}, "spreads an object over several lines: write one a line"),
    Case(
        "items as one endless pretty object",
        {"items.json": json.dumps({"items": [ITEM] * 3000}, indent=1).encode()},
        "spreads an object over several lines",
    ),
    Case("items as JSON in a CSV", {"items.csv": as_jsonl([ITEM])}, "holds JSON, not CSV: .* name it .jsonl"),
    Case("items as garbage in JSON lines", {"items.jsonl": b"item_id: a\n"}, "no JSON object in its first 1 "),
    Case("items in UTF-16", {"items.csv": as_csv([ITEM]).decode().encode("utf-16")}, "not UTF-8 text but UTF-16"),
    Case("items in UTF-16 unmarked", {"items.jsonl": as_jsonl([ITEM]).decode().encode("utf-16-le")}, "but UTF-16 or"),
    Case("items in Latin-1", {"items.csv": as_csv(LATIN).decode().encode("latin-1")}, r"\(see line 2; perhaps it is L"),
    Case(
        "items in Latin-1 JSON", {"items.jsonl": as_jsonl(LATIN).decode().encode("latin-1")}, r"Latin-1\): save it as"
    ),
    Case("items with a Latin-1 header", {"items.csv": b"item_id,image_uri,gr\xf6\xdfe\n" * 99}, "see line 1"),
    Case("events in an empty CSV", {"events.csv": b""}, "is empty and has no column user_id: write it again"),
    Case("events in empty JSON lines", {"events/a.jsonl": b"", "events/b.jsonl": b"\n"}, "events holds no rows: write"),
    Case("events in an empty parquet", {"events.parquet": b""}, "not a readable parquet file.*write it again"),
    Case("events in a cut parquet", {"events.parquet": as_parquet(EVENT)[:-20]}, "not a readable parquet file"),
    Case("items in a parquet without its end", {"items.parquet": as_parquet(ITEM)[:-8]}, "not a readable parquet file"),
    Case("items compressed but not named so", {"items.csv": zipped(as_csv([ITEM]))}, r"let its name end in \.gz"),
    Case(
        "items named compressed but are not", {"items.csv.gz": as_csv([ITEM])}, r"not compressed with gzip: take \.gz"
    ),
    Case("items in a cut gzip", {"items.jsonl.gz": zipped(as_jsonl(items()))[:-20]}, "does not unpack to its end"),
    Case("items in a workbook", {"items.csv": b"PK\x03\x04 and more"}, "zip or Excel file: save the table as CSV"),
    Case("items in parquet named CSV", {"items.csv": as_parquet(ITEM)}, r"is a parquet file: name it \.parquet"),
    Case("items in a folder of workbooks", {"items/a.xlsx": b"PK"}, "is not known as parquet, CSV or JSON lines: name"),
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
    Case("events in a format unknown", {"events.xlsx": b""}, "if events.xlsx is meant, save it under another name"),
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

# --- read: the good rows are kept, the bad ones counted --------------------------------------------------------------


def counted(good: int, **bad: int) -> dict[str | None, int]:
    return {None: good, **bad} if good else dict(bad)


COUNTED = [
    Case("items after a byte order mark", {"items.csv": b"\xef\xbb\xbf" + as_csv(items(3))}, counted=counted(3)),
    Case("items in JSON after a mark", {"items.jsonl": b"\xef\xbb\xbf" + as_jsonl(items(3))}, counted=counted(3)),
    Case(
        "items after a mark with bad bytes",
        {"items.csv": b"\xef\xbb\xbf" + as_csv(items(30)).replace(b"shoe", b"sh\xf6e", 1)},
        counted=counted(29, bad_encoding=1),
    ),
    Case("items with CRLF", {"items.csv": as_csv(items(3, title="a\r\nb"), lineterminator="\r\n")}, counted=counted(3)),
    Case("items with CR", {"items.csv": as_csv(items(3), lineterminator="\r")}, counted=counted(3)),
    Case(
        "items with LF, then CRLF",
        {"items.csv": as_csv(items(3)) + as_csv(items(5), lineterminator="\r\n").split(b"\r\n", 4)[4] + b"\r\n"},
        counted=counted(5),
    ),
    Case("items in JSON with CRLF", {"items.jsonl": as_jsonl(items(3)).replace(b"\n", b"\r\n")}, counted=counted(3)),
    Case("items with breaks in quotes", {"items.csv": as_csv(items(3, title='a\n"b",\nc'))}, counted=counted(3)),
    Case("items between empty lines", {"items.csv": b"\n" + as_csv(items(3)) + b"\n\n"}, counted=counted(3)),
    Case("items in JSON between empty lines", {"items.jsonl": b"\n \n" + as_jsonl(items(3))}, counted=counted(3)),
    Case("items compressed", {"items.csv.gz": zipped(as_csv(items(3)))}, counted=counted(3)),
    Case("items in JSON compressed", {"items/a.JSONL.gz": zipped(as_jsonl(items(3)))}, counted=counted(3)),
    Case("items of which there are none", {"items.csv": as_csv(items(1)).partition(b"\n")[0]}, counted={}),
    Case("items of two columns", {"items.csv": b"image_uri,item_id\nb,a\n"}, counted=counted(1)),
    Case(
        "items of two columns in parquet",
        {"items.parquet": as_parquet(ITEM, **dict.fromkeys(("category", "title", "price", "created_at")))},
        counted=counted(1),
    ),
    Case(
        "items in a folder with and without prices",
        {"items/a.csv": as_csv(items(2)), "items/b.csv": as_csv([without(ITEM, "price")])},
        counted=counted(3),
    ),
    Case(
        "items in a folder with an empty part",
        {"items/a.jsonl": as_jsonl(items(2)), "items/b.jsonl": b"", "items/_temporary/c.jsonl": b"{"},
        counted=counted(2),
    ),
    Case(
        "items with other columns twice",
        {"items.csv": b"x,item_id,x,image_uri,,\n1,a,2,b,3,4\n"},
        counted=counted(1),
    ),
    Case(
        "items with some bad bytes",
        {"items.csv": as_csv(items(30)).replace(b"shoe", b"sh\xf6e", 2)},
        counted=counted(28, bad_encoding=2),
    ),
    Case(
        "items in JSON with some bad bytes",
        {"items.jsonl": as_jsonl(items(30)).replace(b"shoe", b"\xed\xa0\x80", 2)},
        counted=counted(28, bad_encoding=2),
    ),
    Case(
        "items in parquet with bad bytes",
        {"items.parquet": as_parquet(ITEM, title=pa.array([b"\xff"]).view(pa.string()))},
        counted=counted(0, bad_encoding=1),
    ),
    Case(
        "items with the sign of replaced bytes, which is UTF-8",
        {"items.csv": as_csv(items(3, title="\ufffd"))},
        counted=counted(3),
    ),
    Case("items with half a surrogate pair", {"items.jsonl": b'{"item_id": "\\ud800"}\n'}, counted=counted(1)),
    Case(
        "items, 1 % of the lines garbage",
        {"items.csv": strewn(as_csv(items(9_900)), noise(100), head=2)},
        counted=counted(9_900, bad_row=100),
    ),
    Case(
        "items in JSON, 1 % of the lines garbage",
        {"items.jsonl": strewn(as_jsonl(items(9_900)), noise(100), head=2)},
        counted=counted(9_900, bad_row=100),
    ),
    Case(
        "events, 1 % of the lines garbage",
        {"events.csv": strewn(as_csv(events(9_900)), noise(100), head=2)},
        counted=counted(9_900, bad_row=100),
    ),
    Case(
        "events in JSON, 1 % of the lines garbage",
        {"events.jsonl": strewn(as_jsonl(events(9_900)), noise(100), head=2)},
        counted=counted(9_900, bad_row=100),
    ),
    Case(
        "items with too few and too many cells",
        {"items.csv": as_csv(items(3)) + b"a,b\na,b,c,d,1,,\n  \n"},
        counted=counted(3, bad_row=3),
    ),
    Case(
        "items in JSON that is more or less than an object",
        {
            "items.jsonl": as_jsonl(items(3))
            + b'{"item_id": "x"}{"item_id": "y"}\n{"item_id": "x"} y\n{"item_id": "x"}, {"item_id": "y"}\n'
            + b'[{"item_id": "x"}]\n[1]\nnull\n"x"\n7\n{"item_id": "x"\n{"item_id": "x"}}\n'
            + b'{\'item_id\': \'x\'}\n{"item_id": "x\ty"}\n{"item_id": "x",}\n'
        },
        counted=counted(3, bad_row=13),
    ),
    Case(
        "items with NULs", {"items.csv": as_csv(items(3)) + bytes(99) + b"\na\0,,,,,\n"}, counted=counted(3, bad_row=2)
    ),
    Case(
        "items in JSON with NULs",
        {"items.jsonl": as_jsonl(items(3, title="\0")) + b'{"item_id": "\0"}\n' + bytes(9)},
        counted=counted(2, bad_row=3),
    ),
    Case(
        "items in parquet with NULs",
        {"items.parquet": as_parquet(ITEM | {"item_id": "a\0"})},
        counted=counted(0, bad_row=1),
    ),
    Case("items with a line of 10 MB", {"items.csv": as_csv(items(3, title=HUGE))}, counted=counted(3)),
    Case(
        "items in JSON with a line of 10 MB", {"items.jsonl": as_jsonl(items(3, title=HUGE)[::-1])}, counted=counted(3)
    ),
    Case(
        "items with null and blank ids",
        {"items.jsonl": as_jsonl([ITEM | {"item_id": key} for key in (None, "", "  ", "\t", "a")] + [{"title": "x"}])},
        counted=counted(1, null_item_id=5),
    ),
    Case(
        "items with numbers for ids",
        {"items.jsonl": as_jsonl([{"item_id": key} for key in (7, 7.0, 1e7, 12345678.5, 1e-5, -0.0, True, 10**30)])},
        counted=counted(8),
    ),
    Case(
        "items with numbers for ids in parquet",
        {"items.parquet": as_parquet(ITEM, item_id=pa.array([2**63], pa.uint64()))},
        counted=counted(1),
    ),
    Case(
        "items with prices that are none",
        {
            "items.jsonl": b"".join(
                b'{"item_id": "i%d", "price": %s}\n' % (n, price)
                for n, price in enumerate(
                    [b"NaN", b"null", b'""', b'"nan"', b"0", b"1e2", b'" 1 "', b"0.1", b"100000000.0"]
                    + [b"Infinity", b"-Infinity", b"1e400", b"-1", b'"free"', b"true", b"[1]", b'{"eur": 1.50}']
                )
            )
        },
        counted=counted(9, bad_price=8),
    ),
    Case(
        "items with an infinite price in parquet",
        {"items.parquet": as_parquet(ITEM, price=pa.array([float("inf")]))},
        counted=counted(0, bad_price=1),
    ),
    Case(
        "items of odd but honest types",
        {
            "items/a.parquet": as_parquet(
                ITEM,
                item_id=pa.array(["a"]).dictionary_encode(),
                title=pa.array(["A"], pa.large_string()),
                category=pa.nulls(1),
                price=pa.array([Decimal("1.50")]),
                created_at=moments("ns", 1_709_294_400_000_000_999),
            ),
            "items/b.parquet": as_parquet(
                ITEM, item_id=pa.array([1], pa.int8()), price=pa.array([0.1], pa.float32()), created_at=pa.nulls(1)
            ),
        },
        counted=counted(2),
    ),
    Case(
        "items of no time of ours",
        {
            "items.csv": as_csv(
                [
                    ITEM | {"item_id": f"i{n}", "created_at": at}
                    for n, at in enumerate(
                        ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2200-01-01T00:00:00Z", "1899-12-31T23:59:59Z"]
                        + ["2024-03-01T12:00:00", "1709294400", "2024-03-01", "2199-12-31T23:59:59.999999Z"]
                        + ["1900-01-01T00:00:00Z", "2200-01-01T00:30:00+01:00", ""]
                    )
                ]
            )
        },
        counted=counted(4, bad_created_at=7),
    ),
    Case(
        "items of no time of ours in parquet",
        {
            f"items/{n}.parquet": as_parquet(ITEM | {"item_id": f"i{n}"}, created_at=moments("us", at))
            for n, at in enumerate([2**62, 253402300799 * 10**6, -62135596800 * 10**6, 0])
        },
        counted=counted(1, bad_created_at=3),
    ),
    Case(
        "items that repeat each other",
        {
            "items/a.csv": as_csv(
                [ITEM | {"title": title, "price": price} for title in ("b", "", "Ä", "\U0001f600") for price in "29"]
            ),
            "items/b.csv": as_csv([ITEM | {"title": "a", "price": price} for price in ("3", "10", "", "-1")]),
        },
        counted=counted(1, bad_price=1, duplicate_item_id=10),
    ),
    Case(
        "events with null and blank keys",
        {
            "events.jsonl": as_jsonl(
                [EVENT | {name: key} for name in ("user_id", "item_id", "request_id") for key in (None, "", " \t")]
                + [EVENT]
            )
        },
        counted=counted(1, null_user_id=3, null_item_id=3, null_request_id=3),
    ),
    Case(
        "events of no time",
        {
            "events.csv": as_csv(
                [
                    EVENT | {"event_time": at}
                    for at in (
                        "0001-01-01T00:00:00Z",
                        "9999-12-31T00:00:00Z",
                        "1709294400",
                        "",
                        "2024-03-01T12:00:00",
                        AT,
                    )
                ]
            )
        },
        counted=counted(1, bad_event_time=3, null_event_time=1, naive_event_time=1),
    ),
    Case(
        "events of no time of ours in parquet",
        {
            f"events/{n}.parquet": as_parquet(EVENT, event_time=moments("us", at))
            for n, at in enumerate([2**62, 253402300799 * 10**6, -62135596800 * 10**6, 0])
        },
        counted=counted(1, bad_event_time=3),
    ),
    Case(
        "events at no position",
        {"events.csv": as_csv([EVENT | {"position": at} for at in ("NaN", "-1", "Infinity", "", "2.0")])},
        counted=counted(1, bad_position=3, null_position=1),
    ),
    Case(
        "events at no position in parquet",
        {
            f"events/{n}.parquet": as_parquet(EVENT, position=pa.array([at]))
            for n, at in enumerate([float("nan"), float("inf"), -1.0, 2.0, 1e7])
        },
        counted=counted(1, null_position=1, bad_position=3),
    ),
    Case(
        "events of users who are numbers",
        {
            "events.parquet": as_parquet(
                EVENT, user_id=pa.array([7]), event_type=pa.array(["click"]).dictionary_encode(), position=pa.nulls(1)
            )
        },
        counted=counted(1),
    ),
    Case("events compressed", {"events/a.csv.gz": zipped(as_csv(events(3)))}, counted=counted(3)),
    Case(
        "events with bad bytes and a NUL",
        {"events.csv": as_csv(events(30)).replace(b"r7,", b"\xff7,").replace(b"r8,", b"\0,")},
        counted=counted(28, bad_encoding=1, bad_row=1),
    ),
]


def spark_rows(spark, raw: Path, table: str) -> list[dict[str, Any]]:
    from pyspark.sql import functions as F

    from jobs.raw.spark_tables import read_events, read_items

    judged = read_items(spark, raw) if table == "items" else read_events(spark, raw, datetime.now(UTC))
    moment = {"events": "event_time", "items": "created_at"}[table]
    return [row.asDict() for row in judged.withColumn(moment, F.unix_micros(moment)).collect()]


def beam_rows(raw: Path) -> tuple[list[catalogue.Item], Counter[str]]:
    """The items that the images job accepts, and why it rejects the others."""
    from jobs.raw import beam_rows as raw_rows

    table = table_files(raw, "items")
    for file in table.files:
        raw_layout.check_file("items", table.format, file)
    rows = [row for file in table.files for row in raw_rows.rows(table.format, file)]
    accepted, rejected = catalogue.accept([row for row in rows if not isinstance(row, str)])
    reasons = Counter(reason for _, reason in rejected)
    if broken := sum(isinstance(row, str) for row in rows):
        reasons[catalogue.BAD_ROW] += broken
    return accepted, reasons


NAMES = ("item_id", "image_uri", "category", "title", "price", "created_at")


def flat(item: catalogue.Item) -> tuple[Any, ...]:
    at = item.created_at and micros(item.created_at)
    return item.item_id, item.image_uri, item.category, item.title, item.price, at


CASES = [pytest.param(case, id=case.name.replace(" ", "_")) for case in REFUSED + COUNTED]


@pytest.mark.parametrize("case", CASES)
def test_a_bad_table_is_refused_in_a_sentence_or_its_bad_rows_are_counted(spark, tmp_path, case) -> None:
    raw = case.lay(tmp_path / "raw")
    if case.said:
        readers = {"events": [spark_rows], "items": [spark_rows, lambda _, raw, __: beam_rows(raw)]}
        for reader in readers[case.table]:
            with pytest.raises(RawTableUnusable, match=case.said) as refusal:
                reader(spark, raw, case.table)
            assert "\n" not in str(refusal.value)
        return
    read = spark_rows(spark, raw, case.table)
    assert Counter(row["reason"] for row in read) == Counter(case.counted)
    assert all((row["reason"] is None) == (row["row"] is None) for row in read)
    if case.table == "items":
        accepted, reasons = beam_rows(raw)
        assert ({None: len(accepted)} if accepted else {}) | reasons == case.counted
        from_spark = [tuple(row[name] for name in NAMES) for row in read if not row["reason"]]
        assert sorted(from_spark, key=repr) == sorted(map(flat, accepted), key=repr)


def test_what_is_accepted_and_rejected_makes_up_what_was_read(spark, tmp_path) -> None:
    from jobs.raw.spark_findings import rows_read

    files = {"events.jsonl": as_jsonl(events(50)) + b"\n{\n", "items.csv": as_csv(items(40)) + b"\na\n\n,,,,,\n"}
    raw = Case("both tables", files).lay(tmp_path / "raw")
    for table, count in (("events", 51), ("items", 42)):
        assert len(spark_rows(spark, raw, table)) == rows_read(spark, raw, table) == count


def test_a_quote_that_nothing_closes_costs_no_row_in_silence(spark, tmp_path) -> None:
    for first in (b'"i9,i.png,shoe,x,1,\n', b'i9,i.png,shoe,x,1,"\n'):
        raw = Case("items", {"items.csv": as_csv(items(3)) + first + b"j,,,,,\nk,,,,,\n"}).lay(tmp_path / "raw")
        [broken] = [row for row in spark_rows(spark, raw, "items") if row["reason"]]
        assert broken["reason"] == "bad_row"
        assert "k,,,,," in broken["row"]
        with pytest.raises(RawTableUnusable, match=r"items\.csv, after line 4: .*unclosed quote$"):
            beam_rows(raw)


def damaged_parquet() -> bytes:
    stream = io.BytesIO()
    column = pa.array([f"{n:08d}" for n in range(20_000)])
    pq.write_table(pa.table(dict.fromkeys(ITEM, column)), stream, compression="zstd", use_dictionary=False)
    data = stream.getvalue()
    return data[:4] + bytes(400) + data[404:]


def cut_gzip() -> bytes:
    rng = random.Random(0)
    rows = [ITEM | {"item_id": f"i{n}", "title": f"{rng.random()}"} for n in range(9_000)]
    return zipped(as_csv(rows))[:-20]


@pytest.mark.parametrize(("name", "content"), [("items.parquet", damaged_parquet), ("items.csv.gz", cut_gzip)])
def test_a_file_that_proves_damaged_halfway_is_named_with_its_cure(spark, tmp_path, name, content) -> None:
    from jobs.raw.spark_files import damage_named

    raw = Case("items", {name: content()}).lay(tmp_path / "a raw folder")
    with (
        pytest.raises(RawTableUnusable, match=rf"a raw folder/{name} is damaged or cut .* write it again$"),
        damage_named(),
    ):
        spark_rows(spark, raw, "items")
    with pytest.raises(RawTableUnusable, match=rf"{name} is .*(cut short|damaged).*: write it again$"):
        beam_rows(raw)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user for a while")
@pytest.mark.parametrize("name", ["items.csv", "items.parquet", "items/part.csv"])
def test_what_may_not_be_read_is_no_empty_table(name) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:  # pytest's own would keep the other user out of all of it
        Path(folder).chmod(0o755)
        raw = Case("items", {name: as_csv(items(1))}).lay(Path(folder) / "raw")
        (raw / name.partition("/")[0]).chmod(0)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError) as refusal:
                beam_rows(raw)
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


CSV_PIECES = ['"', ",", "a", " ", "\n", "\r\n", '""', '",', ',"', "b", "\n", "x,y\n", '"q",r\n', "\t", "\\"]
JSON_PIECES = [
    *(
        '{"item_id":',
        '"x"',
        "}",
        "{",
        "]",
        "[",
        ",",
        "\n",
        "1",
        "1.50",
        "-0",
        "null",
        "NaN",
        '"\\u00e9"',
        " ",
        ":",
        "\\",
    ),
    *('{"item_id":"q"}\n', '{"item_id":7}', '"image_uri":', "1e5", '"', "true", "01", ".5", "-", '"\\/"', "\x7f"),
    *('{"item_id":[1, {"b": "é\\n"}]}\n', "\u2028"),
]


@pytest.mark.parametrize(
    ("form", "head", "pieces"),
    [("csv", "item_id,image_uri\nok,ok\n", CSV_PIECES), ("jsonl", '{"item_id":"ok"}\n' * 30, JSON_PIECES)],
)
def test_files_of_odd_pieces_are_judged_alike_row_by_row(spark, tmp_path, form, head, pieces) -> None:
    from jobs.raw import beam_rows as raw_rows
    from jobs.raw.spark_tables import judged_alone

    rng = random.Random(0)
    names = [f"{n}.{form}" for n in range(150)]
    texts = {f"items/{name}": head + "".join(rng.choices(pieces, k=rng.randrange(25))) for name in names}
    raw = Case("items", {path: text.encode() for path, text in texts.items()}).lay(tmp_path / "raw")
    judged: dict[str, list[Any]] = {name: [] for name in names}
    for row in (
        judged_alone(spark, raw, "items", datetime.now(UTC)).select("_file", "reason", "item_id", "image_uri").collect()
    ):
        judged[Path(row["_file"]).name].append((row["reason"], None if row["reason"] else row["item_id"]))
    compared = 0
    for name in names:
        try:
            rows = list(raw_rows.rows(form, raw / "items" / name))
        except RawTableUnusable:  # an unclosed quote
            assert form == "csv"
            continue
        reasons = [catalogue.BAD_ROW if isinstance(row, str) else catalogue.reject_reason(row) for row in rows]
        assert reasons == [reason for reason, _ in judged[name]], texts[f"items/{name}"]
        if form == "jsonl":  # of text after a closing quote in a CSV cell, the engines keep other quotes
            ids = [None if reason else str(row["item_id"]) for reason, row in zip(reasons, rows, strict=True)]
            assert ids == [item_id for _, item_id in judged[name]]
        compared += 1
    assert compared > 90
