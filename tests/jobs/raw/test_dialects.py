"""What other systems write is read as it is meant: the same rows from every dialect, codec, container and folder."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_files import as_csv, as_jsonl

AT = datetime(2026, 3, 2, 8, 0, 0, 500_000, tzinfo=UTC)
MICROS = 1_772_438_400_500_000
EVENTS = [
    {
        "user_id": f"u{n % 3}",
        "item_id": f"i{n}",
        "event_time": "2026-03-02T08:00:00.5Z",
        "event_type": ("impression", "click", "cart", "purchase")[n % 4],
        "request_id": f"r{n}",
        "position": str(n),
    }
    for n in range(12)
]
ITEMS = [
    {
        "item_id": f"i{n}",
        "image_uri": f"images/{n}.jpg",
        "category": ("shoe", "hat & scarf")[n % 2],
        "title": ('5" heel, red', "plain")[n % 2],
        "price": f"{n}.5",
        "created_at": "2026-03-02T08:00:00.5Z",
    }
    for n in range(12)
]
MANY = [EVENTS[0] | {"item_id": f"i{n}", "request_id": f"r{n}"} for n in range(6000)]  # 400 kB
Row = Mapping[str, Any]


def stamped(text: str) -> bytes:
    return as_csv([row | {"event_time": text} for row in EVENTS])


def zipped(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def parquet(rows: list[dict[str, Any]], *, options: Mapping[str, Any] | None = None, **types: pa.DataType) -> bytes:
    at = pa.timestamp("us", "UTC")
    known = {"event_time": at, "created_at": at, "position": pa.int32(), "price": pa.float64()} | types
    columns = {}
    for name in rows[0]:
        values = [AT if name in ("event_time", "created_at") else row[name] for row in rows]
        values = [int(value) for value in values] if name == "position" else values
        values = [float(value) for value in values] if name == "price" else values
        columns[name] = pa.array(values, known.get(name, pa.string()))
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, **(options or {}))
    return stream.getvalue()


def without(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != name} for row in rows]


def by(rows: list[dict[str, Any]], name: str) -> dict[str, list[dict[str, Any]]]:
    return {value: without([row for row in rows if row[name] == value], name) for value in {row[name] for row in rows}}


def backslashed(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(
        stream, list(rows[0]), quoting=csv.QUOTE_ALL, doublequote=False, escapechar="\\", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


OLD = {"use_deprecated_int96_timestamps": True, "store_schema": False}
EMPTY = io.BytesIO()
pq.write_table(pa.table({name: pa.array([], pa.float64()) for name in EVENTS[0]}), EMPTY)  # as pandas writes no rows
CSV, LINES = as_csv(EVENTS), as_jsonl(EVENTS)
HEADER, _, ROWS = CSV.partition(b"\n")
EVENTS_FILES: dict[str, dict[str, bytes]] = {
    "offsets of hours, as PostgreSQL writes them": {"events.csv": stamped("2026-03-02 10:00:00.5+02")},
    "offsets without a colon": {"events.csv": stamped("2026-03-02T03:00:00.500-0500")},
    "offsets after a blank": {"events.csv": stamped("2026-03-02 10:00:00.5 +02:00")},
    "the word UTC, as BigQuery writes it": {"events.csv": stamped("2026-03-02 08:00:00.5 UTC")},
    "a zone in brackets, as Java writes it": {"events.csv": stamped("2026-03-02T09:00:00.5+01:00[Europe/Berlin]")},
    "letters of a zone, as Go writes them": {"events.csv": stamped("2026-03-02 09:00:00.5 +0100 CET")},
    "a comma before fractions": {"events.csv": stamped("2026-03-02T08:00:00,500Z")},
    "small letters in moments": {"events.csv": stamped("2026-03-02t08:00:00.5z")},
    "nanoseconds in text": {"events.csv": stamped("2026-03-02T08:00:00.500000999Z")},
    "types in capitals": {"events.csv": as_csv([row | {"event_type": row["event_type"].title()} for row in EVENTS])},
    "types between blanks": {"events.csv": as_csv([row | {"event_type": f" {row['event_type']} "} for row in EVENTS])},
    "columns in capitals, as Snowflake writes them": {"events.csv": HEADER.upper() + b"\n" + ROWS},
    "numbers as text in JSON": {"events.jsonl": LINES},
    "numbers in JSON": {"events.jsonl": as_jsonl([row | {"position": int(row["position"])} for row in EVENTS])},
    "semicolons": {"events.csv": as_csv(EVENTS, delimiter=";")},
    "bars": {"events.csv": as_csv(EVENTS, delimiter="|")},
    "tabs": {"events.tsv": as_csv(EVENTS, delimiter="\t")},
    "text that is named so": {"events.txt": CSV},
    "text of tabs": {"events/part-0.txt": as_csv(EVENTS, delimiter="\t")},
    "single quotes": {"events.csv": as_csv(EVENTS, quotechar="'", quoting=csv.QUOTE_ALL)},
    "Excel's word for the separator": {"events.csv": b"sep=;\n" + as_csv(EVENTS, delimiter=";")},
    "comments before the header": {"events.csv": b"# exported by x\n#\n\n" + CSV},
    "a title before the header": {"events.csv": b"Clicks of May, all shops\n\n" + CSV},
    "a header in a comment": {"events.csv": b"# exported by x\n# " + CSV},
    "a byte order mark": {"events.csv": b"\xef\xbb\xbf" + CSV},
    "UTF-16 with its mark": {"events.csv": CSV.decode().encode("utf-16")},
    "UTF-16 the other way round": {"events.csv": b"\xfe\xff" + CSV.decode().encode("utf-16-be")},
    "JSON lines in UTF-16": {"events.jsonl": LINES.decode().encode("utf-16")},
    "commas at the ends of lines": {"events.csv": CSV.replace(b"\n", b",\n").replace(b",\n", b"\n", 1)},
    "a JSON array": {"events.json": json.dumps(EVENTS).encode()},
    "a pretty JSON array": {"events.json": json.dumps(EVENTS, indent=2).encode()},
    "pretty objects, one after another": {"events.json": b"".join(json.dumps(r, indent=1).encode() for r in EVENTS)},
    "objects without line breaks, as Firehose writes them": {"events/shop-1-2026-03-02-08": LINES.replace(b"\n", b"")},
    "several objects a line": {"events.jsonl": LINES.replace(b"}\n", b"}", 3).replace(b"}{", b"} {")[:-1]},
    "gzip": {"events.csv.gz": gzip.compress(CSV)},
    "gzip of several members": {"events.csv.gz": b"".join(gzip.compress(CSV[a : a + 99]) for a in range(0, 2000, 99))},
    "zeros behind a gzip": {"events.csv.gz": gzip.compress(CSV) + bytes(512)},
    "gzip that is not named so": {"events.csv": gzip.compress(CSV)},
    "a name of gzip, unpacked on the way": {"events.csv.gz": CSV},
    "bzip2 of several members": {"events.csv.bz2": bz2.compress(CSV[:300]) + bytes(512) + bz2.compress(CSV[300:])},
    "xz of several members": {"events.csv.xz": lzma.compress(CSV[:300]) + lzma.compress(CSV[300:])},
    "bzip2": {"events.jsonl.bz2": bz2.compress(LINES)},
    "xz": {"events.csv.xz": lzma.compress(CSV)},
    "zstd": {"events.csv.zst": pa.compress(CSV, codec="zstd", asbytes=True)},
    "a zip of one table": {"events.zip": zipped("export/events.csv", CSV)},
    "a zip that a Mac has made": {"events.csv.zip": zipped("events.csv", CSV)},
    "parquet in Brotli": {"events.parquet": parquet(EVENTS, options={"compression": "brotli"})},
    "parquet with INT96": {"events.parquet": parquet(EVENTS, options=OLD)},
    "parquet of version 2": {"events.parquet": parquet(EVENTS, options={"version": "2.6", "data_page_version": "2.0"})},
    "parquet with views of strings": {"events.parquet": parquet(EVENTS, user_id=pa.string_view())},
    "parquet with nanoseconds": {"events.parquet": parquet(EVENTS, event_time=pa.timestamp("ns", "Europe/Berlin"))},
    "parquet that is not named so": {"events/part-0": parquet(EVENTS)},
    "parts without rows": {
        "events/0.parquet": parquet(EVENTS),
        "events/1.parquet": b"",
        "events/2.parquet": EMPTY.getvalue(),
    },
    "markers": {
        "events/date=2026-03-02/part-0.csv": CSV,
        "events/date=2026-03-02_$folder$": b"",
        "events/_SUCCESS": b"",
        "events/_started_123": b"{}",
        "events/_committed_123": b"{}",
        "events/manifest": b'{"entries": []}',
        "events/.part-0.csv.crc": b"\0",
        "events_$folder$": b"",
    },
    "names with colons": {"events/events_2026-03-02_16:00:00.csv": CSV},
    "the type in the folder's name": {
        f"events/event_type={kind}/part-0.csv": as_csv(rows) for kind, rows in by(EVENTS, "event_type").items()
    },
    "the type in the folder's name, of parquet": {
        f"events/event_type={kind}/part-0.parquet": parquet(rows) for kind, rows in by(EVENTS, "event_type").items()
    },
}
ITEMS_FILES: dict[str, dict[str, bytes]] = {
    "backslashes before quotes, as Spark writes them": {"items.csv": backslashed(ITEMS)},
    "decimal commas": {
        "items.csv": as_csv([r | {"price": r["price"].replace(".", ",")} for r in ITEMS], delimiter=";")
    },
    "decimal commas within quotes": {"items.csv": as_csv([r | {"price": r["price"].replace(".", ",")} for r in ITEMS])},
    "the category in the folder's name": {
        f"items/category={kind.replace(' ', '%20').replace('&', '%26')}/a.parquet": parquet(rows)
        for kind, rows in by(ITEMS, "category").items()
    },
    "parquet of 32 bits": {"items.parquet": parquet(ITEMS, price=pa.float32())},
    "JSON with keys in any order": {"items.jsonl": as_jsonl([dict(reversed(row.items())) for row in ITEMS])},
    "quotes in text of tabs": {
        "items.tsv": "".join("\t".join(r) + "\n" for r in [list(ITEMS[0]), *(list(r.values()) for r in ITEMS)]).encode()
    },
}


@pytest.mark.parametrize("files", EVENTS_FILES.values(), ids=[name.replace(" ", "_") for name in EVENTS_FILES])
def test_events_are_the_same_however_they_are_written(duck, tmp_path, files) -> None:
    rows = duck.rows(laid(tmp_path / "raw", files), "events")
    assert [row["reason"] for row in rows] == [None] * 12
    found = sorted((tuple(row[name] for name in EVENTS[0]) for row in rows), key=lambda row: row[5])
    assert found == [tuple((row | {"event_time": MICROS, "position": n}).values()) for n, row in enumerate(EVENTS)]


@pytest.mark.parametrize("files", ITEMS_FILES.values(), ids=[name.replace(" ", "_") for name in ITEMS_FILES])
def test_items_are_the_same_however_they_are_written(duck, tmp_path, files) -> None:
    rows = duck.rows(laid(tmp_path / "raw", files), "items")
    assert [(row["reason"], row["lost"]) for row in rows] == [(None, [])] * 12
    found = sorted((tuple(row[name] for name in ITEMS[0]) for row in rows), key=lambda row: row[4])
    assert found == [tuple((row | {"created_at": MICROS, "price": n + 0.5}).values()) for n, row in enumerate(ITEMS)]


@pytest.mark.parametrize(
    "files",
    [
        {"events.csv": as_csv(MANY, lineterminator="\r")},
        {"events.json": json.dumps(MANY).encode()},
        {"events/a.json": as_jsonl(MANY).replace(b"\n", b"")},
        {"events.csv": as_csv(MANY[:3000]) + as_csv(MANY[3000:], lineterminator="\r\n").split(b"\r\n", 1)[1]},
    ],
    ids=["CR", "array", "no breaks", "LF then CRLF"],
)
def test_what_is_longer_than_the_first_look_is_read_to_its_end(duck, tmp_path, files) -> None:
    rows = duck.rows(laid(tmp_path / "raw", files), "events")
    assert len(rows) == 6000
    assert {row["reason"] for row in rows} == {None}
    assert sorted(row["number"] for row in rows) == list(range(1, 6001))


def test_keys_that_the_first_rows_leave_out_are_read_in_later_ones(duck, tmp_path) -> None:
    rows = [{"item_id": f"i{n}"} | ({"price": 2.5} if n >= 1500 else {}) for n in range(1600)]
    found = duck.rows(laid(tmp_path / "raw", {"items.jsonl": as_jsonl(rows)}), "items")
    assert sum(row["price"] == 2.5 for row in found) == 100


@pytest.mark.parametrize("delimiter", ["\t", "|", ","])
def test_one_broken_line_leaves_the_quotes_of_the_others_what_they_are(duck, tmp_path, delimiter) -> None:
    text = as_csv(EVENTS, delimiter=delimiter, quoting=csv.QUOTE_ALL) + delimiter.join(["u", '"r"x"', *"abcd"]).encode()
    found = duck.rows(laid(tmp_path / "raw", {"events.csv": text}), "events")
    assert sorted(row["request_id"] for row in found if row["reason"] is None) == sorted(
        r["request_id"] for r in EVENTS
    )


def test_a_word_for_no_value_is_none_where_a_value_may_be_absent_and_an_id_where_not(duck, tmp_path) -> None:
    rows = [
        row | {"price": word, "title": "\\N"}
        for row, word in zip(ITEMS, ("\\N", "NaN", "None", "N/A", ""), strict=False)
    ]
    [*_, last] = rows
    rows[-1] = last | {"item_id": "\\N"}
    found = duck.rows(laid(tmp_path / "raw", {"items.csv": as_csv(rows)}), "items")
    assert {(row["item_id"], row["price"], row["title"], *row["lost"]) for row in found} == {
        *((f"i{n}", None, None) for n in range(4)),
        ("\\N", None, None),
    }


@pytest.mark.parametrize(
    ("prices", "read"),
    [
        (["12,99", "1.299,00", "7"], [12.99, 1299.0, 7.0]),  # commas stand before decimals
        (["12.99", "1,299.00", "7"], [12.99, None, 7.0]),
        (["12,99", "12.99"], [None, 12.99]),  # the column does not say
        (["1,299"], [None]),
        (["12,99", "1.299"], [12.99, None]),  # a thousand, or one and a bit
        (["12,99", "0.125", "1234.567"], [None, 0.125, 1234.567]),
        (["12,99", "1e3"], [None, 1000.0]),
        (["€5", "5 €", "free", "5-7", "1e39", "-5", "inf"], [None] * 7),
        (["+5", ".5", "5.", "1e3", "0", "3.4e38"], [5.0, 0.5, 5.0, 1000.0, 0.0, 3.4e38]),
    ],
)
def test_a_price_is_read_where_it_can_mean_one_thing_only_and_else_lost_and_not_its_item(
    duck, tmp_path, prices, read
) -> None:
    rows = [ITEMS[0] | {"item_id": f"i{n}", "price": price} for n, price in enumerate(prices)]
    found = duck.rows(laid(tmp_path / "raw", {"items.csv": as_csv(rows)}), "items")
    assert [row["reason"] for row in found] == [None] * len(prices)
    by_id = {row["item_id"]: (row["price"], row["lost"]) for row in found}
    assert by_id == {f"i{n}": (price, [] if price is not None else ["bad_price"]) for n, price in enumerate(read)}


def laid(raw: Path, files: Mapping[str, bytes]) -> Path:
    for path, content in files.items():
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        (raw / path).write_bytes(content)
    return raw
