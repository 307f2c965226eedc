"""The peers of the bench make the tables that plain Python makes: else their seconds would say nothing."""

import random
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.config import SequencesConfig
from jobs.rules import events as logic
from jobs.rules.histories import snapshots
from jobs.rules.page_views import page_views, pretrain_row

SMALL = SequencesConfig(page_view_size=3, pretrain_history=2, ctr_history=4, max_clicks_per_day=3)


@pytest.fixture
def peer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    yield import_module(request.param)
    sys.modules.pop(request.param)


@pytest.mark.parametrize("peer", ["by_duckdb", "by_polars"], indirect=True)
@pytest.mark.parametrize("seed", range(4))
def test_a_peer_makes_what_plain_python_makes(peer, drawn_events, write_events, tmp_path, seed) -> None:
    rng, out = random.Random(seed), tmp_path / "out"
    events = drawn_events([rng.randrange(10**12) for _ in range(600)])
    write_events(tmp_path / "raw" / "events", events)
    out.mkdir()
    peer.build(tmp_path / "raw", out, SMALL, **({"threads": 1} if peer.__name__ == "by_duckdb" else {}))
    fates, pages = logic.rejections(events, SMALL.max_clicks_per_day), logic.page_keys(events)
    kept = logic.deduplicate([one for one in events if one not in fates])
    clicks, views = logic.clicks_of(kept), page_views(kept, pages)
    assert sorted(map(tuple, table(out, "clicks", "user_id", "item_id", "event_time", "request_id"))) == sorted(
        (one.user_id, one.item_id, one.event_time, one.request_id) for one in clicks
    )
    shown = [
        (view.request_id, view.request_time, one.item_id, one.shown_at, one.position, one.clicked)
        for view in views
        for one in view.shown
    ]
    assert sorted(
        table(out, "impressions", "request_id", "request_time", "item_id", "shown_at", "position", "clicked")
    ) == sorted(shown)
    rows = [(view, pretrain_row(view, own(clicks, view.user_id), 3, 2)) for view in views]
    assert sorted(table(out, "page_views", "request_id", "request_time", "item_ids", "labels", "history_item_ids")) == [
        (view.request_id, view.request_time, list(row.item_ids), list(row.labels), list(row.history_item_ids))
        for view, row in sorted(rows, key=lambda pair: (pair[0].request_id, pair[0].request_time))
    ]
    assert sorted(table(out, "histories", "user_id", "event_timestamp", "history_item_ids")) == [
        (one.user_id, one.valid_from, [item for item, _ in one.history]) for one in snapshots(clicks, SMALL.ctr_history)
    ]


def own(clicks: list[Any], user_id: str) -> list[Any]:
    return [one for one in clicks if one.user_id == user_id]


def table(out: Path, name: str, *columns: str) -> list[tuple[Any, ...]]:
    read = pq.read_table(out / f"{name}.parquet", columns=list(columns)).to_pylist()
    return [tuple(row[column] for column in columns) for row in read]
