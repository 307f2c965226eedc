"""The laws of the sequences that Beam builds, each transform by itself; test_engines.py compares the whole."""

import json
import shutil
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.pvalue import TaggedOutput
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from feature_repo.contract import WINDOWS_DAYS
from jobs.config import IngestConfig, SequencesConfig
from jobs.engines import beam_runner
from jobs.features import offline
from jobs.raw import ingest
from jobs.raw.canonical import canonical_table
from jobs.raw.folder import RawTableUnusable
from jobs.rules import events as logic
from jobs.rules.events import Event
from jobs.rules.histories import history_before, snapshots
from jobs.rules.page_views import PageView, Shown, page_views, time_split
from jobs.rules.statistics import count_in_window, midnight_after, midnight_of, smoothed_ctr
from jobs.sequences.beam import behavior_sequences, histories, item_statistics
from jobs.sequences.beam import page_views as attribution
from jobs.sequences.beam.histories import JoinHistories
from jobs.sequences.beam.item_statistics import CountPerDay, StatisticsAtMidnights
from jobs.sequences.beam.page_views import AttributeToPageViews, BuildPageViews, CapClicks, Deduplicate, LastOfTheFirst
from jobs.sequences.beam.time_split import SplitByTime
from model import artifact

AT = datetime(2024, 3, 1, 12, tzinfo=UTC)
MIDNIGHT = datetime(2024, 3, 2, tzinfo=UTC)
DAY, SECOND, MICRO = timedelta(days=1), timedelta(seconds=1), timedelta(microseconds=1)
HEADER = "user_id,item_id,event_time,event_type,request_id,position"


def event(at: datetime = AT, event_type: str = "click", **changed: Any) -> Event:
    return Event(
        **{"user_id": "u", "item_id": "i", "request_id": "r", "event_time": at, "event_type": event_type} | changed
    )


def shown(at: datetime = AT, **changed: Any) -> Event:
    return event(at, "impression", **{"position": 0} | changed)


class Law:
    """A pipeline in this process; `holds` runs it."""

    def __init__(self) -> None:
        self.pipeline = beam.Pipeline(options=beam_runner.options([]))
        self.count = 0

    def of(self, elements: list[Any]) -> Any:
        self.count += 1
        # Not created in one piece, so that what comes together does not lie together.
        return self.pipeline | f"Create{self.count}" >> beam.Create(elements) | f"Mix{self.count}" >> beam.Reshuffle()

    def says(self, found: Any, expected: list[Any]) -> None:
        self.count += 1
        assert_that(found, equal_to(expected), label=f"Law{self.count}", reify_windows=False)

    def holds(self) -> None:
        beam_runner.wait(self.pipeline)


@pytest.fixture
def law() -> Law:
    return Law()


@settings(max_examples=2, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 10**12), min_size=120, max_size=120))
def test_each_transform_says_what_plain_python_says(drawn_events, codes) -> None:
    law, events, most = Law(), drawn_events(codes), 2
    contradicting = logic.inconsistent(events, logic.page_keys(events))
    surplus = logic.over_the_cap((one for one in events if one not in contradicting), most)
    distinct = logic.deduplicate(one for one in events if one not in contradicting and one not in surplus)
    pages = logic.page_keys(events)

    def placed(some: list[Event]) -> list[tuple[Event, int | None]]:
        return [(one, pages[one][1].toordinal() if one in pages else None) for one in some]

    attributed = law.of(events) | AttributeToPageViews()
    law.says(attributed.accepted, placed([one for one in events if one not in contradicting]))
    law.says(attributed.rejected, [(one, contradicting[one]) for one in events if one in contradicting])
    accepted, refused = attributed.accepted | CapClicks(most)
    law.says(refused, [(one, surplus[one]) for one in events if one in surplus])
    once = accepted | Deduplicate()
    law.says(once, placed(distinct))
    law.says((once | BuildPageViews()).views, page_views(distinct, pages))
    law.holds()


def test_a_page_shown_across_midnight_is_one_page_view_with_its_clicks_of_the_next_day(law: Law) -> None:
    opened, more = shown(MIDNIGHT - MICRO, item_id="a"), shown(MIDNIGHT, item_id="b", position=1)
    soon, too_far = event(MIDNIGHT + DAY - MICRO, item_id="b"), event(MIDNIGHT + DAY, item_id="a")
    placed = law.of([opened, more, soon, too_far]) | AttributeToPageViews()
    found = placed.accepted | BuildPageViews()
    items = (Shown(0, "a", False, opened.event_time), Shown(1, "b", True, more.event_time))
    view = PageView("r", opened.day, "u", opened.event_time, items)

    law.says(found.views, [view])
    # The late click's request was shown the day before it, but on a page of the day before that.
    law.says(found.unmatched, [0, 1])
    law.holds()


