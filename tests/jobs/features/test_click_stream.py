"""Clicks from files, a growing folder and the runner's test stream: whatever their order, the store is the oracle's."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
import pandas as pd
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.testing.test_stream import TestStream as ScriptedStream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from feature_repo.contract import CTR_HISTORY
from jobs.engines import beam_runner
from jobs.features import materialize
from jobs.features.click_stream import program, sources, transforms
from jobs.features.click_stream.sources import (
    DecodeRecords,
    KafkaUnavailable,
    ReadFiles,
    ReadGrowingFolder,
    kafka_topic,
)
from jobs.features.click_stream.transforms import DropDuplicates, Settings, open_once, report, wire
from jobs.features.history_store import StoreNotReady
from jobs.features.offline_sources import point_sources
from jobs.raw.folder import RawTableMissing, RawTableUnusable
from jobs.rules.online_histories import merge

SECOND = 1_000_000
NOON = 1_709_294_400  # 2024-03-01 12:00 UTC
COLUMNS = ("user_id", "item_id", "event_time", "event_type", "request_id", "position")


@pytest.fixture(scope="module")
def workspace(shop, tmp_path_factory):
    """A workspace whose feature store is applied and empty."""
    root = tmp_path_factory.mktemp("stream")
    point_sources(root, shop.features)
    materialize._apply(root)
    return root


@pytest.fixture
def settings(workspace, tmp_path):
    return Settings(workspace=str(workspace), rejected=str(tmp_path / "rejected"), batch=3, shards=2)


@pytest.fixture
def held(workspace):
    """What the store holds of these users."""
    return open_once(program.STORE, str(workspace)).read


def raw(user, item, second, *, kind="click", request="r"):
    at = pd.Timestamp(NOON + second, unit="s", tz="UTC").isoformat()
    return dict(zip(COLUMNS, (user, item, at, kind, request, 0), strict=True))


def drawn(seed, users, clicks=60):
    """Clicks that collide: few users, items and moments; some of them twice, in two requests."""
    rng = random.Random(seed)
    rows = [
        raw(rng.choice(users), rng.choice("abcdef"), rng.randrange(40), request=f"r{rng.randrange(3)}")
        for _ in range(clicks)
    ]
    return [*rows, *rng.sample(rows, clicks // 3)]


def oracle(rows, users):
    """By plain Python: each user's newest clicks among all rows."""
    clicks = {user: [] for user in users}
    for row in rows:
        if row["event_type"] == "click":
            at = int(pd.Timestamp(row["event_time"]).timestamp()) * SECOND
            clicks[row["user_id"]].append((row["item_id"], at))
    return {user: merge((), own, CTR_HISTORY) for user, own in clicks.items()}


def write(path, rows):
    aside = path.with_name(f".{path.name}")
    if path.suffix == ".jsonl":
        aside.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(aside, index=False)
    else:
        frame = pd.DataFrame(rows)
        frame.assign(event_time=pd.to_datetime(frame["event_time"])).to_parquet(aside)
    aside.rename(path)
    return path


def run(files, settings):
    return report(program.run_once(files, settings, beam_runner.options([])))


def scripted(stream, settings, decode=None):
    """Run the whole pipeline behind a test stream, on the runner that plays one (its counters forget all but the last
    bundle, so what was done is looked up in the store)."""
    pipeline = beam.Pipeline(runner=BundleBasedDirectRunner(), options=PipelineOptions(["--streaming"]))
    rows = pipeline | stream
    rows = rows | "Read" >> (decode or beam.Map(lambda row: (row, None)))
    wire(rows, settings, program.STORE, None)
    pipeline.run().wait_until_finish()


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_of_each_format_gives_the_histories_of_the_oracle_and_a_second_run_changes_nothing(
    settings, held, tmp_path, workspace
):
    users = ["f1", "f2", "f3", "f4", "f5", "f6", "f7"]
    rows = [*drawn(1, users), raw("f1", "x", 99, kind="impression"), raw("f1", "x", 99, kind="purchase")]
    parts = [rows[0::3], rows[1::3], rows[2::3]]
    files = [
        write(tmp_path / f"part.{form}", part) for form, part in zip(("parquet", "csv", "jsonl"), parts, strict=True)
    ]
    first = run(files, settings)
    assert held(users) == oracle(rows, users)
    clicks = [row for row in rows if row["event_type"] == "click"]
    assert first == {
        "read": len(rows),
        "clicks": len(clicks),
        "passed_over": 2,
        "duplicates": len(clicks) - len({tuple(row.values()) for row in clicks}),
        "rejected": {},
        "users_pushed": 7,
        "users_unchanged": 0,
        "files_refused": 0,
        "files_vanished": 0,
    }
    before = stored(workspace)
    assert run(files[::-1], settings) == {**first, "users_pushed": 0, "users_unchanged": 7}
    assert stored(workspace) == before


