"""The Beam jobs read and write at a URL what they read and write in a folder of this machine: against an S3 server."""

import io
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import courier
from jobs.images import pipeline
from jobs.images.fetch.references import Fetcher, NotFetched
from jobs.paths import UrlUnusable, any_path
from jobs.sequences.beam import behavior_sequences, item_statistics
from model import artifact
from model.artifact import AnyPath

HEAD = "item_id,image_uri,category,title,price,created_at\n"


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_items(raw: Path, uris: Sequence[str]) -> None:
    """A canonical table of items, an image reference each."""
    rows = {"item_id": [f"i{n}" for n in range(len(uris))], "image_uri": uris, "category": ["c"] * len(uris)}
    pq.write_table(pa.table(rows), raw / "items.parquet")


def called(main: Callable[[list[str]], None], *argv: object) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, argv)))
    assert end.value.code == 0


CLOCK = ("--as-of", "2026-01-01T00:00Z")


def send(folder: Path, to: AnyPath) -> AnyPath:
    for path in folder.rglob("*"):
        if path.is_file():
            to.joinpath(path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
    return to


def rows(folder: AnyPath) -> list[str]:
    """Every row of the parquet files of a folder, sorted: which row lies in which part is the runner's business."""
    return sorted(repr(row) for path in folder.glob("*.parquet") for row in pq.read_table(path.open("rb")).to_pylist())


def test_sequences_and_statistics_in_a_bucket_are_those_in_a_folder(
    bucket, drawn_events, write_events, tmp_path
) -> None:
    raw = write_events(tmp_path / "raw", drawn_events(n * 7_919_317_003 % 10**12 for n in range(80)))
    here, there = tmp_path / "sequences", bucket / "deep" / "sequences"
    called(behavior_sequences.main, "--raw", raw, "--out", here, *CLOCK)
    called(behavior_sequences.main, "--raw", send(raw, bucket / "raw"), "--out", there, *CLOCK)
    manifests = [artifact.read(place, kind="sequences") for place in (here, there)]
    assert manifests[0].facts == manifests[1].facts
    for table in ("impressions", "page_views", "histories", "clicks", "conversions", "rejected"):
        assert rows(there / table) == rows(here / table)
    assert rows(there / "impressions")
    assert set(manifests[1].files) == set(manifests[0].files)  # nothing else is left

    called(item_statistics.main, "--sequences", here, "--out", tmp_path / "statistics")
    called(item_statistics.main, "--sequences", there, "--out", bucket / "statistics")
    for view in ("item_statistics", "user_statistics"):
        assert rows(bucket / "statistics" / view) == rows(tmp_path / "statistics" / view)


def test_images_in_a_bucket_are_those_in_a_folder_and_a_second_run_opens_none(bucket, tmp_path) -> None:
    raw = tmp_path / "raw"
    (raw / "a b").mkdir(parents=True)
    for seed in range(4):
        (raw / "a b" / f"{seed % 3}.png").write_bytes(png(seed % 3))
    (raw / "broken.png").write_bytes(png(9)[:300])
    named = ["a b/0.png", "./a b/1.png", "a b/2.png", "a b/1.png", "broken.png", "none.png", "../raw/broken.png", "/x"]
    write_items(raw, named)
    here, there = tmp_path / "out" / "images", bucket / "out" / "images"
    called(pipeline.main, "--raw", raw, "--out", here, "--shard-bytes", 300_000)
    called(pipeline.main, "--raw", send(raw, bucket / "raw"), "--out", there, "--shard-bytes", 300_000)
    first, manifest = (artifact.read(place, kind="images") for place in (here, there))
    assert {n: f for n, f in manifest.files.items() if "placeholders" not in n and n != "coverage.html"} == {
        n: f for n, f in first.files.items() if "placeholders" not in n and n != "coverage.html"
    }
    assert manifest.facts["by_reason"] == {"absolute_path": 1, "not_found": 1, "truncated": 2}
    assert manifest.facts["images_ok"] == 4
    called(pipeline.main, "--raw", bucket / "raw", "--out", there, "--shard-bytes", 300_000)
    again = artifact.read(there, kind="images")
    assert (again.notes["work"]["opened"], again.notes["work"]["shards_written"]) == (0, 0)
    (bucket / "raw" / "a b" / "2.png").write_bytes(png(7))
    called(pipeline.main, "--raw", bucket / "raw", "--out", there, "--shard-bytes", 300_000)
    assert artifact.read(there, kind="images").notes["work"]["opened"] == 1


def test_the_road_starts_from_a_raw_folder_in_a_bucket_and_remembers_it(bucket, tmp_path, capsys) -> None:
    raw = bucket / "raw"
    (raw / "0.png").write_bytes(png(0))
    (raw / "items.csv").write_text(f"{HEAD}i,0.png,c,t,1,\n", "utf-8")
    at = ["--workspace", str(tmp_path / "ws"), "--preset", "tiny"]
    courier.main(["images", str(raw), *at])
    [first] = (path for path in (tmp_path / "ws" / "images").iterdir() if path.is_dir())
    assert artifact.read(first, kind="images").facts["images_ok"] == 1
    courier.main(["images", *at])
    assert "skipped: up to date" in capsys.readouterr().err
    (raw / "0.png").write_bytes(png(1))
    courier.main(["images", *at])
    assert sum(path.is_dir() for path in (tmp_path / "ws" / "images").iterdir()) == 2


@pytest.mark.parametrize("argv", [["status"], ["run", "raw"], ["images", "raw"], ["sequences"], ["check-leaks"]])
def test_a_workspace_at_a_url_is_refused_in_one_sentence(argv, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    option = [] if argv == ["check-leaks"] else ["--workspace"]
    with pytest.raises(SystemExit) as end:
        courier.main([*argv, *option, "s3://bucket/workspace"])
    assert str(end.value.code).startswith("courier: s3://bucket/workspace cannot be a workspace, for SQLite files")
    assert "\n" not in str(end.value.code)
    assert list(tmp_path.iterdir()) == []


def test_an_image_job_killed_before_its_manifest_leaves_no_artifact_and_its_store_is_taken_up(bucket, tmp_path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "0.png").write_bytes(png(0))
    write_items(raw, ["0.png"])
    program = """
        import os, signal, sys
        from jobs.images import coverage
        coverage.write_coverage = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
        from jobs.images import pipeline
        pipeline.main(sys.argv[1:])
    """
    argv = ["--raw", str(send(raw, bucket / "raw")), "--out", str(bucket / "images")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *argv], env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.returncode == -signal.SIGKILL
    assert (bucket / "images" / "items.parquet").exists()
    with pytest.raises(artifact.ArtifactMissing):
        artifact.read(bucket / "images", kind="images")
    called(pipeline.main, *argv)
    assert artifact.read(bucket / "images", kind="images").notes["work"]["opened"] == 0


def test_a_relative_reference_starts_from_the_url_of_the_raw_folder_and_cannot_leave_it(bucket) -> None:
    (bucket / "raw" / "1.png").write_bytes(b"0123456789")
    (bucket / "secret.png").write_bytes(b"secret")
    for folder in (bucket / "raw", any_path(f"{bucket}raw")):
        fetcher = Fetcher(folder, 100)
        assert fetcher.fetch("1.png").data == fetcher.fetch("../raw/1.png").data == b"0123456789"
        assert fetcher.fingerprint("1.png") == fetcher.fetch("1.png").fingerprint
        leaving = dict.fromkeys(("../secret.png", "x/../../secret.png", ".."), "outside_folder")
        leaving |= {"/secret.png": "absolute_path", "%2e%2e/secret.png": "not_found"}
        for uri, reason in (
            leaving | {" 1.png": "white_space", "%31.png": "encoded", "x" * 1025: "impossible_name"}
        ).items():
            with pytest.raises(NotFetched) as refusal:
                fetcher.fetch(uri)
            assert refusal.value.reason == reason


def test_a_url_that_beam_itself_cannot_write_to_is_refused_before_anything_runs(
    drawn_events, write_events, tmp_path
) -> None:
    raw = write_events(tmp_path / "raw", drawn_events([0]))
    with pytest.raises(UrlUnusable, match=r"^Beam cannot write to memory://shop/out"):
        behavior_sequences.main(["--raw", str(raw), "--out", "memory://shop/out"])
