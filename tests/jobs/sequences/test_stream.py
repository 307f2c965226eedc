"""A stream's parts hold what a batch over the same events writes, day by day; what comes too late lies apart."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream as ScriptedStream
from apache_beam.transforms.window import TimestampedValue

from jobs.config import SequencesConfig
from jobs.engines import beam_runner as running
from jobs.engines.beam_runner import UnknownOption
from jobs.features.click_stream.sources import KafkaUnavailable
from jobs.raw.folder import RawTableMissing
from jobs.rules.events import TOLERANCE
from jobs.rules.sequence_tables import PERIOD, TABLES
from jobs.sequences.beam import behavior_sequences, day_parts
from jobs.sequences.beam import stream as sequence_stream
from jobs.sequences.beam.stream import Settings, StreamRefused

SMALL = SequencesConfig(page_view_size=3, pretrain_history=2, ctr_history=4, max_clicks_per_day=3)
NOW = datetime(2025, 1, 1, tzinfo=UTC)
MIDNIGHT = datetime(2024, 3, 1, tzinfo=UTC)
DAY, HOUR, MICRO = timedelta(days=1), timedelta(hours=1), timedelta(microseconds=1)
COLUMNS = ("user_id", "item_id", "event_time", "event_type", "request_id", "position")

Rows = list[dict[str, Any]]


def event(at: datetime, kind: str = "click", request: str = "r", item: str = "i", user: str = "u") -> dict[str, Any]:
    return dict(zip(COLUMNS, (user, item, at.isoformat(), kind, request, "0"), strict=True))


def write_lines(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def parts(out: Path, table: str) -> dict[str, Rows]:
    """A stream's rows of a table, by day."""
    found: dict[str, Rows] = {}
    for path in sorted((out / table).glob("*/*.parquet")):
        found.setdefault(path.parent.name, []).extend(pq.read_table(path, partitioning=None).to_pylist())
    return found


def bag(rows: Rows) -> Counter[str]:
    return Counter(str({name: value for name, value in row.items() if name != PERIOD}) for row in rows)


def moment(row: dict[str, Any]) -> datetime:
    """When what a row tells of happened; a snapshot is valid a microsecond after its click."""
    known = row.get("request_time") or row.get("event_time")
    return known if known is not None else row["event_timestamp"] - MICRO