def stored(workspace):
    with sqlite3.connect(workspace / "feast" / "packed.db") as connection:
        return connection.execute("SELECT * FROM courier_user_history ORDER BY entity_key").fetchall()


@pytest.mark.parametrize("seed", [2, 3])
def test_clicks_in_any_order_in_any_runs_and_bundles_give_one_history(seed, settings, held, tmp_path):
    users = [f"o{seed}{n}" for n in range(5)]
    rows, rng = drawn(seed, users, clicks=150), random.Random(seed)
    rng.shuffle(rows)
    for number in range(3):  # three runs, each of as many bundles as files
        part = rows[number::3]
        cuts = sorted(rng.sample(range(len(part)), 3))
        parts = [part[a:b] for a, b in zip([0, *cuts], [*cuts, len(part)], strict=True)]
        run([write(tmp_path / f"{number}-{n}.jsonl", some) for n, some in enumerate(parts)], settings)
    assert held(users) == oracle(rows, users)


def test_what_is_no_click_of_the_contract_is_counted_and_kept_aside_with_its_reason(settings, held, tmp_path):
    good = raw("j1", "a", 1)
    lines = [
        json.dumps(good),
        "not json",
        json.dumps({**good, "user_id": " "}),
        json.dumps({**good, "event_time": "2024-03-01T12:00:00"}),
        json.dumps({**good, "event_type": "clicked"}),
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "ragged.csv").write_text(
        ",".join(COLUMNS) + "\nj1,b,2024-03-01T12:00:00Z,click,r,0,too many\nj1,b\n", "utf-8"
    )
    found = run([tmp_path / "events.jsonl", tmp_path / "ragged.csv"], settings)
    reasons = {"bad_row": 3, "naive_event_time": 1, "null_user_id": 1, "unknown_event_type": 1}
    assert found["rejected"] == reasons
    assert found["read"] == found["clicks"] + found["passed_over"] + sum(reasons.values()) == 7
    [kept] = Path(settings.rejected).iterdir()
    rejected = [json.loads(line) for line in kept.read_text("utf-8").splitlines()]
    assert Counter(row["reason"] for row in rejected) == reasons
    assert {"reason": "bad_row", "row": "not json"} in rejected
    assert {"reason": "null_user_id", "row": {**good, "user_id": " ", "position": "0"}} in rejected
    assert held(["j1"])["j1"] == (("a", (NOON + 1) * SECOND),)
    run([tmp_path / "events.jsonl", tmp_path / "ragged.csv"], settings)
    assert list(Path(settings.rejected).iterdir()) == [kept]


def test_streaming_the_clicks_of_the_offline_tables_gives_the_store_that_a_batch_load_gives(
    shop, loaded_shop, tmp_path
):
    point_sources(tmp_path, shop.features)
    materialize._apply(tmp_path)
    clicks = [{**click, "event_type": "click", "position": None} for click in shop.clicks]
    pd.DataFrame(clicks)[list(COLUMNS)].to_parquet(tmp_path / "clicks.parquet")
    settings = Settings(workspace=str(tmp_path), rejected=str(tmp_path / "rejected"))
    options = beam_runner.options([])
    program.stream(str(tmp_path / "clicks.parquet"), settings, options, following=False, every=1)
    assert stored(tmp_path) == stored(loaded_shop.workspace)