def test_a_history_is_strictly_before_its_page_view_and_an_item_stands_once_at_one_moment(law: Law) -> None:
    clicks = [event(AT - SECOND, item_id="b"), event(AT, item_id="a"), event(AT, item_id="a", request_id="q")]
    views = [PageView("p", AT.date(), "u", AT + micros * MICRO, ()) for micros in (-1, 0, 1)]
    walked = (law.of(clicks), law.of(views)) | JoinHistories(2)
    before = (("b", AT - SECOND),)
    law.says(walked.views, [(views[0], before), (views[1], before), (views[2], (("a", AT), *before))])
    law.says(walked.snapshots, snapshots(clicks, 2))
    law.holds()
    assert [history_before(clicks, view.request_time, 2) for view in views][2] == [("a", AT), *before]


def test_a_history_goes_on_over_days_that_settle_one_by_one_and_forgets_what_is_too_old(law: Law) -> None:
    clicks = [event(AT + day * DAY, item_id=f"i{day:02}") for day in range(12)]
    view = PageView("p", (AT + 30 * DAY).date(), "u", AT + 30 * DAY, ())
    walked = (law.of(clicks), law.of([view])) | JoinHistories(5)
    law.says(walked.views, [(view, tuple(history_before(clicks, view.request_time, 5)))])
    law.says(walked.snapshots, snapshots(clicks, 5))
    law.holds()


class OneRequest:
    """Everything of a request that a site says on every page, a click a second; made anew whenever it is read."""

    def __init__(self, clicks: int) -> None:
        self.clicks = clicks

    def __iter__(self) -> Iterator[tuple[bool, Any]]:
        day = AT.date().toordinal()
        for number in range(self.clicks):
            yield False, event(AT + number * SECOND, user_id="u" if number % 2 else "another")
        yield True, (day, (AT, "u"))


def test_a_group_of_any_size_is_judged_without_being_held() -> None:
    def judged(clicks: int) -> tuple[int, int]:
        """How many of the clicks are rejected, and the most bytes that were held meanwhile."""
        tracemalloc.start()
        group = (("r", AT.date().toordinal()), OneRequest(clicks))
        rejected = sum(isinstance(one, TaggedOutput) for one in attribution._judge(group))
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return rejected, held

    (few, little), (many, much) = judged(100), judged(4000)
    assert (few, many) == (50, 2000)
    assert much < 2 * little


