"""The images job on a catalogue in which nearly everything that can be wrong with an image is wrong."""

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
from ingested_items import ingested
from PIL import Image

from jobs.config import ImagesConfig
from jobs.images import pipeline
from jobs.raw import beam_rows
from jobs.raw.folder import RawTableUnusable
from jobs.rules import items
from model import artifact
from model.courier.data import images
from model.courier.data.stored_images import load_images

CONFIG = ImagesConfig(size=16, shard_bytes=4_000, max_bytes=20_000, max_pixels=10_000, placeholder_items=3)


def noise(seed, width=40, height=30):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image, form="PNG", **options):
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def sideways():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(1), "JPEG", exif=exif)


def with_palette():
    image = Image.new("P", (20, 20), 1)
    image.paste(0, (0, 0, 20, 5))
    image.putpalette([255, 255, 255, 9, 9, 9])
    return encoded(image, transparency=0)


GOOD = {
    "plain.jpg": encoded(noise(0), "JPEG"),
    "sideways.jpg": sideways(),
    "is_a_png.jpg": encoded(noise(2)),
    "print.jpg": encoded(noise(3).convert("CMYK"), "JPEG"),
    "deep.png": encoded(Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70)),
    "palette.png": with_palette(),
    "moving.gif": encoded(noise(4), "GIF", save_all=True, append_images=[noise(5)]),
    "name with a % and a #.png": encoded(noise(6)),
}
BAD = {
    "cut.jpg": (encoded(noise(7), "JPEG")[:-300], "broken", "truncated"),
    "page.jpg": (b"<!doctype html><title>404</title>", "broken", "not_an_image"),
    "nothing.jpg": (b"", "broken", "empty"),
    "dot.png": (encoded(noise(8, 2, 2)), "refused", "too_small"),
    "bomb.png": (encoded(Image.new("RGB", (200, 200))), "refused", "too_many_pixels"),
    "heavy.bmp": (encoded(noise(9, 90, 90), "BMP"), "refused", "too_large"),
    "icon.ico": (encoded(noise(12, 32, 32), "ICO"), "refused", "format_not_read"),
    "white.png": (encoded(Image.new("RGBA", (40, 30), (255, 255, 255, 90))), "placeholder", "blank"),
}
ABSENT = {
    "gone.jpg": ("missing", "not_found"),
    None: ("missing", "no_reference"),
    "x" * 300: ("refused", "impossible_name"),
    "../outside.png": ("refused", "outside_folder"),
    "/etc/hostname": ("refused", "absolute_path"),
    "https://example.org/a.jpg": ("refused", "host_not_allowed"),
    "file://elsewhere/a.jpg": ("refused", "scheme_not_allowed"),
    "images": ("refused", "not_a_file"),
}


def furnish(raw):
    """The raw rows, and item_id -> (status, reason) by hand."""
    (raw / "images").mkdir(parents=True)
    rows, fate = [], {}

    def add(uri, status="ok", reason="", **columns):
        item_id = f"i{len(rows):03d}"
        rows.append({"item_id": item_id, "image_uri": uri, **columns})
        fate[item_id] = (status, reason)

    for name, data in GOOD.items():
        (raw / "images" / name).write_bytes(data)
        add(f"images/{name}", category="shoe", price=9.5, created_at=datetime(2024, 5, 1, tzinfo=UTC))
    for name, (data, status, reason) in BAD.items():
        (raw / "images" / name).write_bytes(data)
        add(f"images/{name}", status, reason)
    for uri, (status, reason) in ABSENT.items():
        add(uri, status, reason)
    add((raw / "images" / "plain.jpg").absolute().as_uri(), category="hat")  # duplicate of i000
    add("images/../images/./is_a_png.jpg")  # duplicate of i002
    (raw / "images" / "no_image.png").write_bytes(encoded(noise(10)))
    for category in ("shoe", "hat", "bag"):
        add("images/no_image.png", "placeholder", "shared_by_many", category=category)
    rows += [
        {"item_id": "i000", "image_uri": "images/print.jpg"},
        {"item_id": None, "image_uri": "images/plain.jpg"},
        {"item_id": "z", "price": -3.0},
    ]
    fate["z"] = ("missing", "no_reference")  # its price is lost, and not the item
    return rows, fate


