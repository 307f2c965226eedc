"""The sequences artifact says what plain Python says, on events that tie, repeat, contradict and touch every edge."""

import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jobs.config import SequencesConfig
from jobs.raw.canonical import canonical_table
from jobs.raw.folder import RawTableUnusable
from jobs.rules import events as logic
from jobs.rules.events import Event
from jobs.rules.histories import snapshots
from jobs.rules.page_views import page_views, pretrain_row, time_split, unmatched_clicks
from jobs.rules.sequence_tables import TABLES
from jobs.sequences.build import build
from jobs.sequences.duckdb import behavior_sequences as on_duckdb
from model import artifact
from model.errors import CourierError

ROOT = Path(__file__).parents[3]
SMALL = SequencesConfig(page_view_size=3, pretrain_history=2, ctr_history=4, max_clicks_per_day=3)
AT = datetime(2024, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


Build = Callable[..., artifact.Manifest]


@pytest.fixture(scope="module", params=["duckdb", pytest.param("spark", marks=pytest.mark.slow)])
def built(request) -> Build:
    """The stage by an engine: (raw, out, config) -> manifest."""
    if request.param == "spark":
        request.getfixturevalue("spark")

    def build_with(raw: Path, out: Path, config: SequencesConfig = SMALL) -> artifact.Manifest:
        given = {"ingest": raw, "raw": raw, "workspace": out.parent / "no workspace"}
        return build(**given, out=out, config=config, engine=request.param)

    return build_with


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
            "shown_at": one.shown_at,
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
@given(st.integers(0, 2**32))
def test_an_engine_builds_what_plain_python_builds(built, drawn_events, write_events, tmp_path, seed) -> None:
    rng = random.Random(seed)
    raw_events = drawn_events([rng.randrange(10**12) for _ in range(600)])
    manifest = built(write_events(tmp_path / "raw", raw_events), tmp_path / "sequences")
    fates, pages = logic.rejections(raw_events, SMALL.max_clicks_per_day), logic.page_keys(raw_events)
    assert set(fates.values()) == {"request_of_another_user", "click_before_request", "too_many_clicks"}
    accepted = [one for one in raw_events if one not in fates]
    events = logic.deduplicate(accepted)
    clicks, views = logic.clicks_of(events), page_views(events, pages)
    assert len(views) > len({view.request_id for view in views})
    split = time_split([view.request_time for view in views], SMALL.train_fraction, SMALL.valid_fraction)
    read = {name: rows(tmp_path / "sequences" / name) for name in TABLES}
    of_page = by("request_id", "request_time", "position", "item_id")
    assert sorted(read["impressions"], key=of_page) == plain_impressions(views, split)
    assert sorted(read["page_views"], key=by("request_id", "request_time")) == plain_page_views(views, split, clicks)
    assert sorted(read["histories"], key=by("user_id", "event_timestamp")) == plain_histories(clicks)
    assert len(read["clicks"]) == len(clicks)
    assert {tuple(row.values()) for row in read["clicks"]} == {
        (one.user_id, one.item_id, one.event_time, one.request_id) for one in clicks
    }
    assert sorted(tuple(row.values()) for row in read["conversions"]) == sorted(
        (one.user_id, one.item_id, one.event_time, one.event_type, one.request_id)
        for one in logic.conversions_of(events)
    )
    assert Counter(row["reason"] for row in read["rejected"]) == Counter(
        fates[one] for one in raw_events if one in fates
    )
    assert_facts(manifest.facts, raw_events, events, split, fates)
    facts = manifest.facts
    assert facts["unmatched_clicks"] == len(unmatched_clicks(events, pages))
    assert (facts["requests"], facts["clicks"]) == (len(views), len(clicks))
    assert facts["impressions"] == sum(len(view.shown) for view in views)
    seen = [one for one in events if one.event_type == "impression"]
    assert facts["shown_again"] == len(seen) - len({(pages[one], one.item_id) for one in seen}) > 0
    assert facts["conversions"] == len(logic.conversions_of(events))
    assert facts["page_view_items"] == sum(len(row["item_ids"]) for row in read["page_views"])
    assert facts["beyond_page_view_size"] == facts["impressions"] - facts["page_view_items"] > 0
    periods = Counter(split.period(view.request_time) for view in views)
    assert facts["requests_by_period"] == {name: periods[name] for name in ("train", "valid", "test")}


def assert_facts(facts, raw_events, events, split, fates) -> None:
    capped = [one for one in raw_events if fates.get(one) == "too_many_clicks"]
    before_the_cap = [one for one in raw_events if fates.get(one, "too_many_clicks") == "too_many_clicks"]
    per_day = Counter((one.user_id, one.day) for one in logic.clicks_of(logic.deduplicate(before_the_cap)))
    assert facts["capped_users"] == {
        "users": len({one.user_id for one in capped}),
        "most_clicks": max(per_day.values()),
    }
    refused = Counter(fates[one] for one in raw_events if one in fates)
    assert facts["events_read"] == len(raw_events)
    assert facts["events_rejected"] == dict(refused)
    assert facts["events_accepted"] == len(raw_events) - refused.total()
    assert facts["duplicates"] == facts["events_accepted"] - len(events)
    assert facts["users"] == len({one.user_id for one in events})
    assert facts["items"] == len({one.item_id for one in events})
    assert facts["splits"] == {
        "start": min(one.event_time for one in events).isoformat(),
        "valid_start": split.valid_start.isoformat(),
        "test_start": split.test_start.isoformat(),
        "end": (max(one.event_time for one in events) + timedelta(microseconds=1)).isoformat(),
    }


def shown(item_id: str, position: int, at: datetime = AT, request_id: str = "r") -> Event:
    return Event(
        user_id="u", item_id=item_id, event_time=at, event_type="impression", request_id=request_id, position=position
    )


@pytest.fixture(scope="module")
def one_build(built, drawn_events, write_events, tmp_path_factory) -> tuple[list[Event], Path]:
    """600 events, and the sequences artifact built of them."""
    folder = tmp_path_factory.mktemp("one")
    events = drawn_events([n * 7_919_317_003 % 10**12 for n in range(600)])
    built(write_events(folder / "raw", events), folder / "out")
    return events, folder / "out"


def test_the_same_events_in_another_order_give_the_same_bytes(built, one_build, write_events, tmp_path) -> None:
    events, folder = one_build
    other = built(write_events(tmp_path / "other", events[::-1]), tmp_path / "out")
    assert artifact.read(folder, kind="sequences").files == other.files


def test_each_attributed_click_labels_exactly_one_page_view_and_is_not_in_its_history(one_build) -> None:
    events, folder = one_build
    labels = Counter((row["request_id"], row["request_time"], row["item_id"]) for row in rows(folder / "impressions"))
    assert set(labels.values()) == {1}
    clicked = [row for row in rows(folder / "impressions") if row["clicked"]]
    at = {(row["request_id"], row["item_id"], row["event_time"]) for row in rows(folder / "clicks")}
    attributed = set()
    for row in clicked:
        after = {
            key
            for key in at
            if key[:2] == (row["request_id"], row["item_id"]) and is_soon_after(row["request_time"], key[2])
        }
        assert after
        assert not after & attributed
        attributed |= after
    facts = artifact.read(folder, kind="sequences").facts
    assert len(attributed) == facts["clicks"] - facts["unmatched_clicks"]
    assert_histories_precede(folder)
    assert events


def is_soon_after(shown: datetime, clicked: datetime) -> bool:
    """Whether a click may be attributed to a page view: not before it, and on its day or the next."""
    return shown <= clicked and (clicked.date() - shown.date()).days <= 1


def assert_histories_precede(folder: Path) -> None:
    """No page view knows a click of its own moment or later: its history is that of the last snapshot valid by then."""
    snapshots_of: dict[str, list[dict]] = {}
    for row in sorted(rows(folder / "histories"), key=by("event_timestamp")):
        snapshots_of.setdefault(row["user_id"], []).append(row)
    for view in rows(folder / "page_views"):
        valid = [one for one in snapshots_of.get(view["user_id"], []) if one["event_timestamp"] <= view["request_time"]]
        newest = valid[-1]["history_item_ids"] if valid else []
        assert view["history_item_ids"] == newest[: SMALL.pretrain_history]


def test_a_history_is_as_long_as_there_are_clicks_and_never_longer_than_asked(one_build) -> None:
    _, folder = one_build
    clicked = {(row["user_id"], row["item_id"], row["event_time"]) for row in rows(folder / "clicks")}
    for row in rows(folder / "histories"):
        before = sum(user == row["user_id"] and at < row["event_timestamp"] for user, _, at in clicked)
        assert len(row["history_item_ids"]) == len(row["history_clicked_at"]) == min(before, SMALL.ctr_history)


def test_a_history_of_a_thousand_clicks_is_carried(built, write_events, tmp_path) -> None:
    clicks = [
        Event(user_id="u", item_id=f"i{n}", event_time=AT + n * SECOND, event_type="click", request_id=f"r{n}")
        for n in range(1200)
    ]
    page = shown("a", 0, AT + timedelta(hours=1))
    raw = write_events(tmp_path / "raw", [*clicks, page])
    built(raw, tmp_path / "out", SequencesConfig(ctr_history=1000, pretrain_history=1000, max_clicks_per_day=1150))
    [view] = rows(tmp_path / "out" / "page_views")
    assert view["history_item_ids"] == [f"i{n}" for n in range(1149, 149, -1)]
    assert max(len(row["history_item_ids"]) for row in rows(tmp_path / "out" / "histories")) == 1000


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ctr_history": 1001}, "ctr_history is 1001: give 1 to 1000"),
        ({"pretrain_history": 0}, "pretrain_history is 0: give 1 to 1000"),
        ({"max_clicks_per_day": 0}, "max_clicks_per_day is 0: give at least 1"),
    ],
)
def test_a_history_too_long_or_empty_is_refused(changed, said) -> None:
    with pytest.raises(CourierError, match=said):
        SequencesConfig(**changed)