def looks_at_events(days: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the walk through one user's days asks when something happened, or whether its day is settled."""
    looks, at, settled_at = [], histories._at, histories.WalkInTime._settled_at
    with monkeypatch.context() as counting:
        counting.setattr(histories, "_at", lambda one: looks.append(one) or at(one))
        counting.setattr(histories.WalkInTime, "_settled_at", lambda *of: looks.append(of) or settled_at(*of))
        law = Law()
        clicks = [event(AT + day * DAY, item_id=f"i{day}") for day in range(days)]
        walked = (law.of(clicks), law.of([])) | JoinHistories(5)
        law.says(walked.snapshots, snapshots(clicks, 5))
        law.holds()
    return len(looks)


def test_a_user_with_four_times_the_days_costs_four_times_the_looks(monkeypatch) -> None:
    few, many = (looks_at_events(days, monkeypatch) for days in (25, 100))
    assert 0 < many <= 4.2 * few


# --- what is combined in any order -----------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 30), max_size=20), min_size=1, max_size=5), st.integers(1, 6))
def test_the_last_click_that_stands_is_found_apart_as_together_and_little_is_held(parts: list[list[int]], most: int):
    first, found = LastOfTheFirst(most), []
    for part in parts:
        held: set[int] = first.create_accumulator()
        for one in part:
            held = first.add_input(held, one)
            assert len(held) <= 2 * most
        found.append(held)
    merged = first.merge_accumulators(found)
    assert len(merged) <= most
    if merged:
        assert first.extract_output(merged) == sorted({one for part in parts for one in part})[:most][-1]


@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(
    st.lists(
        st.builds(
            lambda day, second, micros: MIDNIGHT + day * DAY + second * SECOND + micros * MICRO,
            st.integers(0, 2),
            st.sampled_from([0, 1, 86_399]),
            st.sampled_from([-1, 0, 1]),
        ),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([0.0, 0.3, 0.8]),
)
def test_the_split_by_time_is_exact(times: list[datetime], train: float) -> None:
    law = Law()
    law.says(law.of(times) | SplitByTime(train, 0.1), [time_split(times, train, 0.1)])
    law.holds()


# --- statistics -----------------------------------------------------------------------------------------------------

EDGES = [-31 * DAY, -30 * DAY, -8 * DAY, -7 * DAY, -DAY, timedelta(0), DAY]
HAPPENED = st.lists(
    st.builds(
        lambda item, edge, micros: (item, MIDNIGHT + edge + micros * MICRO),
        st.sampled_from("abc"),
        st.sampled_from(EDGES),
        st.sampled_from([-1, 0, 1]),
    ),
    max_size=40,
)


@settings(max_examples=3, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(HAPPENED, HAPPENED)
def test_the_newest_row_at_any_moment_says_what_plain_counting_says_of_the_windows_before_its_midnight(
    tmp_path_factory, was_shown, was_clicked
) -> None:
    until = midnight_after(MIDNIGHT + 40 * DAY)
    rows = beam_statistics(was_shown, was_clicked, until, tmp_path_factory.mktemp("rows") / "rows")
    shown_at, clicked_at = times_of(was_shown), times_of(was_clicked)
    moments = {at + micros * MICRO for edge in EDGES for at in [MIDNIGHT + edge] for micros in (-1, 0, 1)}
    for item in "abc":
        for at in sorted({*moments, *(one + 7 * DAY for one in moments), until}):
            valid = [row for row in rows[item] if row["event_timestamp"] <= at]
            newest = max(valid, key=lambda row: row["event_timestamp"], default=None)
            for days in WINDOWS_DAYS:
                counts = [count_in_window(times[item], midnight_of(at), days) for times in (shown_at, clicked_at)]
                assert said(newest, days) == (*counts, smoothed_ctr(*counts))


def times_of(happened: list[tuple[str, datetime]]) -> dict[str, list[datetime]]:
    times: dict[str, list[datetime]] = defaultdict(list)
    for item, at in happened:
        times[item].append(at)
    return times


def said(row: dict[str, Any] | None, days: int) -> tuple[float, ...]:
    if row is None:
        return 0, 0, smoothed_ctr(0, 0)
    return tuple(row[f"item_{what}_{days}d"] for what in ("impressions", "clicks", "ctr"))


def beam_statistics(was_shown, was_clicked, until: datetime, path: Path) -> dict[str, list[dict[str, Any]]]:
    law = Law()
    counted = [
        law.of([{"item_id": item, at: moment} for item, moment in happened])
        | f"Count{what}" >> CountPerDay("item_id", what)
        for what, at, happened in (("impressions", "shown_at", was_shown), ("clicks", "event_time", was_clicked))
    ]
    rows = (
        counted
        | beam.Flatten()
        | StatisticsAtMidnights(key="item_id", prefix="item", windows=WINDOWS_DAYS, until=until)
    )
    rows | "Text" >> beam.Map(json.dumps, default=str) | "Write" >> beam.io.WriteToText(str(path))
    law.holds()
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in path.parent.iterdir():
        for row in map(json.loads, file.read_text("utf-8").splitlines()):
            row["event_timestamp"] = datetime.fromisoformat(row["event_timestamp"])
            found[row["item_id"]].append(row)
    return found


# --- the program ----------------------------------------------------------------------------------------------------


def ingested(folder: Path, *lines: str, source: str = "{}") -> Path:
    """What is ingested of a raw folder with these lines of CSV as its events."""
    folder.mkdir()
    (folder / "events.csv").write_text("\n".join([HEADER, *lines]) + "\n", "utf-8")
    (folder / "SOURCE.json").write_text(source, "utf-8")
    ingest.read_tables(raw=folder, raw_digest="a digest", out=folder / "ingested", config=IngestConfig())
    return folder / "ingested"


def test_the_program_writes_an_artifact_whose_tables_the_next_stages_read(tmp_path: Path, capsys) -> None:
    read = ingested(
        tmp_path / "raw",
        "u,a,2024-03-01T12:00:00Z,impression,r,0",
        "u,b,2024-03-01T12:00:00Z,impression,r,1",
        "u,b,2024-03-01T12:00:01Z,click,r,",
        "u,b,2024-03-01T12:00:02Z,purchase,r,",
        "u,b,2024-03-01T12:00:00Z,impression,r,3",  # the same again, further down
        "u,a,2024-03-01T12:00:00Z,impression,r",  # a cell too few
        ",a,2024-03-01T12:00:00Z,impression,r,0",
        source='{"sampled_negatives": true}',
    )
    out = tmp_path / "out"
    called(behavior_sequences.main, "--raw", str(read), "--out", str(out), "--ctr-history", "7")
    manifest = artifact.read(out, kind="sequences")
    assert json.loads(capsys.readouterr().out) == manifest.facts
    assert manifest.config["ctr_history"] == 7
    assert manifest.facts["events_rejected"] == {"bad_row": 1, "null_user_id": 1}
    told = ("events_read", "events_accepted", "duplicates", "clicks", "requests", "impressions", "sampled_negatives")
    assert [manifest.facts[name] for name in told] == [7, 5, 1, 1, 1, 2, True]
    told = ("conversions", "shown_again", "page_view_items", "beyond_page_view_size", "requests_by_period")
    assert [manifest.facts[name] for name in told] == [1, 0, 2, 0, {"train": 0, "valid": 0, "test": 1}]
    tables = {path.name: pq.read_table(path) for path in out.iterdir() if path.is_dir()}
    [view] = tables["page_views"].to_pylist()
    assert (view["item_ids"], view["labels"], view["history_item_ids"]) == (["a", "b"], [0, 1], [])
    assert tables["histories"].to_pylist()[0]["event_timestamp"] == AT + SECOND + MICRO
    assert tables["conversions"].to_pylist()[0]["event_type"] == "purchase"
    wanted = offline.source_schema(offline.USER_HISTORY)
    assert [plain(one.type) for one in tables["histories"].schema] == [plain(one.type) for one in wanted]
    called(item_statistics.main, "--sequences", str(out), "--out", str(tmp_path / "counts"))
    [row] = [one for one in pq.read_table(tmp_path / "counts" / "item_statistics").to_pylist() if one["item_id"] == "b"]
    assert (row["event_timestamp"], row["item_clicks_1d"], row["item_ctr_7d"]) == (MIDNIGHT, 1, 2 / 21)
    again = written_again(tmp_path / "counts", lambda: item_statistics.build(sequences=out, out=tmp_path / "counts"))
    assert again.inputs == {"sequences": artifact.digest(out)}


def written_again(out: Path, build: Callable[[], artifact.Manifest]) -> artifact.Manifest:
    """Build where an artifact of other parts lies: none of its rows may stay."""
    before = {name: pq.read_table(out / name).num_rows for name in ("item_statistics", "user_statistics")}
    for name in before:
        shutil.copy(next((out / name).iterdir()), out / name / "part-00007-of-00009.parquet")
    manifest = build()
    assert {name: pq.read_table(out / name).num_rows for name in before} == before
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]
    return manifest


def called(main: Callable[[list[str]], None], *argv: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([*argv])
    assert not end.value.code


def plain(kind: pa.DataType) -> str:
    return str(kind).replace("item:", "element:").replace(" not null", "")


def refused(folder: Path, out: Path, told: str) -> None:
    given = {"events": canonical_table(folder, "events"), "sampled_negatives": False, "inputs": {}}
    with pytest.raises(RawTableUnusable, match=told) as refusal:
        behavior_sequences.build(**given, out=out, config=SequencesConfig())
    assert "while running" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not out.exists()


@pytest.mark.parametrize("line", ["u,a,2024-03-01T12:00:00Z,click,r,", "u,a,2024-03-01T12:00:00Z,impression,,0"])
def test_events_without_an_accepted_impression_are_refused_in_one_sentence(tmp_path, line) -> None:
    refused(ingested(tmp_path / "raw", line), tmp_path / "out", "no impression is accepted")


def test_a_file_that_proves_damaged_while_it_is_read_is_refused_in_one_sentence(write_events, tmp_path) -> None:
    shown = Event(user_id="u" * 99, item_id="a", event_time=AT, event_type="impression", request_id="r", position=0)
    file = write_events(tmp_path / "raw", [shown]) / "events.parquet"
    data = bytearray(file.read_bytes())
    data[4:60] = bytes(56)  # of the first page; what a file says of itself stands at its end
    file.write_bytes(data)
    refused(tmp_path / "raw", tmp_path / "out", r"events\.parquet is damaged")