def build(raw, out, config=CONFIG, beam_args=()):
    return pipeline.build(
        ingest=ingested(raw),
        raw=raw,
        raw_digest="digest",
        store=out.parent / "store",
        out=out,
        config=config,
        beam_args=beam_args,
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """(raw folder, artifact, manifest, expected fates) of one run over the shop."""
    folder = tmp_path_factory.mktemp("shop")
    raw, out = folder / "raw", folder / "images"
    rows, fate = furnish(raw)
    encoded_outside = encoded(noise(11))
    (folder / "outside.png").write_bytes(encoded_outside)
    (raw / "items").mkdir()
    table = pa.Table.from_pylist(rows, ITEMS)
    pq.write_table(table.slice(0, 10), raw / "items" / "part-0.parquet")
    pq.write_table(table.slice(10), raw / "items" / "part-1.parquet")
    return raw, out, build(raw, out), fate


ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("image_uri", pa.string()),
        ("category", pa.string()),
        ("title", pa.string()),
        ("price", pa.float64()),
        ("created_at", pa.timestamp("ns", tz="UTC")),
    ]
)


def items_of(out):
    return pq.read_table(out / "items.parquet").to_pylist()


def test_every_image_meets_its_fate(shop):
    _, out, _, fate = shop
    assert {row["item_id"]: (row["status"], row["reason"]) for row in items_of(out)} == fate


def test_accepted_and_rejected_make_up_what_was_read(shop):
    _, out, manifest, fate = shop
    facts = manifest.facts
    assert facts["items_read"] == len(fate) + 2 == facts["items_accepted"] + sum(facts["items_rejected"].values())
    assert facts["items_rejected"] == {"duplicate_item_id": 1, "null_item_id": 1}
    assert facts["items_accepted"] == facts["images_ok"] + sum(
        facts[status] for status in items.STATUSES if status != items.OK
    )
    reasons = pq.read_table(out / "rejected.parquet").to_pylist()
    assert [row["reason"] for row in reasons] == ["duplicate_item_id", "null_item_id"]
    assert json.loads(reasons[0]["row"])["image_uri"] == "images/print.jpg"


def test_the_counts_in_the_manifest_are_those_of_the_table(shop):
    _, out, manifest, fate = shop
    facts, rows = manifest.facts, items_of(out)
    assert facts["by_reason"] == {
        reason: [r for _, r in fate.values()].count(reason) for _, reason in fate.values() if reason
    }
    assert facts["distinct_images"] == len(GOOD) == len({row["image_id"] for row in rows if row["image_id"]})
    assert facts["duplicates"] == 2


def test_items_come_sorted_with_what_the_shop_says_of_them(shop):
    rows = items_of(shop[1])
    assert [row["item_id"] for row in rows] == sorted(row["item_id"] for row in rows)
    assert rows[0]["category"] == "shoe"
    assert rows[0]["price"] == 9.5
    assert rows[0]["created_at"] == datetime(2024, 5, 1, tzinfo=UTC)
    assert pq.read_schema(shop[1] / "items.parquet").field("created_at").type == pa.timestamp("us", tz="UTC")


def test_only_an_ok_item_has_an_image_id(shop):
    assert all((row["image_id"] is not None) == (row["status"] == "ok") for row in items_of(shop[1]))


def test_a_duplicate_names_the_smallest_item_with_its_picture_whatever_its_path(shop):
    rows = items_of(shop[1])
    ok = [(row["item_id"], row["image_id"]) for row in rows if row["status"] == "ok"]
    duplicates = {row["item_id"]: row["duplicate_of"] for row in rows if row["duplicate_of"]}
    assert duplicates == items.find_duplicates(ok)
    assert sorted(duplicates.values()) == ["i000", "i002"]