def test_columns_and_types_are_those_that_the_next_stages_read(built, write_events, tmp_path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "SOURCE.json").write_text('{"sampled_negatives": true}', "utf-8")
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


def test_events_without_an_impression_are_refused_in_one_sentence(built, write_events, tmp_path) -> None:
    click = Event(user_id="u", item_id="a", event_time=AT, event_type="click", request_id="r")
    ahead = replace(click, event_time=datetime(2190, 1, 1, tzinfo=UTC))
    told = "no impression is accepted, .*: 2 events hold 1 clicks and 0 carts .* 1 future_event_time; check"
    with pytest.raises(RawTableUnusable, match=told):
        built(write_events(tmp_path / "raw", [click, ahead]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_events_none_of_which_is_accepted_are_refused_with_their_number_and_reasons(
    built, write_events, tmp_path
) -> None:
    ahead = [shown("a", n, datetime(2190, 1, 1, tzinfo=UTC)) for n in range(2)]
    with pytest.raises(RawTableUnusable, match=r"none of 3 events is accepted \(2 future_event_time, 1 null_item_id\)"):
        built(write_events(tmp_path / "raw", [*ahead, shown("", 0)]), tmp_path / "out")


def test_page_views_of_one_moment_are_refused_with_the_moment_and_their_number(built, write_events, tmp_path) -> None:
    views = [shown("a", 0, AT, f"r{n}") for n in range(9)] + [shown("a", 0, AT + SECOND, "later")]
    with pytest.raises(RawTableUnusable, match=r"of 10 page views so many .* one moment, 2024-03-01T12:00:00\+00"):
        built(write_events(tmp_path / "raw", views), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    earlier = shown("a", 0, AT - SECOND, "earlier")
    manifest = built(write_events(tmp_path / "raw", [earlier, *views]), tmp_path / "out")
    assert manifest.facts["requests_by_period"] == {"train": 1, "valid": 0, "test": 10}


def test_every_row_of_an_endless_page_is_in_a_count(built, write_events, tmp_path) -> None:
    endless = [shown(f"i{n:02}", n) for n in range(20)]
    click = Event(user_id="u", item_id="i19", event_time=AT + SECOND, event_type="click", request_id="r")
    again, cart = shown("i00", 7, AT + SECOND), replace(click, event_type="cart")
    foreign = replace(click, user_id="w")
    raw = write_events(tmp_path / "raw", [*endless, endless[3], again, click, click, cart, foreign])
    facts = built(raw, tmp_path / "out").facts
    names = ("events_read", "events_accepted", "duplicates", "impressions", "shown_again", "clicks", "conversions")
    assert [facts[name] for name in names] == [26, 25, 2, 20, 1, 1, 1]
    assert facts["events_rejected"] == {"request_of_another_user": 1}
    assert (facts["page_view_items"], facts["beyond_page_view_size"]) == (3, 17)
    assert facts["requests_by_period"] == {"train": 0, "valid": 0, "test": 1}
    [view] = rows(tmp_path / "out" / "page_views")
    assert (view["item_ids"], view["labels"]) == (["i00", "i01", "i19"], [0, 0, 1])


# --- DuckDB's parts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(write_events, drawn_events, tmp_path_factory) -> Path:
    rng = random.Random(3)
    return write_events(tmp_path_factory.mktemp("many"), drawn_events([rng.randrange(10**12) for _ in range(3000)]))


def by_duckdb(raw: Path, out: Path, **options: int) -> artifact.Manifest:
    given = {"events": canonical_table(raw, "events"), "sampled_negatives": False, "inputs": {}}
    return on_duckdb.build(**given, out=out, config=SMALL, as_of=AT + timedelta(days=60), **options)


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 7}, {"threads": 2, "memory": 60 * 2**20}])
def test_neither_threads_nor_memory_change_a_byte(many, tmp_path, options) -> None:
    assert by_duckdb(many, tmp_path / "other", **options).files == by_duckdb(many, tmp_path / "one").files