def test_a_click_dated_ahead_leads_no_history_and_is_kept_aside(settings, held, tmp_path):
    ahead = {**raw("z1", "b", 0), "event_time": "2150-01-01T00:00:00Z"}
    found = run([write(tmp_path / "one.jsonl", [raw("z1", "a", 1), ahead])], settings)
    assert found["rejected"] == {"future_event_time": 1}
    [kept] = Path(settings.rejected).iterdir()
    assert json.loads(kept.read_text("utf-8"))["row"].keys() == set(COLUMNS)
    assert held(["z1"])["z1"] == (("a", (NOON + 1) * SECOND),)


@pytest.mark.parametrize(("hours", "reason"), [(-1, None), (0.9, None), (1.1, "future_event_time")])
def test_a_stream_judges_each_row_by_the_clock_of_its_reading(monkeypatch, hours, reason):
    class Later(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime(2150, 1, 1, tzinfo=zone)

    monkeypatch.setattr(transforms, "datetime", Later)
    at = Later.now(UTC) + timedelta(hours=hours)
    row = {**raw("u", "a", 0), "event_time": at.isoformat()}
    [judged] = transforms._Judge(None).process((row, None))
    assert judged[0] == "u" if reason is None else judged.value == (row, reason)


@pytest.mark.parametrize("kind", ["click", "Click", " CLICK"])
def test_a_record_of_a_click_counts_in_any_letter_case(kind):
    judged = transforms._Judge(None).process((raw("u", "a", 1, kind=kind), None))
    assert list(judged) == [("u", "a", (NOON + 1) * SECOND, "r")]


# --- a stream -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [4, 5])
def test_a_stream_out_of_order_late_and_replayed_gives_the_history_of_the_oracle(seed, settings, held):
    users = [f"s{seed}{n}" for n in range(2)]
    rows, rng = drawn(seed, users, clicks=15), random.Random(seed)
    arriving = [*rows, *rows]  # replayed whole
    rng.shuffle(arriving)
    stream = ScriptedStream().advance_watermark_to(NOON)
    for number in range(4):
        some = arriving[number::4]
        moments = [pd.Timestamp(row["event_time"]).timestamp() for row in some]
        stream = stream.add_elements([TimestampedValue(row, at) for row, at in zip(some, moments, strict=True)])
        # Far past every event, and now and then past what is remembered of them: all that follows is late.
        stream = stream.advance_watermark_to(NOON + 3600 * 30 * (number + 1)).advance_processing_time(2)
    scripted(stream.advance_watermark_to_infinity(), settings)
    assert held(users) == oracle(rows, users)


@pytest.mark.parametrize(("watermarks", "passed"), [((20, 3609, 3640), 1), ((20, 3610, 3640), 2)])
def test_a_stream_remembers_a_click_for_its_hours_and_no_longer(watermarks, passed):
    click = ("u", "i", 1, "r")
    stream = ScriptedStream().advance_watermark_to(0)
    for watermark in watermarks:
        again = stream.add_elements([TimestampedValue(click, 10)]).advance_processing_time(1)
        stream = again.advance_watermark_to(watermark).advance_processing_time(1)
    with beam.Pipeline(runner=BundleBasedDirectRunner(), options=PipelineOptions(["--streaming"])) as pipeline:
        clicks = pipeline | stream.advance_watermark_to_infinity() | DropDuplicates(hours=1)
        assert_that(clicks, equal_to([click] * passed))


def test_a_records_value_is_the_event_whatever_its_key(settings, held):
    rows = [raw("k1", item, n) for n, item in enumerate("abc")]
    records = [(b"any", json.dumps(row).encode()) for row in rows]
    records += [(b"", b"\xff{"), (b"", b""), (b"", None)]  # no text, nothing, and a tombstone
    stream = ScriptedStream().advance_watermark_to(NOON).add_elements(records)
    scripted(stream.advance_processing_time(2).advance_watermark_to_infinity(), settings, DecodeRecords())
    assert held(["k1"]) == oracle(rows, ["k1"])
    kept = "".join(path.read_text("utf-8") for path in Path(settings.rejected).iterdir())
    assert kept.count("bad_row") == 3


def test_kafka_without_its_expansion_service_is_refused_in_one_sentence(monkeypatch, settings):
    from apache_beam.utils.subprocess_server import JavaJarServer

    def no_jar(*_, **__):
        raise RuntimeError("Unable to fetch remote job server jar at https://example.org/x.jar: no network\nand more")

    monkeypatch.setattr(JavaJarServer, "local_jar", no_jar)
    topic = kafka_topic("kafka://a:9092,b:9092/clicks", "courier")
    assert (topic.servers, topic.topic) == ("a:9092,b:9092", "clicks")
    with pytest.raises(KafkaUnavailable, match=r"^kafka://a:9092,b:9092 cannot be read: .*--expansion-service$"):
        program.stream_kafka(topic, settings, PipelineOptions(["--runner=BundleBasedDirectRunner"]))
    with pytest.raises(KafkaUnavailable, match="needs a runner that streams"):
        program.stream_kafka(topic, settings, beam_runner.options([]))
    with pytest.raises(KafkaUnavailable, match="write it as kafka://host:9092/topic"):
        kafka_topic("kafka://host:9092", "courier")


# --- a folder that grows --------------------------------------------------------------------------------------------


def test_beams_own_watch_of_a_folder_reads_each_finished_file_of_events_once(tmp_path):
    rows = [raw("w1", item, n) for n, item in enumerate("abc")]
    write(tmp_path / "one.jsonl", rows[:2])
    write(tmp_path / "two.csv", rows[2:])
    for unfinished in (".three.jsonl", "_SUCCESS", "notes.txt"):
        (tmp_path / unfinished).write_text("not yet", "utf-8")
    with beam.Pipeline(runner=beam_runner.LOCAL_RUNNER) as pipeline:
        source = ReadGrowingFolder(tmp_path, every=1, stop=Timestamp.now() + 2)
        items = pipeline | source | beam.Map(lambda read: read[0]["item_id"])
        assert_that(items, equal_to(["a", "b", "c"]))


def wait_until(true, process, seconds=240):
    """Poll; the process must live meanwhile."""
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "timed out"
        time.sleep(0.2)


def test_a_growing_folder_is_followed_until_a_signal_and_a_bad_file_does_not_end_it(workspace, held, tmp_path):
    folder = tmp_path / "clicks"
    folder.mkdir()
    users = ["g1", "g2"]
    rows = drawn(6, users)
    command = [
        sys.executable,
        "-m",
        "jobs.features.click_stream.program",
        workspace,
        "--from",
        folder,
        "--follow",
        "--every",
        "0.2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        [*command, "--rejected", tmp_path / "rejected"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        write(folder / "1.jsonl", rows[:40])
        wait_until(lambda: held(users) == oracle(rows[:40], users), process)
        (folder / ".bad.parquet").write_bytes(b"PAR0")
        (folder / ".bad.parquet").rename(folder / "bad.parquet")
        write(folder / "2.parquet", rows[40:])
        wait_until(lambda: held(users) == oracle(rows, users), process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0
    [line] = out.splitlines()
    answer = json.loads(line)
    assert answer["clicks"] == answer["read"] == len(rows)
    assert answer["files_refused"] == 1
    assert "bad.parquet is not a readable parquet file" in err
    assert "Traceback" not in err


def test_a_file_that_was_written_again_is_read_again_and_an_unchanged_one_is_not(tmp_path):
    seen, counted = {}, Counter()
    one = write(tmp_path / "one.jsonl", [raw("u", "a", 1)])
    assert program._new_files(tmp_path, seen, counted) == [one]
    assert program._new_files(tmp_path, seen, counted) == []
    write(one, [raw("u", "a", 1), raw("u", "b", 2)])
    assert program._new_files(tmp_path, seen, counted) == [one]
    assert not counted


class OnePass(program.Stop):
    """Ends a stream once it has looked `looks` times."""

    def __init__(self, looks=1):
        super().__init__()
        self.left = looks

    def wait(self, _=None):
        self.left -= 1
        if not self.left:
            self.set()
        return self.is_set()


def followed(folder, settings, looks=1):
    options = beam_runner.options([])
    return report(program.follow(folder, settings, options, OnePass(looks), every=0))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_file_that_is_gone_before_it_is_opened_is_counted_and_the_others_are_read(
    form, monkeypatch, settings, held, tmp_path
):
    gone, there = tmp_path / f"a.{form}", tmp_path / f"b.{form}"
    for file in (gone, there):
        write(file, [raw(f"y{form}", file.stem, 1)])
    check = sources.check

    def check_too_late(files):
        gone.unlink(missing_ok=True)
        check(files)

    monkeypatch.setattr(sources, "check", check_too_late)
    found = followed(tmp_path, settings)
    assert (found["files_vanished"], found["files_refused"], found["read"]) == (1, 0, 1)
    assert held([f"y{form}"])[f"y{form}"] == (("b", (NOON + 1) * SECOND),)


def test_a_file_that_is_gone_between_listing_and_looking_is_counted_once_and_read_when_it_is_back(
    settings, held, tmp_path
):
    elsewhere = tmp_path / "elsewhere" / "a.jsonl"
    elsewhere.parent.mkdir()
    (tmp_path / "a.jsonl").symlink_to(elsewhere)  # listed, and not there
    assert followed(tmp_path, settings, looks=3)["files_vanished"] == 1
    assert sources.event_files(tmp_path) == []
    write(elsewhere, [raw("x1", "a", 1)])
    assert followed(tmp_path, settings)["read"] == 1
    assert held(["x1"])["x1"] == (("a", (NOON + 1) * SECOND),)


@pytest.mark.parametrize("following", [True, False])
def test_a_folder_that_is_followed_on_another_runner_makes_a_streaming_job(monkeypatch, following, settings, tmp_path):
    write(tmp_path / "one.jsonl", [raw("u", "a", 1)])
    begun = []
    monkeypatch.setattr(program, "run_elsewhere", lambda source, _, options: begun.append((source, options)))
    options = beam_runner.options(["--runner=FlinkRunner"])
    program.stream(str(tmp_path), settings, options, following=following, every=1)
    [(source, used)] = begun
    assert used.view_as(StandardOptions).streaming is following
    assert isinstance(source, ReadGrowingFolder if following else ReadFiles)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_streamed_is_refused_with_the_cure(settings, tmp_path):
    options = beam_runner.options([])

    def stream(address, **more):
        asked = {"following": False, "every": 1.0, **more}
        return program.stream(str(address), settings, options, **asked)

    (tmp_path / "empty").mkdir()
    (tmp_path / "events.xlsx").write_text("", "utf-8")
    (tmp_path / "items.csv").write_text("item_id,image_uri\n", "utf-8")
    with pytest.raises(RawTableMissing, match="nowhere does not exist: give a file or a folder"):
        stream(tmp_path / "nowhere")
    with pytest.raises(RawTableMissing, match="empty holds no file of events"):
        stream(tmp_path / "empty")
    with pytest.raises(RawTableUnusable, match=r"name it \.parquet, \.csv or \.jsonl"):
        stream(tmp_path / "events.xlsx")
    with pytest.raises(RawTableUnusable, match=r"items\.csv has no column user_id"):
        stream(tmp_path / "items.csv")
    with pytest.raises(RawTableMissing, match="is not a folder: only a folder or Kafka can be followed"):
        stream(tmp_path / "items.csv", following=True)


def test_a_workspace_without_a_store_is_refused_before_anything_is_read(tmp_path):
    write(tmp_path / "one.jsonl", [raw("u", "a", 1)])
    settings = Settings(workspace=str(tmp_path / "ws"), rejected=str(tmp_path / "rejected"))
    with pytest.raises(StoreNotReady, match="run courier materialize first"):
        program.stream(str(tmp_path / "one.jsonl"), settings, beam_runner.options([]), following=False, every=1)
    assert sources.event_files(tmp_path) == [tmp_path / "one.jsonl"]