def test_every_distinct_ok_image_lies_in_one_shard_once_and_sorted(shop):
    _, out, _, _ = shop
    shards = [pq.read_table(path)["image_id"].to_pylist() for path in sorted((out / "shards").glob("*.parquet"))]
    assert all(shard == sorted(shard) for shard in shards)
    held = [image_id for shard in shards for image_id in shard]
    assert sorted(held) == sorted({row["image_id"] for row in items_of(out) if row["image_id"]})
    assert [path.name for path in sorted((out / "shards").iterdir())] == [
        f"images-{n:05d}-of-{len(shards):05d}.{end}" for n in range(len(shards)) for end in ("json", "parquet")
    ]


def test_no_shard_holds_more_bytes_than_it_may(shop):
    sizes = [path.stat().st_size for path in (shop[1] / "shards").glob("*.parquet")]
    pngs = [json.loads(path.read_text())["png_bytes"] for path in (shop[1] / "shards").glob("*.json")]
    assert len(pngs) > 2
    assert max(pngs) <= CONFIG.shard_bytes
    assert max(sizes) <= CONFIG.shard_bytes + 3_000  # what parquet says of a file, however small


def test_the_stats_beside_a_shard_are_those_of_the_shard(shop):
    for path in (shop[1] / "shards").glob("*.parquet"):
        stats = json.loads(path.with_suffix(".json").read_text("utf-8"))
        pngs = pq.read_table(path)["image"].to_pylist()
        assert stats == {
            "images": len(pngs),
            "png_bytes": sum(map(len, pngs)),
            "sha256": artifact.sha256_file(path),
        }


def test_an_uploaded_image_gives_the_pixels_that_the_job_stored(shop):
    raw, out, _, _ = shop
    ids, pixels = load_images(out)
    stored = dict(zip(ids, pixels, strict=True))
    for row in items_of(out)[: len(GOOD)]:
        uploaded = images.decode((raw / row["image_uri"]).read_bytes())
        assert images.pixel_hash(uploaded) == row["image_id"]
        assert (images.resize(uploaded, CONFIG.size) == stored[row["image_id"]]).all()


def test_the_same_input_gives_the_same_bytes(shop, tmp_path):
    raw, _, manifest, _ = shop
    assert build(raw, tmp_path / "again").files == manifest.files


@pytest.mark.timeout(120)
def test_a_runner_in_another_process_gives_the_same_bytes(shop, tmp_path):
    raw, _, manifest, _ = shop
    job_service = ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK")
    again = build(raw, tmp_path / "again", beam_args=job_service)
    assert again.files == manifest.files
    assert again.facts["items_read"] == manifest.facts["items_read"]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_csv_and_json_lines_hold_the_same_catalogue_as_parquet(shop, tmp_path, form):
    raw, out, _, _ = shop
    copy = tmp_path / "raw"
    copy.mkdir()
    (copy / "images").symlink_to(raw / "images")
    rows = pa.concat_tables([pq.read_table(path) for path in sorted((raw / "items").iterdir())]).to_pandas()
    rows["created_at"] = rows["created_at"].map(lambda moment: moment.isoformat(), na_action="ignore")
    if form == "csv":
        rows.to_csv(copy / "items.csv", index=False)
    else:
        rows.to_json(copy / "items.jsonl", orient="records", lines=True)
    build(copy, tmp_path / "images")
    assert items_of(tmp_path / "images") == items_of(out)


def test_lines_that_are_no_json_object_are_kept_aside(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "items.jsonl").write_text(
        '{"item_id": "a"}\n{"item_id": \n[1]\n\n{"item_id": "\\ud800"}\n', "utf-8"
    )
    manifest = build(tmp_path / "raw", tmp_path / "images")
    assert manifest.facts["items_rejected"] == {"bad_row": 2}
    rejected = pq.read_table(tmp_path / "images" / "rejected.parquet").to_pylist()
    assert [json.loads(row["row"]) for row in rejected] == [
        {"_corrupt_record": '{"item_id": '},
        {"_corrupt_record": "[1]"},
    ]
    assert [row["item_id"] for row in items_of(tmp_path / "images")] == ["?", "a"]


