"""A second look at the same references opens nothing, and its artifact has the same bytes all the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from ingested_items import ingested
from PIL import Image

from jobs.config import ImagesConfig
from jobs.images import pipeline, write
from jobs.images.outcome import Outcome
from jobs.images.store import StoreBusy, StoreChanged, open_store
from model import artifact

CONFIG = ImagesConfig(size=16, shard_bytes=10_000, store_shards=5, max_bytes=200_000, max_pixels=200_000)
NAMES = [f"{number:02d}.png" for number in range(12)]


def picture(seed, form="PNG", side=24, **options):
    """The bytes of a small image; every seed another one."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def write_items(raw, uris):
    raw.mkdir(exist_ok=True)
    rows = [{"item_id": f"i{n:05d}", "image_uri": uri, "category": f"c{n % 4}"} for n, uri in enumerate(uris)]
    pq.write_table(pa.Table.from_pylist(rows), raw / "items.parquet")


@pytest.fixture
def raw(tmp_path):
    """Twelve items with an image each, and one whose image is not there."""
    folder = tmp_path / "raw"
    write_items(folder, [*NAMES, "absent.png"])
    for seed, name in enumerate(NAMES):
        (folder / name).write_bytes(picture(seed))
    return folder


def build(raw, name, store="store", config=CONFIG, **options):
    out = raw.parent / name
    return pipeline.build(
        ingest=ingested(raw), raw=raw, raw_digest="digest", store=raw.parent / store, out=out, config=config, **options
    )


def work(manifest):
    """(references, opened, decoded, shards written) of a run, as the job counted them."""
    return tuple(manifest.notes["work"][name] for name in ("references", "opened", "decoded", "shards_written"))


