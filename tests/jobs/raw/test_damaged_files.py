"""Files that prove damaged while they are read are named or cost what is damaged, and odd pieces are judged alike."""

import io
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_files import ITEM, Case, as_csv, items, zipped
from raw_readers import Beam, DuckDB, Spark

from jobs.raw.folder import RawTableUnusable
from jobs.rules import items as catalogue


def test_a_quote_that_nothing_closes_costs_no_row_in_silence(engine, tmp_path) -> None:
    for first in (b'"i9,i.png,shoe,x,1,\n', b'i9,i.png,shoe,x,1,"\n'):
        raw = Case("items", {"items.csv": as_csv(items(3)) + first + b"j,,,,,\nk,,,,,\n"}).lay(tmp_path / "raw")
        [broken] = [row for row in engine.rows(raw, "items") if row["reason"]]
        assert broken["reason"] == "bad_row"
        assert "k,,,,," in broken["row"]
        with pytest.raises(RawTableUnusable, match=r"items\.csv, after line 4: .*unclosed quote$"):
            Beam().rows(raw, "items")


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
def test_a_file_that_proves_damaged_halfway_is_named_with_its_cure(engine, tmp_path, name, content) -> None:
    raw = Case("items", {name: content()}).lay(tmp_path / "a raw folder")
    with pytest.raises(
        RawTableUnusable, match=rf"a raw folder/{name} is (damaged or cut|cut short or damaged).* write it again$"
    ):
        engine.rows(raw, "items")
    with pytest.raises(RawTableUnusable, match=rf"{name} is .*(cut short|damaged).*: write it again$"):
        Beam().rows(raw, "items")


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


# What DuckDB's own parser takes otherwise than Python does.
ODDER_PIECES = {
    "csv": ["\r", "\0", "é"],
    "jsonl": [
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
    ],
}


@pytest.mark.parametrize(
    ("form", "head", "pieces"),
    [("csv", "item_id,image_uri\nok,ok\n", CSV_PIECES), ("jsonl", '{"item_id":"ok"}\n' * 30, JSON_PIECES)],
)
def test_files_of_odd_pieces_are_judged_alike_row_by_row(engine, tmp_path, form, head, pieces) -> None:
    from jobs.raw import beam_rows as raw_rows

    rng = random.Random(0)
    pieces = pieces + ODDER_PIECES[form] if isinstance(engine, DuckDB) else pieces
    names = [f"{n}.{form}" for n in range(150)]
    texts = {f"items/{name}": head + "".join(rng.choices(pieces, k=rng.randrange(25))) for name in names}
    raw = Case("items", {path: text.encode() for path, text in texts.items()}).lay(tmp_path / "raw")
    judged: dict[str, list[Any]] = {name: [] for name in names}
    for name, reason, item_id in engine.alone(raw, "items"):
        judged[name].append((reason, None if reason else item_id))
    compared = 0
    for name in names:
        try:
            rows = list(raw_rows.rows(form, raw / "items" / name))
        except RawTableUnusable:  # an unclosed quote
            assert form == "csv"
            continue
        reasons = [catalogue.BAD_ROW if isinstance(row, str) else catalogue.reject_reason(row) for row in rows]
        ids = [None if reason else str(row["item_id"]) for reason, row in zip(reasons, rows, strict=True)]
        found, expected = judged[name], list(zip(reasons, ids, strict=True))
        if form == "csv" and isinstance(engine, Spark):  # after a closing quote in a cell, it keeps other quotes
            found, expected = [(reason, None) for reason, _ in found], [(reason, None) for reason in reasons]
        assert sorted(found, key=repr) == sorted(expected, key=repr), texts[f"items/{name}"]
        compared += 1
    assert compared > 90
