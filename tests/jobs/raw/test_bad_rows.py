"""Bad rows of raw tables are counted by reason and kept as they were, alike for DuckDB, Spark and plain Python."""

from collections import Counter
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from raw_files import (
    AT,
    EVENT,
    HUGE,
    ITEM,
    Case,
    as_csv,
    as_jsonl,
    as_parquet,
    counted,
    events,
    items,
    moments,
    noise,
    strewn,
    without,
    zipped,
)
from raw_readers import NAMES, DuckDB, Rows, Spark, accepted_items, ingested

from jobs.engines.duckdb_session import connect

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
        {"items.csv": as_csv(items(3)) + b"a,b\na,b,c,d,1,,x\na,b,c,d,1,,\n  \n"},
        counted=counted(4, bad_row=3),
    ),
    Case(
        "items in JSON that is more or less than an object",
        {
            "items.jsonl": as_jsonl(items(3))
            + b'{"item_id": "x"}{"item_id": "y"}\n{"item_id": "x"} y\n{"item_id": "x"}, {"item_id": "y"}\n'
            + b'[{"item_id": "x"}]\n[1]\nnull\n"x"\n7\n{"item_id": "x"\n{"item_id": "x"}}\n'
            + b'{\'item_id\': \'x\'}\n{"item_id": "x\ty"}\n{"item_id": "x",}\n'
        },
        counted=counted(5, bad_row=12),
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
        counted=counted(17),
        lost={"bad_price": 8},
    ),
    Case(
        "items with an infinite price in parquet",
        {"items.parquet": as_parquet(ITEM, price=pa.array([float("inf")]))},
        counted=counted(1),
        lost={"bad_price": 1},
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
        counted=counted(11),
        lost={"bad_created_at": 7},
    ),
    Case(
        "items of no time of ours in parquet",
        {
            f"items/{n}.parquet": as_parquet(ITEM | {"item_id": f"i{n}"}, created_at=moments("us", at))
            for n, at in enumerate([2**62, 253402300799 * 10**6, -62135596800 * 10**6, 0])
        },
        counted=counted(4),
        lost={"bad_created_at": 3},
    ),
    Case(
        "items that repeat each other",
        {
            "items/a.csv": as_csv(
                [ITEM | {"title": title, "price": price} for title in ("b", "", "Ä", "\U0001f600") for price in "29"]
            ),
            "items/b.csv": as_csv([ITEM | {"title": "a", "price": price} for price in ("3", "10", "", "-1")]),
        },
        counted=counted(1, duplicate_item_id=11),
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

CASES = [pytest.param(case, id=case.name.replace(" ", "_")) for case in COUNTED]


@pytest.fixture(scope="module")
def raws(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """A raw folder for each case, and its table."""
    folder = tmp_path_factory.mktemp("raw")
    return {case.name: (case.lay(folder / f"{number} {case.table}"), case.table) for number, case in enumerate(COUNTED)}


@pytest.fixture(scope="module")
def by_duckdb(raws, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    with connect(tmp_path_factory.mktemp("duckdb") / "spill") as connection:
        return DuckDB(connection).rows_of(raws)


@pytest.fixture(scope="module")
def by_spark(raws, spark) -> dict[str, Rows]:
    return Spark(spark).rows_of(raws)


@pytest.fixture(params=["duckdb", "spark"])
def read(request: pytest.FixtureRequest) -> dict[str, Rows]:
    """The rows of each case, as one engine or the other reads them."""
    return request.getfixturevalue(f"by_{request.param}")


@pytest.mark.parametrize("case", CASES)
def test_bad_rows_are_counted_by_reason_and_kept(read, case) -> None:
    rows = read[case.name]
    lost = Counter(reason for row in rows if not row["reason"] for reason in row.get("lost", ()))
    assert lost == Counter(case.lost or {})
    assert Counter(row["reason"] for row in rows) == Counter(case.counted)
    assert all((row["reason"] is None) == (row["row"] is None) for row in rows)


@pytest.mark.parametrize("case", [case for case in CASES if case.values[0].table == "items"])
def test_items_are_those_that_plain_python_accepts(read, raws, case) -> None:
    accepted, reasons = accepted_items(raws[case.name][0])
    assert ({None: len(accepted)} if accepted else {}) | reasons == case.counted
    found = [tuple(row[name] for name in NAMES) for row in read[case.name] if not row["reason"]]
    assert sorted(found, key=repr) == sorted(accepted, key=repr)


@pytest.mark.parametrize("case", CASES)
def test_duckdb_and_spark_keep_the_same_rows_as_the_same_json(by_duckdb, by_spark, case) -> None:
    one, other = (
        sorted((row["reason"], row["row"]) for row in read[case.name] if row["reason"])
        for read in (by_duckdb, by_spark)
    )
    assert one == other


def test_what_is_accepted_and_rejected_makes_up_what_was_read(engine, tmp_path) -> None:
    files = {"events.jsonl": as_jsonl(events(50)) + b"\n{\n", "items.csv": as_csv(items(40)) + b"\na\n\n,,,,,\n"}
    raw = Case("both tables", files).lay(tmp_path / "raw")
    for table, count in (("events", 51), ("items", 42)):
        assert len(engine.rows(raw, table)) == ingested(raw, table).rows == count
