"""The coverage report: its figures by hand, its pictures, and nothing in it that a stranger must not read or run."""

import json
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
from PIL import Image

from jobs.images import coverage
from jobs.images.coverage import CoverageWrong, tell_lost, write_coverage
from jobs.rules.items import SENTENCES, STATUS_OF, STATUSES
from model.courier.data import images

ITEMS = pa.schema(
    [(name, pa.string()) for name in coverage.COLUMNS]
    + [("width", pa.int32()), ("height", pa.int32()), ("mode", pa.string()), ("frames", pa.int32())]
    + [("near_duplicate_of", pa.string()), ("stale", pa.string())]
)
PLACEHOLDERS = pa.schema(
    [*coverage.PICTURE, ("items", pa.int64()), ("categories", pa.list_(pa.string())), ("first_item_id", pa.string())]
)


def png(seed, side=16):
    return images.to_png(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)))


def write_folder(folder, rows, rejected=(), pictures=(), placeholders=(), read=None, schema=ITEMS):
    """An images artifact's tables. rows: dicts with item_id and what differs from a usable picture of its own."""
    filled = []
    for row in sorted(rows, key=lambda row: row["item_id"]):
        reason = row.get("reason", "")
        usable = {"image_id": f"p{row['item_id']}", "width": 30, "height": 40, "mode": "RGB", "frames": 1}
        status = {"status": STATUS_OF[reason], "reason": reason, "image_uri": f"images/{row['item_id']}.jpg"}
        filled.append(({} if reason else usable) | status | row)
    (folder / "shards").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(filled, schema), folder / "items.parquet")
    kinds = pa.schema([("row", pa.string()), ("reason", pa.string())])
    pq.write_table(pa.Table.from_pylist(list(rejected), kinds), folder / "rejected.parquet")
    for shard in range(2):
        held = sorted(set(pictures))[shard::2]
        table = {"image_id": pa.array(held, pa.string()), "image": pa.array([png(len(n)) for n in held], pa.binary())}
        pq.write_table(pa.table(table), folder / "shards" / f"images-{shard:05d}-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(list(placeholders), PLACEHOLDERS), folder / "placeholders.parquet")
    if read is not None:
        (folder / "read.json").write_text(json.dumps({"items_read": read}), "utf-8")
    return folder


@pytest.fixture
def shop(tmp_path):
    """Ten items by hand: six usable, of which b is a as well, d nearly c, f nearly e; and four that are not."""
    rows = [
        {"item_id": "a", "category": "shoe"},
        {"item_id": "b", "category": "hat", "image_id": "pa", "duplicate_of": "a"},
        {"item_id": "c", "category": "hat", "mode": "CMYK", "width": 10},
        {"item_id": "d", "category": "hat", "near_duplicate_of": "c", "frames": 9},
        {"item_id": "e", "width": 90, "stale": "timed_out", "image_uri": "https://CDN.test/e.jpg"},
        {"item_id": "f", "near_duplicate_of": "c", "image_uri": "https://cdn.TEST/f.jpg"},
        {"item_id": "g", "category": "hat", "reason": "not_found"},
        {"item_id": "h", "category": "shoe", "reason": "no_reference", "image_uri": None},
        {"item_id": "i", "category": "shoe", "reason": "shared_by_many", "image_uri": "S3://Bucket/i.jpg"},
        {"item_id": "j", "category": "shoe", "reason": "not_found", "image_uri": "file:///x/j.jpg"},
    ]
    rejected = [{"row": '{"item_id": null}', "reason": "null_item_id"}] * 2
    shared = [
        {"image_id": "none", "image": png(9), "items": 7, "categories": ["bag", "hat", "shoe"], "first_item_id": "i"}
    ]
    pictures = [f"p{name}" for name in "acdef"]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "near_duplicates.json").write_text('{"not_compared": 1234}', "utf-8")
    return write_folder(tmp_path / "images", rows, rejected, pictures, shared, read=12)


