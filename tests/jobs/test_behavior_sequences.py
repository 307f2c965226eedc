"""The sequences artifact says what plain Python says, on events that tie, repeat, contradict and touch every edge."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jobs.config import SequencesConfig
from jobs.logic import events as logic
from jobs.logic.events import Event
from jobs.logic.histories import snapshots
from jobs.logic.page_views import page_views, pretrain_row, time_split, unmatched_clicks
from jobs.sources.raw import RawTableUnusable
from model import artifact

pytestmark = pytest.mark.usefixtures("spark")
ROOT = Path(__file__).parents[2]
SMALL = SequencesConfig(page_view_size=3, pretrain_history=2, ctr_history=4)
AT = datetime(2024, 3, 1, 12, tzinfo=UTC)


def built(raw: Path, out: Path, config: SequencesConfig = SMALL) -> artifact.Manifest:
    from jobs.spark.behavior_sequences import build

    return build(raw=raw, raw_digest="a digest", out=out, config=config)


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder).to_pylist()


def by(*names: str):
    return lambda row: tuple(row[name] for name in names)


def plain_impressions(views, split) -> list[dict]:
    return [
        {
            "request_id": view.request_id,
            "user_id": view.user_id,
            "item_id": one.item_id,
            "request_time": view.request_time,
            "position": one.position,
            "clicked": int(one.clicked),
            "period": split.period(view.request_time),
        }
        for view in views
        for one in view.shown
    ]


def plain_page_views(views, split, clicks) -> list[dict]:
    found = []
    for view in views:
        own = [click for click in clicks if click.user_id == view.user_id]
        row = pretrain_row(view, own, SMALL.page_view_size, SMALL.pretrain_history)
        found.append(
            {
                "request_id": view.request_id,
                "user_id": view.user_id,
                "request_time": view.request_time,
                "period": split.period(view.request_time),
                "item_ids": list(row.item_ids),
                "labels": list(row.labels),
                "history_item_ids": list(row.history_item_ids),
            }
        )
    return found


def plain_histories(clicks) -> list[dict]:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return [
        {
            "user_id": one.user_id,
            "event_timestamp": one.valid_from,
            "history_item_ids": [item for item, _ in one.history],
            "history_clicked_at": [(at - epoch) // timedelta(microseconds=1) for _, at in one.history],
        }
        for one in snapshots(clicks, SMALL.ctr_history)
    ]


@settings(
    max_examples=2,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(st.integers(0, 10**12), min_size=400, max_size=400))
def test_spark_builds_what_plain_python_builds(drawn_events, write_events, tmp_path, codes) -> None:
    raw_events = drawn_events(codes)
    manifest = built(write_events(tmp_path / "raw", raw_events), tmp_path / "sequences")
    accepted = logic.accept(raw_events)
    events = logic.deduplicate(accepted)
    clicks, views = logic.clicks_of(events), page_views(events)
    split = time_split([view.request_time for view in views], SMALL.train_fraction, SMALL.valid_fraction)
    read = {name: rows(tmp_path / "sequences" / name) for name in ("impressions", "page_views", "histories", "clicks")}
    assert sorted(read["impressions"], key=by("request_id", "position", "item_id")) == plain_impressions(views, split)
    assert sorted(read["page_views"], key=by("request_id")) == plain_page_views(views, split, clicks)
    assert sorted(read["histories"], key=by("user_id", "event_timestamp")) == plain_histories(clicks)
    assert len(read["clicks"]) == len(clicks)
    assert {tuple(row.values()) for row in read["clicks"]} == {
        (one.user_id, one.item_id, one.event_time, one.request_id) for one in clicks
    }
    facts = manifest.facts
    assert facts["events_read"] == len(raw_events)
    assert facts["events_accepted"] == len(accepted)
    assert sum(facts["events_rejected"].values()) == len(raw_events) - len(accepted)
    assert facts["duplicates"] == len(accepted) - len(events)
    assert facts["unmatched_clicks"] == len(unmatched_clicks(events))
    assert (facts["requests"], facts["clicks"]) == (len(views), len(clicks))
    assert facts["impressions"] == sum(len(view.shown) for view in views)
    assert facts["users"] == len({one.user_id for one in events})
    assert facts["items"] == len({one.item_id for one in events})
    assert facts["splits"] == {
        "start": events and min(one.event_time for one in events).isoformat(),
        "valid_start": split.valid_start.isoformat(),
        "test_start": split.test_start.isoformat(),
        "end": (max(one.event_time for one in events) + timedelta(microseconds=1)).isoformat(),
    }


def shown(item_id: str, position: int, at: datetime = AT, request_id: str = "r") -> Event:
    return Event(
        user_id="u", item_id=item_id, event_time=at, event_type="impression", request_id=request_id, position=position
    )


def test_the_same_events_in_another_order_give_the_same_bytes(drawn_events, write_events, tmp_path) -> None:
    events = drawn_events([n * 7_919_317_003 % 10**12 for n in range(150)])
    one = built(write_events(tmp_path / "one", events), tmp_path / "out" / "one")
    other = built(write_events(tmp_path / "other", events[::-1]), tmp_path / "out" / "other")
    assert one.files == other.files


def test_columns_and_types_are_those_that_the_next_stages_read(write_events, tmp_path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "SOURCE.json").write_text('{"sampled_negatives": true}')
    manifest = built(write_events(tmp_path / "raw", [shown("a", 0)]), tmp_path / "out")  # and not one click
    when = pa.timestamp("us", tz="UTC")
    assert manifest.facts["sampled_negatives"] is True
    schemas = {name: pq.read_table(tmp_path / "out" / name).schema for name in ("impressions", "histories", "clicks")}
    assert schemas["impressions"].field("request_time").type == when
    assert schemas["impressions"].field("position").type == pa.int32()
    assert schemas["impressions"].field("clicked").type == pa.int8()
    assert schemas["histories"].field("event_timestamp").type == when
    assert schemas["histories"].field("history_clicked_at").type.value_type == pa.int64()
    assert schemas["clicks"].names == ["user_id", "item_id", "event_time", "request_id"]
    [view] = rows(tmp_path / "out" / "page_views")
    assert (view["item_ids"], view["labels"], view["history_item_ids"]) == (["a"], [0], [])
    assert pq.read_table(tmp_path / "out" / "page_views").schema.field("labels").type.value_type == pa.int8()


def test_events_without_an_impression_are_refused_in_one_sentence(write_events, tmp_path) -> None:
    click = Event(user_id="u", item_id="a", event_time=AT, event_type="click", request_id="r")
    with pytest.raises(RawTableUnusable, match="no impression is accepted"):
        built(write_events(tmp_path / "raw", [click]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_runs_as_a_file_as_spark_submit_runs_it(tmp_path) -> None:
    command = [sys.executable, str(ROOT / "jobs/spark/behavior_sequences.py"), "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert "--raw" in said
    assert "--out" in said
