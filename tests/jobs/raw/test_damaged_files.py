"""Files that prove damaged while they are read are named or cost what is damaged, and odd pieces are judged alike."""

import csv
import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plain_rows import rows as plain_rows
from raw_files import ITEM, Case, as_csv, items, zipped

from jobs.raw import csv_files, ingest_file
from jobs.raw.canonical import CanonicalTable
from jobs.raw.folder import RawTableUnusable
from jobs.rules import items as catalogue


@pytest.mark.parametrize("first", ['"i9,i.png,shoe,x,1,', 'i9,i.png,shoe,x,1,"', 'i9,"i.png,shoe,x,1,'])
def test_a_quote_that_nothing_closes_costs_its_own_row_and_no_other(duck, tmp_path, first) -> None:
    rest = "".join(f"j{n},,,,,\n" for n in range(500)) + 'k,,,"a, b",,\nl,,,"c\nd",,\n,,,,,\n'
    text = as_csv(items(3)) + f"{first}\n{rest}".encode()
    rows = duck.rows(Case("items", {"items.csv": text}).lay(tmp_path / "raw"), "items")
    [broken] = [row for row in rows if row["reason"] == "bad_row"]
    assert json.loads(broken["row"]) == {"_corrupt_record": first}
    assert broken["number"] == 4
    numbers = {row["item_id"]: row["number"] for row in rows if row["reason"] is None}
    assert numbers == {f"i{n}": n + 1 for n in range(3)} | {f"j{n}": n + 5 for n in range(500)} | {"k": 505, "l": 506}
    assert [(row["reason"], row["number"]) for row in rows if row["reason"] == "null_item_id"] == [
        ("null_item_id", 507)
    ]


@pytest.mark.parametrize("odd", ['5\\" screen, big', '\\"', "a\\\\", 'He said \\"hi\\", ok'])
def test_a_backslash_before_a_quote_is_read_as_spark_and_mysql_write_it(duck, tmp_path, odd) -> None:
    text = as_csv(items(3)) + f'x,i.png,shoe,"{odd}",1,\ny,i.png,shoe,"a, b",1,\n'.encode()
    rows = duck.rows(Case("items", {"items.csv": text}).lay(tmp_path / "raw"), "items")
    titles = {row["item_id"]: row["title"] for row in rows}
    assert [row["reason"] for row in rows] == [None] * 5
    written = odd.replace('\\"', '"')  # two backslashes alone are what any CSV may hold
    assert titles == {"i0": "Schön", "i1": "Schön", "i2": "Schön", "x": written, "y": "a, b"}


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
def test_a_file_that_proves_damaged_halfway_is_named_with_its_cure(duck, tmp_path, name, content) -> None:
    raw = Case("items", {name: content()}).lay(tmp_path / "a raw folder")
    with pytest.raises(RawTableUnusable, match=rf"a raw folder/{name} is .*(cut short|damaged).*: write it again$"):
        duck.rows(raw, "items")


def test_spark_names_a_file_of_a_users_own_that_proves_damaged(spark, tmp_path) -> None:
    from jobs.raw.spark_tables import damage_named, read_items

    raw = Case("items", {"items.parquet": damaged_parquet()}).lay(tmp_path / "raw")
    table = CanonicalTable(
        name="items",
        path=raw / "items.parquet",
        files=(raw / "items.parquet",),
        kinds=dict.fromkeys(ITEM, "string") | dict.fromkeys(("price", "created_at", "updated_at"), "absent"),
        rows=20_000,
    )
    with (
        pytest.raises(RawTableUnusable, match=r"items\.parquet is damaged or cut short.*: write it again$"),
        damage_named(),
    ):
        read_items(spark, table).collect()


CELLS = ["", "a", " b ", 'say "x"', "x,y", "é", "\t", "\\", "'", "#", "0"]
BROKEN = ['"a"b,c', "a,b,c", "one", 'a,"open', '"open,b', '"a" ,"b"c', "  "]  # none has a line break


def test_rows_between_broken_lines_are_read_and_each_broken_line_is_counted(duck, tmp_path) -> None:
    rng = random.Random(0)
    files: dict[str, bytes] = {}
    expected: list[tuple[str, int, str | None, str | None]] = []
    for n in range(60):
        stream = io.StringIO(newline="")
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["item_id", "image_uri"])
        for number in range(1, rng.randrange(2, 40)):
            if rng.random() < 0.1:
                stream.write(rng.choice(BROKEN) + "\n")
                expected.append((f"items/{n}.csv", number, "bad_row", None))
            else:
                row = [f"i{n}-{number}", rng.choice(CELLS)]
                writer.writerow(row)
                expected.append((f"items/{n}.csv", number, None, row[1] if row[1].strip() else None))
        files[f"items/{n}.csv"] = stream.getvalue().encode()
    rows = duck.rows(Case("items", files).lay(tmp_path / "raw"), "items")
    assert sorted((row["file"], row["number"], row["reason"], row["image_uri"]) for row in rows) == sorted(expected)