def test_the_figures_are_those_counted_by_hand(shop):
    found = write_coverage(shop)
    assert found == json.loads((shop / "coverage.json").read_text("utf-8"))
    assert found["rows"] == {"read": 12, "accepted": 10, "rejected": 2}
    assert found["by_status"] == {"ok": 6, "missing": 3, "broken": 0, "placeholder": 1, "refused": 0}
    assert list(found["by_reason"].items()) == [("not_found", 2), ("no_reference", 1), ("shared_by_many", 1)]
    assert found["rejected_by_reason"] == {"null_item_id": 2}
    assert found["by_category"] == {
        "values": 3,
        "lines": [
            {"name": "hat", "items": 4, "ok": 3, "missing": 1},
            {"name": "shoe", "items": 4, "ok": 1, "missing": 2, "placeholder": 1},
            {"name": None, "items": 2, "ok": 2},
        ],
    }
    assert found["reasons_by_category"] == {
        "values": 2,
        "lines": [
            {"name": "shoe", "items": 3, "no_reference": 1, "not_found": 1, "shared_by_many": 1},
            {"name": "hat", "items": 1, "not_found": 1},
        ],
    }
    assert found["stale_by_reason"] == {"timed_out": 1}
    assert found["by_source"]["lines"] == [
        {"name": "relative path", "items": 5, "ok": 4, "missing": 1},
        {"name": "https://cdn.test", "items": 2, "ok": 2},
        {"name": "file://", "items": 1, "missing": 1},
        {"name": "no reference", "items": 1, "missing": 1},
        {"name": "s3://bucket", "items": 1, "placeholder": 1},
    ]
    assert found["pictures"] == {
        "distinct": 5,
        "exact_duplicates": 1,
        "near_duplicates": 2,
        "near_groups": 1,
        "near_not_compared": 1234,
        "modes": {"RGB": 4, "CMYK": 1},
        "animated": 1,
        "width": {"smallest": 10, "median": 30, "largest": 90},
        "height": {"smallest": 40, "median": 40, "largest": 40},
    }
    [group] = found["near_duplicate_groups"]
    assert (group["first_item_id"], group["items"], group["pictures"]) == ("c", 3, 3)
    assert found["placeholders"] == [{"image_id": "none", "items": 7, "categories": 3}]
    assert found["examples"]["not_found"] == [
        {"item_id": "g", "image_uri": "images/g.jpg"},
        {"item_id": "j", "image_uri": "file:///x/j.jpg"},
    ]


def test_every_division_of_the_items_adds_up(shop):
    found = write_coverage(shop)
    accepted = found["rows"]["accepted"]
    assert sum(found["by_status"].values()) == accepted
    assert found["by_status"]["ok"] + sum(found["by_reason"].values()) == accepted
    for table in (found["by_category"], found["by_source"]):
        assert sum(line["items"] for line in table["lines"]) == accepted
        assert all(sum(line.get(status, 0) for status in STATUSES) == line["items"] for line in table["lines"])


def test_a_reason_is_told_in_a_sentence_by_category_and_with_the_picture_where_there_is_one(shop):
    found = write_coverage(shop)
    assert set(SENTENCES) == set(STATUS_OF) - {""}
    assert found["examples"]["shared_by_many"] == [
        {"item_id": "i", "image_uri": "S3://Bucket/i.jpg", "image_id": "none"}
    ]
    words = " ".join(" ".join(Page((shop / "coverage.html").read_text("utf-8")).texts).split())
    for told in (*(SENTENCES[reason] for reason in found["by_reason"]), "1 timed_out: " + SENTENCES["timed_out"]):
        assert told in words
    assert "Category not usable not_found no_reference shared_by_many shoe 3 1 1 1 hat 1 1" in words
    assert "1,234 pairs of pictures" in words


def test_each_reason_is_logged_once_with_its_cure_and_an_example(shop, tmp_path):
    found = write_coverage(shop)
    with structlog.testing.capture_logs() as told:
        tell_lost(found)
    lost = {"event": "pictures_lost", "log_level": "warning", "of": 10}
    assert told == [
        lost | {"reason": "not_found", "items": 2, "why": SENTENCES["not_found"], "example": "images/g.jpg"},
        lost | {"reason": "no_reference", "items": 1, "why": SENTENCES["no_reference"]},
        lost
        | {"reason": "shared_by_many", "items": 1, "why": SENTENCES["shared_by_many"]}
        | {"example": "S3://Bucket/i.jpg"},
    ]
    rows = [{"item_id": f"i{n:02d}", "reason": "white_space", "image_uri": f"{n}.jpg\u200b\n"} for n in range(30)]
    found = write_coverage(write_folder(tmp_path / "column", rows))
    with structlog.testing.capture_logs() as told:
        tell_lost(found)
    [line] = told
    assert (line["items"], line["of"], line["example"]) == (30, 30, "0.jpg\\u200b\\n")


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_shows_the_pictures_and_needs_nothing_from_elsewhere(shop):
    write_coverage(shop)
    page = Page((shop / "coverage.html").read_text("utf-8"))
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.tags.count("img") == 5 + 3 + 1 + 1  # the gallery, the group, the placeholder, and the item with it
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "60.0 % of" in " ".join(page.texts)