def called(*argv: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as end:
        sequence_stream.main([*argv])
    assert (end.value.code or 0) == code


def test_what_lies_in_a_watched_folder_comes_out_as_the_batch_over_it_does_each_row_in_its_day(
    drawn_events, tmp_path, capsys
) -> None:
    codes = range(7, 10**12, 10**12 // 250)
    drawn = drawn_events(codes)
    rows = [event(one.event_time, one.event_type, one.request_id, one.item_id, one.user_id) for one in drawn]
    ahead = datetime.now(UTC) + TOLERANCE + DAY
    raw = tmp_path / "raw" / "events"
    write_lines(raw / "a.jsonl", [*rows[::2], event(ahead), {**rows[0], "user_id": ""}])
    write_lines(raw / "b.jsonl", rows[1::2])
    options = ["--page-view-size=3", "--pretrain-history=2", "--ctr-history=4", "--max-clicks-per-day=3"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    called("--from", str(raw), "--out", str(out), "--seconds=1", "--every=1", *options)
    facts = behavior_sequences.build(raw=raw.parent, raw_digest="", out=whole, config=SMALL).facts
    answer = json.loads(capsys.readouterr().out)
    assert answer["read"] == facts["events_read"]
    assert answer["rejected"] == facts["events_rejected"]
    assert {"future_event_time", "null_user_id", "too_many_clicks"} <= set(answer["rejected"])
    assert answer["rows"]["late"] == 0
    for table in TABLES:
        by_day = parts(out, table)
        expected = pq.read_table(whole / table).to_pylist()
        assert bag([row for rows in by_day.values() for row in rows]) == bag(expected)
        assert len(expected) == answer["rows"][table] > 0
        for day, rows in by_day.items():
            if table != "rejected":
                assert {moment(row).date().isoformat() for row in rows} == {day}
    assert "undated" in parts(out, "rejected")
    assert answer["parts"] == len(list(out.glob("*/*/part-*.parquet"))) == len(list(out.glob("*/*/*")))


def test_days_are_let_go_as_the_watermark_passes_them_and_what_comes_after_is_late(tmp_path) -> None:
    page = [event(MIDNIGHT + HOUR, "impression"), event(MIDNIGHT + 2 * HOUR)]
    in_time, late = event(MIDNIGHT + 3 * HOUR, item="in time"), event(MIDNIGHT + 4 * HOUR, item="late")
    tomorrow = event(MIDNIGHT + 30 * HOUR, item="tomorrow")
    closes = MIDNIGHT + DAY + 6 * HOUR  # the first day, with the lateness
    stream = ScriptedStream().advance_watermark_to((MIDNIGHT - DAY).timestamp())
    for watermark, rows in (
        (MIDNIGHT + 12 * HOUR, page),
        (closes - timedelta(milliseconds=1), [in_time]),
        (closes, [late, tomorrow]),
        (MIDNIGHT + 9 * DAY, []),
    ):
        at = watermark.timestamp()
        stream = stream.advance_watermark_to(at)
        if rows:
            stream = stream.add_elements([TimestampedValue((row, None), at) for row in rows])
        stream = stream.advance_processing_time(2)
    options = PipelineOptions(["--runner=BundleBasedDirectRunner", "--streaming"])
    settings = Settings(out=tmp_path, lateness=6 * HOUR, shards=1, gather_seconds=1)
    pipeline = beam.Pipeline(options=options)
    wired = pipeline | stream.advance_watermark_to_infinity().advance_processing_time(2)
    sequence_stream.wire(wired, settings, SMALL, as_of=NOW)
    pipeline.run().wait_until_finish()
    clicks = {day: [row["item_id"] for row in rows] for day, rows in parts(tmp_path, "clicks").items()}
    assert {day: sorted(items) for day, items in clicks.items()} == {
        "2024-03-01": ["i", "in time"],
        "2024-03-02": ["tomorrow"],
    }
    assert [row["item_id"] for row in parts(tmp_path, "late")["2024-03-01"]] == ["late"]
    assert [row["labels"] for row in parts(tmp_path, "page_views")["2024-03-01"]] == [[1]]
    newest = max(parts(tmp_path, "histories")["2024-03-02"], key=lambda row: row["event_timestamp"])
    assert newest["history_item_ids"] == ["tomorrow", "in time", "i"]


def test_a_part_that_is_written_again_is_the_same_file_whatever_the_order_of_its_rows(tmp_path) -> None:
    clicks = [{"user_id": "u", "item_id": item, "event_time": MIDNIGHT, "request_id": "r"} for item in ("a", "b", "b")]
    paths = {
        day_parts._write((("2024-03-01", 0), rows), table="clicks", out=str(tmp_path))
        for rows in (clicks, clicks[::-1], iter(clicks))
    }
    assert [str(path) for path in (tmp_path / "clicks" / "2024-03-01").iterdir()] == [*paths]


@pytest.mark.parametrize(
    ("options", "refusal", "told"),
    [
        (["--from", "{raw}"], StreamRefused, "lets no day go before its source ends: say for how long with --seconds"),
        (["--from", "{raw}/nowhere", "--seconds=1"], RawTableMissing, "is not a folder: a stream reads a folder"),
        (["--from", "kafka://a:9092/t"], KafkaUnavailable, "needs a runner that streams"),
        (["--from", "{raw}", "--second=1"], UnknownOption, "--second is known neither .*: say --seconds"),
        (
            ["--from", "{raw}", "--seconds=1", "--out", "{full}"],
            StreamRefused,
            "holds parts already",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_the_cure(options, refusal, told, tmp_path) -> None:
    raw, full = tmp_path / "raw", tmp_path / "full"
    raw.mkdir()
    (full / "late").mkdir(parents=True)
    given = [word.format(raw=raw, full=full) for word in options]
    with pytest.raises(refusal, match=told):
        sequence_stream.main(["--out", str(tmp_path / "out"), *given])


def test_on_a_runner_that_streams_rows_are_gathered_by_the_clock_and_the_watch_needs_no_end(
    monkeypatch, tmp_path
) -> None:
    begun: list[Any] = []

    def begin(_: Any, settings: Settings, *rest: Any) -> dict[str, int]:
        begun.append((settings, rest[-1]))
        return {}

    monkeypatch.setattr(sequence_stream, "stream", begin)
    called("--from", str(tmp_path), "--out", str(tmp_path / "out"), "--runner=FlinkRunner", "--gather-seconds=30")
    [(settings, options)] = begun
    assert settings.gather_seconds == 30
    assert not running.is_local(options)
