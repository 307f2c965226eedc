"""Images behind an address: an outage keeps what was there, and a change is noticed although the raw folder stands."""

import os
import subprocess
import sys
import time
from contextlib import closing
from io import BytesIO

import fsspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as fsspec_drivers
from ingested_items import ingested
from PIL import Image

from jobs import cli
from jobs.config import ImagesConfig
from jobs.images import decode_pool, pipeline
from jobs.images.decode_pool import DecodePool
from jobs.images.fetch.references import Fetcher
from jobs.images.look import Looker, Reference
from jobs.images.recheck import far_images_changed
from model.courier.data.stored_images import from_png

CONFIG = ImagesConfig(size=16, shard_bytes=10_000, store_shards=3)


class Bucket(MemoryFileSystem):
    """An object store in memory, in the place of gs://, which can be made to fail."""

    protocol = "gs"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    failure = None
    opened = 0

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").lstrip("/")

    def ukey(self, path):
        if Bucket.failure is not None:
            raise Bucket.failure
        return super().ukey(path)

    def open(self, *args, **kwargs):
        Bucket.opened += 1
        return super().open(*args, **kwargs)


def picture(seed):
    stream = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def put(name, data):
    with fsspec.open(f"gs://shop/{name}", "wb") as stream:
        stream.write(data)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Items a, b and d with a picture in the bucket each, c whose picture is not there, and e with a file."""
    monkeypatch.setitem(fsspec_drivers, "gs", Bucket)
    monkeypatch.setattr(Bucket, "failure", None)
    monkeypatch.setattr(Bucket, "store", {})
    for seed, name in enumerate("abd"):
        put(f"{name}.png", picture(seed))
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "e.png").write_bytes(picture(9))
    rows = [{"item_id": name, "image_uri": f"gs://shop/{name}.png"} for name in "abcd"]
    rows.append({"item_id": "e", "image_uri": "e.png"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")
    return folder


def build(raw, name, **options):
    store = raw.parent / "store"
    out = raw.parent / name
    return pipeline.build(
        ingest=ingested(raw), raw=raw, raw_digest="digest", store=store, out=out, config=CONFIG, **options
    )


def items(raw, name):
    return {row["item_id"]: row for row in pq.read_table(raw.parent / name / "items.parquet").to_pylist()}


def told(raw, name):
    return {item_id: row["reason"] or row["stale"] or "" for item_id, row in items(raw, name).items()}


# --- an outage ------------------------------------------------------------------------------------------------------


def test_an_outage_keeps_the_pictures_that_were_there_and_counts_them(raw):
    before = build(raw, "before")
    Bucket.failure = TimeoutError()
    during = build(raw, "during")
    assert told(raw, "during") == {"a": "timed_out", "b": "timed_out", "c": "timed_out", "d": "timed_out", "e": ""}
    old, new = items(raw, "before"), items(raw, "during")
    assert all(new[name] == old[name] | {"stale": "timed_out"} for name in "abd")
    assert [new["c"][key] for key in ("status", "reason", "stale")] == ["missing", "timed_out", None]
    assert during.facts["stale"] == {"timed_out": 3}
    assert during.facts["images_ok"] == 4
    assert during.notes["work"]["opened"] == 0
    shards = {name: sha256 for name, sha256 in before.files.items() if name.startswith("shards/")}
    assert {name: during.files[name] for name in shards} == shards

    Bucket.failure = None
    assert build(raw, "after").files == before.files


def test_a_retry_looks_at_what_is_stale(raw):
    before = build(raw, "before")
    Bucket.failure = PermissionError()
    build(raw, "during")
    Bucket.failure = None
    retried = build(raw, "retried", retry_failed=True)
    assert retried.files == before.files
    assert retried.facts["stale"] == {}


def test_an_answer_that_a_picture_is_gone_is_no_outage(raw):
    build(raw, "before")
    Bucket.failure = FileNotFoundError()
    build(raw, "after")
    assert {name: row["reason"] for name, row in items(raw, "after").items()} == dict.fromkeys("abcd", "not_found") | {
        "e": ""
    }
    assert all(row["stale"] is None for row in items(raw, "after").values())


# --- a change -------------------------------------------------------------------------------------------------------


def stats(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def changed(raw, name="before"):
    return far_images_changed(raw.parent / name, raw.parent / "store", raw, CONFIG)


def test_nothing_is_read_or_written_where_nothing_has_changed(raw):
    build(raw, "before")
    was, Bucket.opened = stats(raw.parent), 0
    assert not changed(raw)
    assert (stats(raw.parent), Bucket.opened) == (was, 0)
    put("a.png", picture(0))  # the very bytes, written anew
    assert not changed(raw)
    Bucket.failure = TimeoutError()
    assert not changed(raw)


def test_other_bytes_a_new_picture_and_one_that_is_gone_are_changes(raw):
    build(raw, "before")
    put("a.png", picture(5))
    assert changed(raw)
    put("a.png", picture(0))
    put("c.png", picture(6))
    assert changed(raw)
    fsspec.filesystem("gs").rm("gs://shop/c.png")
    assert not changed(raw)
    fsspec.filesystem("gs").rm("gs://shop/b.png")
    assert changed(raw)


def courier_images(raw):
    with pytest.raises(SystemExit) as ended:
        cli.images_main([str(raw), "--workspace", str(raw.parent / "workspace"), "--preset", "tiny"])
    assert ended.value.code == 0
    found = sorted(
        (raw.parent / "workspace" / "images").glob("*/items.parquet"), key=lambda path: len(path.parent.name)
    )
    return [pq.read_table(path)["bytes_sha256"].to_pylist() for path in found]


def test_the_command_looks_again_at_far_images_although_the_raw_folder_stands(raw):
    [first] = courier_images(raw)
    assert courier_images(raw) == [first]
    put("b.png", picture(7))
    [_, second] = courier_images(raw)
    assert [one == other for one, other in zip(first, second, strict=True)] == [True, False, True, True, True]
    assert courier_images(raw) == [first, second]


# --- in processes ---------------------------------------------------------------------------------------------------


def test_a_process_sees_what_a_thread_sees(raw):
    (raw / "broken.png").write_bytes(picture(3)[:-90])
    references = [Reference(name, f"{raw}/{name}") for name in ("e.png", "broken.png", "gone.png", "../outside.png")]
    with closing(DecodePool(raw, CONFIG, retry_failed=False)) as pool:
        looks = pool.open(references)
    here = Looker(Fetcher(raw, CONFIG.max_bytes), CONFIG, retry_failed=False)
    assert [(look.outcome, look.png) for look in looks] == [(look.outcome, look.png) for look in map(here, references)]
    assert [look.outcome.reason for look in looks] == ["", "truncated", "not_found", "outside_folder"]
    assert from_png(looks[0].png, 16).shape == (16, 16, 3)


def test_processes_pay_from_many_files_on_and_once_they_are_up(raw):
    with closing(DecodePool(raw, CONFIG, retry_failed=False)) as pool:
        assert pool.once_worthwhile(decode_pool.MANY) is None
        assert pool.once_worthwhile(1) is None  # they are starting
        pool.open([])
        assert pool.once_worthwhile(1) is pool


def test_processes_that_cannot_start_are_told_of_and_nobody_waits_for_them(raw, monkeypatch):
    monkeypatch.setattr(decode_pool, "begin", abs)  # which takes no four arguments
    with structlog.testing.capture_logs() as told, closing(DecodePool(raw, CONFIG, retry_failed=False)) as pool:
        pool.start()
        pool._first.exception()
        assert pool.once_worthwhile(decode_pool.MANY + 1) is None
    [event] = told
    assert (event["event"], event["log_level"]) == ("files_opened_in_threads", "warning")
    assert "the processes for it did not start" in event["why"]


def test_processes_that_are_ended_before_they_are_up_are_no_failure(raw):
    with structlog.testing.capture_logs() as told:
        pool = DecodePool(raw, CONFIG, retry_failed=False)
        pool.start()
        pool.close()
        assert isinstance(pool._first.exception(), RuntimeError)  # it is told that it is over
    assert told == []


PARENT = """
import os, signal, sys, threading
from pathlib import Path
from jobs.images.look import Reference
from jobs.images.decode_pool import DecodePool
from jobs.config import ImagesConfig

raw = Path(sys.argv[1])
pool = DecodePool(raw, ImagesConfig(size=256), retry_failed=False)
pool.open([])
print(*pool._pool._processes, flush=True)
references = [Reference("e.png", f"{raw}/e.png")] * 400
for _ in range(4):
    threading.Thread(target=pool.open, args=(references,), daemon=True).start()
os.kill(os.getpid(), signal.SIGSTOP)  # nobody reads any more, and their answers fill the pipe
"""


def test_processes_end_with_a_parent_that_is_killed_even_in_the_middle_of_an_answer(raw):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(raw)], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == os.cpu_count()
    time.sleep(2)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while not all(map(has_ended, pids)):
        assert time.monotonic() < until
        time.sleep(0.1)


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # where nobody asks for what became of it
    except psutil.NoSuchProcess:
        return True