def test_a_table_is_cut_into_parts_of_about_so_many_rows_that_are_sorted_as_a_whole(
    many, tmp_path, monkeypatch
) -> None:
    by_duckdb(many, tmp_path / "whole")
    monkeypatch.setattr(on_duckdb, "PART_ROWS", 50)
    monkeypatch.setattr(on_duckdb, "PART_SIZES", {"histories": 20})
    by_duckdb(many, tmp_path / "parts")
    for name, table in TABLES.items():
        parts = [rows(path) for path in sorted((tmp_path / "parts" / name).iterdir())]
        together = [row for part in parts for row in part]
        assert together == rows(tmp_path / "whole" / name)
        assert together == sorted(together, key=by(*table.by, *table.then))
        assert len(parts) > 2
        keys = [{row[key] for row in part} for part in parts for key in table.by]
        if name not in ("impressions", "page_views"):  # a request_id may have two page views, and those lie apart
            assert all(not one & other for one, other in itertools.pairwise(keys))


def test_a_build_that_fails_leaves_nothing_behind(many, tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(on_duckdb, "write_tables", refuse)
    with pytest.raises(KeyboardInterrupt):
        by_duckdb(many, tmp_path / "out" / "sequences")
    assert list((tmp_path / "out").iterdir()) == []


# --- Spark's program ------------------------------------------------------------------------------------------------


def test_it_runs_as_a_file_as_spark_submit_runs_it(tmp_path) -> None:
    command = [sys.executable, str(ROOT / "jobs/sequences/spark/behavior_sequences.py"), "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert "--raw" in said
    assert "--out" in said