def test_an_empty_catalogue_is_an_artifact_without_images(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "items.csv").write_text("item_id,image_uri\n", "utf-8")
    manifest = build(tmp_path / "raw", tmp_path / "images")
    assert (manifest.facts["items_read"], manifest.facts["distinct_images"]) == (0, 0)
    assert load_images(tmp_path / "images")[1].shape == (0, 16, 16, 3)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_a_table_without_its_columns_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "items.csv").write_text("id,picture\n1,a.jpg\n", "utf-8")
    with pytest.raises(RawTableUnusable, match=r"items.csv has no column item_id and no column image_uri"):
        build(tmp_path / "raw", tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(RawTableUnusable, match=r"items.parquet is not a readable parquet file"):
        build(tmp_path / "raw", tmp_path / "images")


def test_a_quote_that_nothing_closes_costs_its_row(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "items.csv").write_text('item_id,image_uri\na,b\nc,"' + "d" * 200_000, "utf-8")
    facts = build(tmp_path / "raw", tmp_path / "images").facts
    assert (facts["items_accepted"], facts["items_rejected"]) == (1, {"bad_row": 1})


def test_a_moment_beyond_the_calendar_is_a_lost_moment_and_not_the_end_of_the_job(tmp_path):
    table = pa.table({"item_id": ["a", "b"], "created_at": pa.array([2**62, 0], pa.timestamp("us", tz="UTC"))})
    pq.write_table(table, tmp_path / "items.parquet")
    rows = list(beam_rows.rows(tmp_path / "items.parquet", "items"))
    assert [(items.reject_reason(row), items.lost_values(row)) for row in rows] == [
        (None, ("bad_created_at",)),
        (None, ()),
    ]


def test_the_last_of_an_items_rows_is_opened_and_the_others_are_told_as_plain_python_tells_them(tmp_path):
    moments = [None, "2024-05-01T12:00:00Z", "2024-05-01T14:00:00+02:00", "2024-06-01T12:00:00Z", "soon"]
    rows = [
        {"item_id": f"i{n % 3}", "image_uri": f"{n}.png", "category": f"c{n}", "updated_at": moments[n * n % 11 % 5]}
        for n in range(24)
    ]
    (tmp_path / "raw").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw" / "items.parquet")
    facts = build(tmp_path / "raw", tmp_path / "images").facts
    kept, rejected = items.accept(rows)
    assert {row["item_id"]: row["category"] for row in items_of(tmp_path / "images")} == {
        one.item_id: one.category for one in kept
    }
    assert facts["items_rejected"] == Counter(reason for _, reason in rejected)
    assert set(facts["items_rejected"]) == {items.DUPLICATE_ITEM_ID, items.SUPERSEDED}


# --- references -----------------------------------------------------------------------------------------------------


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def unconfigured_log():
    """The log as a fresh process has it."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("unconfigured_log")
def test_the_command_prints_nothing_but_the_facts_and_takes_beams_options(shop, tmp_path, capsys):
    paths = ["--raw", str(shop[0]), "--ingest", str(ingested(shop[0])), "--out", str(tmp_path / "images")]
    with pytest.raises(SystemExit) as ended:
        pipeline.main([*paths, "--size=8", "--shard-bytes=5000", "--runner=FnApiRunner"])
    assert ended.value.code == 0
    built = artifact.read(tmp_path / "images", kind="images")
    written = capsys.readouterr()
    assert json.loads(written.out) == built.facts
    assert "images_built" in written.err
    assert "WARNING" not in written.err
    assert (built.config["size"], built.config["shard_bytes"]) == (8, 5000)


def test_other_limits_lead_to_other_fates(shop, tmp_path):
    raw = shop[0]
    wide = replace(CONFIG, max_pixels=40_000, max_bytes=10**6, min_side=1, placeholder_items=4)
    assert build(raw, tmp_path / "images", wide).facts["refused"] == 7
    reasons = {row["reason"] for row in items_of(tmp_path / "images") if row["status"] == "placeholder"}
    assert reasons == {"blank"}  # the one of one colour, and what was too large a one before; no picture is shared