def test_a_file_of_too_many_broken_lines_is_refused_and_says_the_first(duck, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(csv_files, "MOST_BROKEN", 20)
    monkeypatch.setattr(ingest_file, "MOST_BROKEN", 20)
    text = as_csv(items(3)) + b"only one\n" * 19
    rows = duck.rows(Case("items", {"items.csv": text}).lay(tmp_path / "few"), "items")
    assert sum(row["reason"] == "bad_row" for row in rows) == 19
    for number, line in enumerate((b"only one\n", b'"a"b,c\n')):
        raw = Case("items", {"items.csv": text + line}).lay(tmp_path / f"many{number}")
        with pytest.raises(RawTableUnusable, match=r"has 20 lines or more that are no rows, .* row 4 \('only one'\)"):
            duck.rows(raw, "items")


def test_several_objects_a_line_are_rows_beside_a_line_that_is_damaged(duck, tmp_path) -> None:
    text = b'{"item_id": "a"} {"item_id": "b"}\n{"item_id": "c", \n{"item_id": "d"}{"item_id": "e"}\n'
    text += b'{"item_id": "f", "title": "} {"}\n{"item_id": "g"} {"item_id": \n'
    rows = duck.rows(Case("items", {"items.jsonl": text}).lay(tmp_path / "raw"), "items")
    found = [(row["number"], row["item_id"], row["reason"]) for row in sorted(rows, key=lambda row: row["number"])]
    assert found == [
        (1, "a", None),
        (2, "b", None),
        (3, None, "bad_row"),
        (4, "d", None),
        (5, "e", None),
        (6, "f", None),
        (7, None, "bad_row"),
    ]


def test_what_is_damaged_in_utf16_costs_its_own_rows(duck, tmp_path) -> None:
    lines = [line.encode("utf-16-le") for line in as_csv(items()).decode().splitlines(keepends=True)]
    text = b"\xff\xfe" + b"".join(lines) + b"\x00\xd8" + lines[1] + b"\n"  # half a pair, and half a letter
    rows = duck.rows(Case("items", {"items.csv": text}).lay(tmp_path / "raw"), "items")
    reasons = [row["reason"] for row in sorted(rows, key=lambda row: row["number"])]
    assert reasons == [*[None] * 30, "bad_encoding", "bad_row"]


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


# What DuckDB's own parser takes otherwise than Python does.
ODDER_PIECES = [
    *(
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"\\\\ud800"',
        '"\\\\\\ud800"',
        '{"item_id":"\\ud800 \\u00e9"}\n',
        "\x01",
        "\r",
    ),
    *("Infinity", "-Infinity", "nan", "-NaN", "inf", "1e400", "-1e400", "1E5", "1.0", "-0.0", "12345678.9"),
    *(",}", '{"item_id":[1,]}\n', '{"item_id":"nan,}"}\n', '{"item_id":"a\\"b,}"}\n', '{"\\u0069tem_id":"k"}\n'),
    *('"item_id":"z",', '{"item_id":"p","item_id":"q"}\n', '{"item_id":3,"item_id":null}\n'),
]


def test_lines_of_odd_pieces_of_json_are_judged_as_plain_python_judges_them(duck, tmp_path) -> None:
    rng = random.Random(0)
    head = '{"item_id":"ok"}\n' * 30
    names = [f"{n}.jsonl" for n in range(150)]
    pieces = JSON_PIECES + ODDER_PIECES
    texts = {f"items/{name}": head + "".join(rng.choices(pieces, k=rng.randrange(25))) for name in names}
    raw = Case("items", {path: text.encode() for path, text in texts.items()}).lay(tmp_path / "raw")
    judged: dict[str, list[Any]] = {path: [] for path in texts}
    for row in duck.rows(raw, "items"):
        again = row["reason"] == catalogue.DUPLICATE_ITEM_ID
        reason = None if again else row["reason"]
        item_id = json.loads(row["row"])["item_id"] if again else row["item_id"]
        judged[row["file"]].append((reason, None if reason else item_id))
    for path, text in texts.items():
        rows = list(plain_rows(raw / path))
        reasons = [catalogue.BAD_ROW if isinstance(row, str) else catalogue.reject_reason(row) for row in rows]
        ids = [None if reason else str(row["item_id"]) for reason, row in zip(reasons, rows, strict=True)]
        assert sorted(judged[path], key=repr) == sorted(zip(reasons, ids, strict=True), key=repr), text