def test_what_a_catalogue_says_is_shown_as_text_and_run_by_nobody(tmp_path):
    attack = "<script>alert(1)</script>\" onerror='x"
    rows = [{"item_id": f"{attack}{n}", "category": attack, "title": attack, "reason": "not_found"} for n in range(2)]
    rows += [{"item_id": "a", "image_id": "pa", "category": attack, "title": attack}]
    rejected = [{"row": attack, "reason": "bad_row"}]
    folder = write_folder(tmp_path / "images", rows, rejected, ["pa"])
    write_coverage(folder)
    text = (folder / "coverage.html").read_text("utf-8")
    assert "script" not in Page(text).tags
    assert "<script>" not in text
    assert "onerror='" not in text


def test_names_passwords_and_signatures_are_not_repeated(tmp_path):
    rows = [
        {"item_id": "a", "reason": "credentials_in_url", "image_uri": "https://user:secret@img.test/a.jpg"},
        {"item_id": "b", "reason": "not_found", "image_uri": "s3://shop/b.jpg?X-Amz-Signature=secret&x=secret"},
    ]
    rejected = [{"row": '{"item_id": null, "image_uri": "https://u:secret@img.test/a?k=secret"}', "reason": "bad_row"}]
    folder = write_folder(tmp_path / "images", rows, rejected)
    write_coverage(folder)
    for name in ("coverage.json", "coverage.html"):
        assert "secret" not in (folder / name).read_text("utf-8")
    assert "img.test" in (folder / "coverage.json").read_text("utf-8")


def test_the_report_stays_small_however_much_is_wrong(tmp_path):
    rows = [{"item_id": f"f{n:04d}", "reason": "not_found", "category": f"c{n}"} for n in range(1500)]
    rows += [
        {"item_id": f"g{group:02d}-{n}", "near_duplicate_of": f"g{group:02d}-0" if n else None}
        for group in range(25)
        for n in range(8)
    ]
    rejected = [{"row": "x" * 10_000, "reason": "bad_row"}] * 50
    shared = [{"image_id": f"q{n:02d}", "image": png(n), "items": n + 5, "categories": ["a"]} for n in range(30)]
    pictures = [f"p{row['item_id']}" for row in rows if row["item_id"].startswith("g")]
    folder = write_folder(tmp_path / "images", rows, rejected, pictures, shared)
    found = write_coverage(folder)
    assert len(found["examples"]["not_found"]) == len(found["rejected_examples"]["bad_row"]) == 6
    assert len(found["near_duplicate_groups"]) == len(found["placeholders"]) == 20
    assert {len(group["examples"]) for group in found["near_duplicate_groups"]} == {6}
    assert (found["by_category"]["values"], len(found["by_category"]["lines"])) == (1501, 1000)
    page = Page((folder / "coverage.html").read_text("utf-8"))
    assert page.tags.count("img") <= 12 + 20 + 20 * 6
    assert page.tags.count("tr") <= 2 * 41
    assert found["placeholders"][0]["items"] == 34


def test_a_large_picture_is_shown_small(tmp_path):
    folder = write_folder(tmp_path / "images", [{"item_id": "a"}])
    table = pa.table({"image_id": ["pa"], "image": pa.array([png(1, side=400)], pa.binary())})
    pq.write_table(table, folder / "shards" / "images-00000-of-00002.parquet")
    write_coverage(folder)
    [address] = Page((folder / "coverage.html").read_text("utf-8")).addresses
    with Image.open(BytesIO(b64decode(address.partition(",")[2]))) as image:
        assert image.size == (96, 96)


def test_an_artifact_without_the_newer_columns_is_reported_all_the_same(tmp_path):
    older = pa.schema([field for field in ITEMS if field.name in coverage.COLUMNS])
    folder = write_folder(tmp_path / "images", [{"item_id": "a"}], pictures=["pa"], schema=older)
    (folder / "placeholders.parquet").unlink()
    found = write_coverage(folder)
    assert found["pictures"] == {"distinct": 1, "exact_duplicates": 0}
    assert (found["near_duplicate_groups"], found["placeholders"]) == ([], [])


def test_an_empty_catalogue_is_reported(tmp_path):
    found = write_coverage(write_folder(tmp_path / "images", []))
    assert found["rows"] == {"read": 0, "accepted": 0, "rejected": 0}
    assert "holds no item" in (tmp_path / "images" / "coverage.html").read_text("utf-8")


def test_rows_that_got_lost_are_not_glossed_over(tmp_path):
    folder = write_folder(tmp_path / "images", [{"item_id": "a"}], read=3)
    with pytest.raises(CoverageWrong, match="3 rows were read, 1 accepted and 0 rejected"):
        write_coverage(folder)
    assert not (folder / "coverage.json").exists()


def test_the_same_tables_give_the_same_bytes(shop):
    write_coverage(shop)
    first = [(shop / name).read_bytes() for name in ("coverage.json", "coverage.html")]
    write_coverage(shop)
    assert first == [(shop / name).read_bytes() for name in ("coverage.json", "coverage.html")]