def shards(raw, store="store"):
    """Name -> (inode, time of change) of the finished shards."""
    found = (raw.parent / store).glob("*/references-*.parquet")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def reasons(out):
    table = pq.read_table(out / "items.parquet", columns=["item_id", "reason"])
    return dict(zip(table["item_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


# --- a second run ---------------------------------------------------------------------------------------------------


def test_a_second_run_opens_nothing_and_gives_the_same_bytes(raw):
    cold = build(raw, "cold")
    before = shards(raw)
    warm = build(raw, "warm")
    assert work(cold) == (13, 12, 12, 5)
    assert work(warm) == (13, 0, 0, 0)
    assert shards(raw) == before
    assert warm.files == cold.files


def test_changed_bytes_under_the_same_name_are_noticed_even_where_size_and_date_are_the_old_ones(raw):
    one, other = (picture(seed, "BMP") for seed in (90, 91))
    (raw / NAMES[3]).write_bytes(one)
    build(raw, "before")
    seen = (raw / NAMES[3]).stat()
    (raw / NAMES[3]).write_bytes(other)
    os.utime(raw / NAMES[3], ns=(seen.st_atime_ns, seen.st_mtime_ns))
    after = build(raw, "after")
    assert len(one) == len(other)
    assert work(after) == (13, 1, 1, 1)
    assert after.files == build(raw, "afresh", store="another").files


def test_a_file_that_was_only_touched_is_read_and_not_decoded(raw):
    before = build(raw, "before")
    os.utime(raw / NAMES[3], ns=(1, 1))
    after = build(raw, "after")
    assert work(after) == (13, 1, 0, 1)
    assert after.files == before.files
    assert work(build(raw, "again")) == (13, 0, 0, 0)


def test_only_new_references_are_opened_and_forgotten_ones_are_forgotten(raw):
    build(raw, "before")
    (raw / "new.png").write_bytes(picture(99))
    write_items(raw, [*NAMES[2:], "new.png"])
    after = build(raw, "after")
    assert work(after)[:3] == (11, 1, 1)
    assert after.files == build(raw, "afresh", store="another").files


def test_a_file_that_appears_is_found_and_one_that_disappears_is_missed(raw):
    build(raw, "before")
    (raw / "absent.png").write_bytes(picture(50))
    (raw / NAMES[0]).unlink()
    after = build(raw, "after")
    assert work(after)[:3] == (13, 1, 1)
    assert {item: reason for item, reason in reasons(raw.parent / "after").items() if reason} == {"i00000": "not_found"}


def test_items_with_one_reference_open_it_once(raw):
    write_items(raw, NAMES[:2] * 4)
    assert work(build(raw, "images"))[:3] == (2, 2, 2)


def test_the_same_words_in_another_folder_are_another_reference(raw):
    build(raw, "one")
    other = raw.parent / "other"
    write_items(other, NAMES)
    for seed, name in enumerate(NAMES):
        (other / name).write_bytes(picture(seed + 500))
    assert work(build(other, "two", retry_failed=True))[:3] == (12, 12, 12)  # for nothing is known of them


def test_a_move_of_the_raw_folder_changes_no_byte_of_the_artifact(raw):
    before = build(raw, "before")
    moved = raw.rename(raw.parent / "moved")
    assert build(moved, "after").files == before.files


def test_other_sizes_and_limits_are_decoded_anew(raw):
    build(raw, "before")
    assert work(build(raw, "smaller", config=replace(CONFIG, size=8)))[:3] == (13, 12, 12)
    assert work(build(raw, "stricter", config=replace(CONFIG, min_side=25)))[:3] == (13, 12, 0)
    assert work(build(raw, "as before"))[:3] == (13, 0, 0)
    fewer = build(
        raw, "fewer", config=replace(CONFIG, placeholder_items=1, shard_bytes=4_000)
    )  # of no picture's own concern
    assert work(fewer)[:3] == (13, 0, 0)


def test_a_damaged_shard_is_made_again(raw):
    cold = build(raw, "cold")
    shard = sorted((raw.parent / "store").glob("*/references-*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:-50])
    again = build(raw, "again")
    assert 0 < work(again)[1] < 12
    assert again.files == cold.files


# --- what failed ----------------------------------------------------------------------------------------------------


def test_retrying_opens_what_failed_and_may_succeed_and_looks_at_nothing_else(raw):
    (raw / NAMES[1]).write_bytes(b"no image")
    build(raw, "before")
    (raw / "absent.png").write_bytes(picture(50))
    (raw / NAMES[0]).write_bytes(picture(51))
    (raw / NAMES[1]).write_bytes(picture(52))
    after = build(raw, "after", retry_failed=True)
    assert work(after)[:3] == (13, 1, 1)
    assert {item: reason for item, reason in reasons(raw.parent / "after").items() if reason} == {
        "i00001": "not_an_image"
    }
    assert work(build(raw, "later"))[:3] == (13, 2, 2)


def test_without_a_store_retrying_is_a_first_run(raw):
    assert build(raw, "one", store="a", retry_failed=True).files == build(raw, "two", store="b").files


def test_what_no_item_names_any_more_is_forgotten_in_every_shard_but_not_by_a_retry(raw):
    def held():
        return sorted(uri for path in stored(raw) for uri in pq.read_table(path)["uri"].to_pylist())

    build(raw, "before")
    write_items(raw, NAMES[:1])
    build(raw, "retried", retry_failed=True)
    assert len(held()) == 13
    build(raw, "after")
    assert held() == [f"{raw}/{NAMES[0]}"]


def stored(raw):
    return list((raw.parent / "store").glob("*/references-*.parquet"))


def test_a_store_that_another_job_holds_is_left_alone(raw):
    build(raw, "before")
    [lock] = (raw.parent / "store").glob("*/.lock")
    with FileLock(lock), pytest.raises(StoreBusy, match="another job is at work"):
        build(raw, "after")
    assert not (raw.parent / "after").exists()
    assert work(build(raw, "after")) == (13, 0, 0, 0)


# --- the store's own laws -------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store", CONFIG)


def usable(uri, image_id="0" * 32):
    return Outcome(uri=uri, fingerprint="1", bytes_sha256="2", image_id=image_id, phash="3", width=9, height=9)


def test_what_was_saved_is_known_and_old_pictures_stay(store):
    outcomes = {"a": usable("a", "1"), "b": Outcome(uri="b", reason="not_found")}
    store.save(0, outcomes, {"a": b"A"})
    assert store.known(0) == outcomes
    assert store.known(1) == {}
    number = store.number("x")
    store.save(number, {"a": usable("a", "1"), "c": usable("c", "3")}, {"a": b"A", "c": b"C"})
    store.save(number, {"a": usable("a", "1"), "c": usable("c", "4")}, {"c": b"D"})
    assert store.gather([("1", ("x", "a")), ("4", ("x", "c"))]).to_pylist() == [
        {"image_id": "1", "image": b"A"},
        {"image_id": "4", "image": b"D"},
    ]


def test_stats_stand_beside_a_shard(store):
    store.save(0, {"a": usable("a"), "b": Outcome(uri="b", reason="empty")}, {"a": b"12345"})
    [stats] = store.folder.glob("*.json")
    assert json.loads(stats.read_text("utf-8")) == {"references": 2, "by_reason": {"empty": 1}, "png_bytes": 5}


@pytest.mark.parametrize("wanted", [("2", ("x", "a")), ("1", ("x", "gone"))])
def test_a_store_that_changed_meanwhile_is_no_silent_loss(store, wanted):
    store.save(store.number("x"), {"a": usable("a", "1")}, {"a": b"A"})
    with pytest.raises(StoreChanged, match="run again"):
        store.gather([wanted])


def test_rows_that_do_not_add_up_are_an_error(raw):
    build(raw, "images")
    out = raw.parent / "images"
    (out / write.READ).write_text('{"items_read": 14}', "utf-8")
    with pytest.raises(write.RowsLost, match="14 rows were read, 13 accepted and 0 rejected"):
        write.facts(out)
    (out / write.READ).write_text('{"items_read": 13}', "utf-8")
    next((out / "shards").glob("*.parquet")).unlink()
    with pytest.raises(write.RowsLost, match="12 distinct images were found, the shards hold"):
        write.facts(out)


# --- pictures that look alike ---------------------------------------------------------------------------------------


def photo(seed, side=96):
    """Smooth patches of colour: what survives recompression."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC)


def saved(image, path, form="PNG", **options):
    image.save(path, form, **options)


def test_recompressed_and_resized_copies_name_the_smallest_item_that_looks_so(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    saved(photo(1), raw / "a.png")
    saved(photo(1), raw / "b.jpg", "JPEG", quality=60)
    saved(photo(1, side=200), raw / "c.png")
    saved(photo(2), raw / "d.png")
    saved(photo(3), raw / "e.png")
    write_items(raw, ["d.png", "b.jpg", "a.png", "b.jpg", "c.png", "e.png", "d.png"])
    manifest = build(raw, "images", config=replace(CONFIG, size=64))
    rows = pq.read_table(tmp_path / "images" / "items.parquet").to_pylist()
    assert {row["item_id"]: row["near_duplicate_of"] for row in rows if row["near_duplicate_of"]} == {
        "i00002": "i00001",
        "i00003": "i00001",
        "i00004": "i00001",
    }
    assert {row["item_id"]: row["duplicate_of"] for row in rows if row["duplicate_of"]} == {
        "i00003": "i00001",
        "i00006": "i00000",
    }
    assert [(row["width"], row["height"], row["mode"], row["frames"]) for row in rows[:5]] == [
        *[(96, 96, "RGB", 1)] * 4,
        (200, 200, "RGB", 1),
    ]
    assert (manifest.facts["near_duplicates"], manifest.facts["near_duplicate_groups"]) == (3, 1)


def test_a_placeholder_is_kept_with_its_thumbnail_and_its_users(tmp_path):
    raw = tmp_path / "raw"
    write_items(raw, [*["none.png"] * 3, "copy.png", "a.png"])
    for name, seed in (("none", 1), ("copy", 1), ("a", 2)):
        saved(photo(seed), raw / f"{name}.png")
    manifest = build(raw, "images", config=replace(CONFIG, placeholder_items=4))
    [row] = pq.read_table(tmp_path / "images" / "placeholders.parquet").to_pylist()
    assert (row["items"], row["categories"]) == (4, ["c0", "c1", "c2", "c3"])
    assert Image.open(BytesIO(row["image"])).size == (16, 16)
    assert (manifest.facts["placeholder_pictures"], manifest.facts["placeholder"]) == (1, 4)
    rows = pq.read_table(tmp_path / "images" / "items.parquet").to_pylist()
    assert [row["near_duplicate_of"] for row in rows] == [None] * 5
    assert rows[0]["width"] == 96


def test_variants_keep_the_picture_they_share_and_the_placeholder_among_them_is_found(tmp_path):
    raw = tmp_path / "raw"
    write_items(
        raw, [f"{n % 8}.png" for n in range(40)] + ["none.png"] * 12
    )  # five items a picture, of four categories
    for seed, name in enumerate([*"01234567", "none"]):
        saved(photo(seed), raw / f"{name}.png")
    manifest = build(raw, "images")
    assert manifest.facts["by_reason"] == {"shared_by_many": 12}
    assert (manifest.facts["images_ok"], manifest.facts["distinct_images"]) == (40, 8)
    [row] = pq.read_table(tmp_path / "images" / "placeholders.parquet").to_pylist()
    assert (row["items"], row["first_item_id"]) == (12, "i00040")


# --- many files, some of them broken, and a run that is killed ------------------------------------------------------

WAYS = {  # how an image is broken -> the bytes, and the reason that is to be told; None: the file is not there
    "cut": (lambda seed: picture(seed, "JPEG", 64)[:-400], "truncated"),
    "page": (lambda seed: f"<!doctype html><title>{seed}</title>".encode(), "not_an_image"),
    "nothing": (lambda _: b"", "empty"),
    "dot": (lambda seed: picture(seed, side=4), "too_small"),
    "bomb": (lambda _: picture_of_one_colour(500), "too_many_pixels"),
    "heavy": (lambda seed: picture(seed, "BMP", 280), "too_large"),
    "absent": (None, "not_found"),
    "elsewhere": ("../outside.png", "outside_folder"),
    "ftp": ("ftp://example.org/a.jpg", "scheme_not_allowed"),
    "strange": ("https://example.org/a.jpg", "host_not_allowed"),
}


def picture_of_one_colour(side):
    stream = BytesIO()
    Image.new("RGB", (side, side)).save(stream, "PNG")
    return stream.getvalue()


def furnish(raw, files):
    """A raw folder of `files` items, every twentieth broken, in turns in ten ways; item_id -> reason."""
    raw.mkdir()
    uris, fate = [], {}
    for n in range(files):
        name = f"{n:05d}.img"
        make, reason = WAYS[list(WAYS)[n // 20 % len(WAYS)]] if n % 20 == 7 else (picture, "")
        fate[f"i{n:05d}"] = reason
        uris.append(make if isinstance(make, str) else name)
        if callable(make):
            (raw / name).write_bytes(make(n))
    write_items(raw, uris)
    return fate


SIZES = [500, pytest.param(10_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("files", SIZES)
def test_every_broken_image_is_counted_with_its_reason_and_a_second_run_does_no_work(tmp_path, files):
    raw = tmp_path / "raw"
    fate = furnish(raw, files)
    manifest = build(raw, "images")
    facts = manifest.facts
    assert reasons(tmp_path / "images") == fate
    assert facts["by_reason"] == dict(sorted(Counter(filter(None, fate.values())).items()))
    assert sum(facts["by_reason"].values()) == files // 20
    assert len(facts["by_reason"]) == 10
    assert facts["items_read"] == files == facts["items_accepted"] + sum(facts["items_rejected"].values())
    again = build(raw, "again")
    assert work(again)[1:] == (0, 0, 0)
    assert again.files == manifest.files


def start(raw, name, store):
    """The job as a program of its own, which lets whoever is to kill it go first."""
    options = ["--raw", str(raw), "--out", str(raw.parent / name), "--store", str(raw.parent / store)]
    return subprocess.Popen(
        ["nice", "-n", "19", sys.executable, "-m", "jobs.images.pipeline", *options, "--size=16"],
        cwd=Path(pipeline.__file__).parents[3],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("files", [pytest.param(600, id="600"), *SIZES[1:]])
def test_a_killed_run_goes_on_with_the_shards_that_are_missing(tmp_path, files):
    raw = tmp_path / "raw"
    furnish(raw, files)
    run = start(raw, "images", "store")
    while len(shards(raw)) < 10 and run.poll() is None:
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    finished = shards(raw)
    assert 10 <= len(finished) < 64
    assert not (tmp_path / "images").exists()

    config = replace(ImagesConfig(), size=16)
    resumed = build(raw, "images", config=config)
    whole = build(raw, "whole", store="another", config=config)
    assert work(resumed)[3] == 64 - len(finished)
    assert {name: stat for name, stat in shards(raw).items() if name in finished} == finished
    assert resumed.notes["work"]["decoded"] < whole.notes["work"]["decoded"]
    assert resumed.files == whole.files
    assert not list((raw.parent / "store").glob("*/.references-*"))
    artifact.sweep(tmp_path)
