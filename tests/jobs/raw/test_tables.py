"""The raw tables are read alike from every format, and what cannot be used is kept aside with the oracle's reason."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.raw.folder import RawTableMissing, RawTableUnusable, source, table_files
from jobs.raw.identity import table_digest
from jobs.rules import events as logic
from jobs.rules import items as catalogue

AT = datetime(2024, 3, 1, 12, 0, 0, 5, tzinfo=UTC)
NOW = datetime(2024, 3, 2, 0, 0, 0, 5, tzinfo=UTC)
GOOD = {
    "user_id": "u",
    "item_id": "i",
    "event_time": "2024-03-01T12:00:00Z",
    "event_type": "impression",
    "request_id": "r",
    "position": "0",
}
TIMES = [
    *("2024-03-01T12:00:00Z", "2024-03-01 12:00:00.123456789+05:30", "2024-03-01T12:00+0100", "2024-03-01T12:00:00"),
    *("2024-02-30T12:00:00Z", "2024-03-01", "2024-03-01T25:00:00Z", "yesterday", "1709294400", "", " ", None),
    *("2024-03-01T13:00:00+01:00[Europe/Berlin]", "2024-03-01T12:00:00Z[UTC]", "2024-03-01 13:00:00 +0100 CET"),
    *("2024-03-01T12:00:00[UTC]", "2024-03-01T12:00:00Z[]", "2024-03-01 12:00:00 CET", "02/Mar/2024:12:00:00 +0000"),
    *("2024-03-01T12:00:00Z\n", "2024-03-01T12:00:00 UTC", "2024-03-01T12:00:00+15:00"),
    *(
        "2024-03-02T01:00:00.000004Z",
        "2024-03-02T01:00:00.000005Z",
        "2024-03-02T01:00:00.000004999Z",
        "2199-01-01T00:00Z",
    ),
]
POSITIONS = ["0", "3.0", "7.", "-1", "1.5", "1e3", "12345678", "x", "", " ", None]
TYPES = ["impression", "click", "cart", "purchase", "Click", "", None]
KEYS = ["u", "", "  ", "\t", None, 'ü, "quoted"\nand broken']
EVENTS = [
    *(GOOD | {"event_time": time, "request_id": f"t{n}"} for n, time in enumerate(TIMES)),
    *(
        GOOD | {"position": position, "event_type": kind, "request_id": f"p{n}"}
        for n, (position, kind) in enumerate(product(POSITIONS, TYPES))
    ),
    *(GOOD | {"request_id": f"k{n}", name: key} for n, (name, key) in enumerate(product(("user_id", "item_id"), KEYS))),
    *(GOOD | {"request_id": key} for key in KEYS),
]
ITEMS = [
    {
        "item_id": f"i{n}",
        "image_uri": "a.png",
        "category": "c",
        "title": 'say "x",\ny',
        "price": price,
        "created_at": at,
    }
    for n, (price, at) in enumerate(
        product(
            ["1", "2.50", "1e2", " 3 ", "nan", "NaN", "", None, "-1", "inf", "Infinity", "free", "1,5", "0x1", "1d"],
            ["2024-03-01T12:00:00Z", "2024-03-01T12:00:00", "soon", "", None],
        )
    )
]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    schema = pa.schema([(name, pa.string()) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


def reasons(rows: Sequence[Mapping[str, Any]]) -> Counter[str | None]:
    return Counter(row["reason"] for row in rows)


@pytest.mark.parametrize("written_as", sorted(WRITERS))
def test_events_are_judged_as_plain_python_judges_them(engine, tmp_path, written_as) -> None:
    WRITERS[written_as](tmp_path / f"events.{written_as}", EVENTS)
    read = engine.rows(tmp_path, "events", NOW)
    assert reasons(read) == Counter(logic.reject_reason(row, NOW) for row in EVENTS)
    plain = [logic.event(row, NOW) for row in EVENTS if not logic.reject_reason(row, NOW)]
    accepted = {
        (row["user_id"], row["item_id"], row["event_time"], row["event_type"], row["request_id"], row["position"])
        for row in read
        if row["reason"] is None
    }
    assert accepted == {
        (one.user_id, one.item_id, micros(one.event_time), one.event_type, one.request_id, one.position)
        for one in plain
    }


def micros(at: datetime) -> int:
    return int(at.replace(microsecond=0).timestamp()) * 10**6 + at.microsecond


UPDATES = ["2024-03-01T12:00:00Z", "2024-03-01T13:00:00+01:00", "2024-03-01T12:00:00.000001Z", "soon", "", None]


@pytest.mark.parametrize("written_as", sorted(WRITERS))
def test_the_last_of_an_items_rows_is_kept_and_the_earlier_ones_are_its_history(engine, tmp_path, written_as) -> None:
    rows = [
        {"item_id": f"i{n % 8}", "image_uri": "a.png", "price": str(n % 3), "updated_at": UPDATES[n * n % 41 % 6]}
        for n in range(80)
    ]
    WRITERS[written_as](tmp_path / f"items.{written_as}", rows)
    read = engine.rows(tmp_path, "items")
    kept, rejected = catalogue.accept(rows)
    assert {reason for _, reason in rejected} == {catalogue.DUPLICATE_ITEM_ID, catalogue.SUPERSEDED}
    assert reasons(read) == Counter(reason for _, reason in rejected) + Counter({None: len(kept)})
    found = {(row["item_id"], row["price"], row["updated_at"]) for row in read if row["reason"] is None}
    assert found == {(one.item_id, one.price, one.updated_at and micros(one.updated_at)) for one in kept}
    history = Counter(
        (row["item_id"], row["price"], row["updated_at"]) for row in read if row["reason"] == "superseded"
    )
    plain = [catalogue.item(row) for row, reason in rejected if reason == "superseded"]
    assert history == Counter((one.item_id, one.price, one.updated_at and micros(one.updated_at)) for one in plain)


@pytest.mark.parametrize("written_as", sorted(WRITERS))
def test_items_are_judged_as_plain_python_judges_them(engine, tmp_path, written_as) -> None:
    rows = [*ITEMS, ITEMS[0] | {"title": "again"}, ITEMS[0] | {"item_id": " "}]
    WRITERS[written_as](tmp_path / f"items.{written_as}", rows)
    read = engine.rows(tmp_path, "items")
    kept, rejected = catalogue.accept(rows)
    assert reasons(read) == Counter(reason for _, reason in rejected) + Counter({None: len(kept)})
    prices = {row["item_id"]: row["price"] for row in read if row["reason"] is None}
    assert prices == {item.item_id: item.price for item in kept}


def test_a_rejected_row_is_kept_as_it_was_read(engine, tmp_path) -> None:
    write_csv(tmp_path / "events.csv", [GOOD | {"event_time": "soon", "position": ""}])
    [row] = engine.rows(tmp_path, "events", NOW)
    assert json.loads(row["row"]) == GOOD | {"event_time": "soon", "position": None}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("events.csv", ",".join(GOOD) + "\nu,i,2024-03-01T12:00:00Z,click,r,,one too many\nu,i\n"),
        ("events.jsonl", json.dumps(GOOD) + '\n{"user_id": "u", \n'),
    ],
)
def test_a_broken_line_is_rejected_and_kept(engine, tmp_path, name, text) -> None:
    (tmp_path / name).write_text(text)
    broken = [row for row in engine.rows(tmp_path, "events", NOW) if row["reason"] == "bad_row"]
    assert broken
    assert all("u" in json.loads(row["row"])["_corrupt_record"] for row in broken)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parquet_moments_of_every_unit_are_read(engine, tmp_path, unit) -> None:
    at = pa.array([AT.replace(microsecond=0)], pa.timestamp(unit, tz="Europe/Berlin"))
    columns = {name: pa.array([value]) for name, value in GOOD.items()} | {"event_time": at}
    pq.write_table(
        pa.table(columns | {"user_id": pa.array([7]), "position": pa.array([2.0])}), tmp_path / "events.parquet"
    )
    [row] = engine.rows(tmp_path, "events", NOW)
    assert (row["user_id"], row["event_time"], row["position"]) == ("7", micros(AT) - 5, 2)


def test_nanoseconds_are_cut_off_downwards_before_1970_too(engine, tmp_path) -> None:
    at = pa.array([1999, -1], pa.timestamp("ns", tz="UTC"))
    columns = {name: pa.array([value] * 2) for name, value in GOOD.items()} | {"event_time": at}
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    assert sorted(row["event_time"] for row in engine.rows(tmp_path, "events", NOW)) == [-1, 1]


def test_a_folder_may_mix_the_order_of_columns_and_the_units_of_time(engine, tmp_path) -> None:
    write_csv(tmp_path / "events" / "a.csv", [GOOD], list(GOOD))
    write_csv(tmp_path / "events" / "b.csv", [GOOD | {"request_id": "s"}], sorted(GOOD))
    assert sorted(row["request_id"] for row in engine.rows(tmp_path, "events", NOW)) == ["r", "s"]
    (tmp_path / "other" / "events").mkdir(parents=True)
    for unit in ("ms", "ns"):
        at = pa.array([AT.replace(microsecond=0)], pa.timestamp(unit, tz="UTC"))
        columns = {name: pa.array([value]) for name, value in GOOD.items()} | {"event_time": at}
        pq.write_table(pa.table(columns), tmp_path / "other" / "events" / f"{unit}.parquet")
    assert {row["event_time"] for row in engine.rows(tmp_path / "other", "events", NOW)} == {micros(AT) - 5}


def test_a_folder_whose_name_looks_like_a_pattern_is_read(engine, tmp_path) -> None:
    raw = tmp_path / "a [b]{c}* d=1"
    raw.mkdir()
    write_parquet(raw / "events.parquet", [GOOD])
    assert len(engine.rows(raw, "events", NOW)) == 1


# --- tables that cannot be used at all ------------------------------------------------------------------------------


def parquet_with(**changed: pa.Array) -> pa.Table:
    return pa.table({name: pa.array([value]) for name, value in GOOD.items()} | changed)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (parquet_with(event_time=pa.array([AT], pa.timestamp("us"))), "event_time has no time zone"),
        (parquet_with().drop_columns(["request_id"]), "has no column request_id"),
        (parquet_with(user_id=pa.array([1.5])), "user_id is double, not text"),
        (parquet_with(position=pa.array([True])), "position is bool, not a whole number"),
        (parquet_with(event_time=pa.array([1709294400])), "event_time is int64, not a timestamp"),
    ],
)
def test_a_parquet_table_of_wrong_columns_is_refused_by_file_and_column(engine, tmp_path, table, said) -> None:
    pq.write_table(table, tmp_path / "events.parquet")
    with pytest.raises(RawTableUnusable, match=rf"events\.parquet.*{said}"):
        engine.rows(tmp_path, "events", NOW)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("events.parquet", b"not parquet", "not a readable parquet file"),
        ("events.csv", b"user_id,item_id\n", "has no column event_time"),
        ("events.csv", b"", "holds no rows"),
        ("events.csv", "ü\n".encode("utf-16"), "has no column user_id"),
        ("events.jsonl", b'{"user_id": "u"}\n', "has no column item_id"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused_in_one_sentence(engine, tmp_path, name, content, said) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RawTableUnusable, match=said):
        engine.rows(tmp_path, "events", NOW)


def test_a_table_is_a_file_or_a_folder_of_files_and_markers_are_not_data(tmp_path) -> None:
    write_csv(tmp_path / "events" / "b.csv", [GOOD])
    write_csv(tmp_path / "events" / "day=1" / "a.csv", [GOOD])
    for marker in ("_SUCCESS", ".b.csv.crc"):
        (tmp_path / "events" / marker).touch()
    table = table_files(tmp_path, "events")
    assert table.format == "csv"
    assert [file.name for file in table.files] == ["b.csv", "a.csv"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "holds no table events"),
        (["events.csv", "events.parquet"], "more than once"),
        (["events/a.csv", "events/b.jsonl"], "two formats"),
        (["events/_SUCCESS"], "holds no files"),
    ],
)
def test_a_table_that_is_not_there_once_is_refused(tmp_path, names, said) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(RawTableUnusable, match=said):
        table_files(tmp_path, "events")


def test_a_raw_folder_that_is_not_there_is_said(tmp_path) -> None:
    for ask in (lambda raw: table_digest(raw, "items"), lambda raw: table_files(raw, "events")):
        with pytest.raises(RawTableMissing, match="is not a folder"):
            ask(tmp_path / "nowhere")


def test_what_a_raw_folder_says_of_itself_is_optional_but_must_be_json(tmp_path) -> None:
    assert source(tmp_path) == {}
    (tmp_path / "SOURCE.json").write_text("{")
    with pytest.raises(RawTableUnusable, match=r"SOURCE\.json is not JSON"):
        source(tmp_path)
