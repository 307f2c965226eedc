"""Days added one by one are the days of one back-fill, and together what a build from all raw events writes."""

import functools
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import SequencesConfig
from jobs.raw.canonical import canonical_table
from jobs.rules import events as logic
from jobs.rules.events import Event
from jobs.rules.page_views import PageView, page_views
from jobs.sequences.build import build
from jobs.sequences.daily import build as daily_build
from jobs.sequences.daily import log as daily_log
from jobs.sequences.daily.build import add_days, refuse_to_leave_out
from jobs.sequences.daily.log import DailyLogError, Plan, Watermark, asked_days, plan, read_watermark
from model import artifact

SMALL = SequencesConfig(page_view_size=3, pretrain_history=2, ctr_history=4, max_clicks_per_day=3)
FIRST = date(2024, 3, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(10)]
LAST = DAYS[5]  # of the raw events
LATE = {"user_id": "u9", "item_id": "y", "request_id": "r91"}
DAY, SECOND = timedelta(days=1), timedelta(seconds=1)


# --- which days -----------------------------------------------------------------------------------------------------


def mark(last: int) -> Watermark:
    return Watermark(first=FIRST, last=DAYS[last], config={}, sampled_negatives=False)


def test_a_new_day_is_written_with_the_two_before_it_and_read_with_the_two_before_those() -> None:
    todo = plan(mark(5), DAYS[6], DAYS[6])
    assert todo == Plan(first=FIRST, last=DAYS[6], write_from=DAYS[4])
    assert todo.read_from == DAYS[2]
    assert todo.days == DAYS[4:7]


def test_a_day_that_is_done_is_computed_again_with_all_that_follow_it() -> None:
    assert plan(mark(8), DAYS[3], DAYS[3]) == Plan(first=FIRST, last=DAYS[8], write_from=DAYS[1])


def test_a_log_begins_where_it_is_told_to_and_may_be_lengthened_backwards() -> None:
    assert plan(None, DAYS[2], DAYS[4]).days == DAYS[2:5]
    begun = Watermark(first=DAYS[4], last=DAYS[6], config={}, sampled_negatives=False)
    assert plan(begun, DAYS[1], DAYS[2]) == Plan(first=DAYS[1], last=DAYS[6], write_from=DAYS[1])


def test_a_gap_is_refused_with_the_command_that_fills_it() -> None:
    with pytest.raises(DailyLogError, match="`courier sequences --from 2024-03-04 --to 2024-03-06`"):
        plan(mark(2), DAYS[5], DAYS[5])


def test_half_a_range_and_a_range_backwards_are_refused() -> None:
    at = datetime(2024, 3, 2)  # noqa: DTZ001 (as the command line reads a day)
    assert asked_days(None, None, None) is None
    assert asked_days(at, None, None) == (DAYS[1], DAYS[1])
    for asked in ((None, at, None), (None, None, at), (at, at, at)):
        with pytest.raises(DailyLogError, match="--date alone, or both"):
            asked_days(*asked)
    with pytest.raises(DailyLogError, match="lies before"):
        plan(None, DAYS[2], DAYS[1])


def views_of(day: date, events: list[Event]) -> list[PageView]:
    """The page views that begin on a day, as plain Python finds them among these events."""
    fates, pages = logic.rejections(events, SMALL.max_clicks_per_day), logic.page_keys(events)
    kept = logic.deduplicate(one for one in events if one not in fates)
    return [view for view in page_views(kept, pages) if view.request_time.date() == day]


def known_late() -> list[Event]:
    """A page of the third day whose label is known on the fifth.

    The clicks that use up the cap of the fourth day turn out to precede their request, which is shown on the fifth; so
    the click on the page stands after all.
    """
    page = {"user_id": "u9", "item_id": "x", "request_id": "r90"}
    fourth, fifth = (daily_log.midnight(day) for day in DAYS[3:5])
    return [
        Event(event_time=fourth - SECOND, event_type="impression", position=0, **page),
        *(Event(event_time=fourth + n * SECOND, event_type="click", **LATE) for n in range(3)),
        Event(event_time=fourth + 9 * SECOND, event_type="click", **page),
        Event(event_time=fifth, event_type="impression", position=0, **LATE),
    ]


@given(st.lists(st.integers(0, 10**12), max_size=60))
def test_page_views_need_no_more_than_the_days_that_a_plan_reads_before_and_waits_for_after(
    drawn_events, codes
) -> None:
    running = [
        Event(event_time=daily_log.midnight(day), event_type="impression", position=0, **LATE) for day in DAYS[5:8]
    ]
    events = [*drawn_events(codes), *known_late(), *running]
    for day in {one.day for one in events}:
        first, last = day - daily_log.NEEDS_BEFORE, day + daily_log.SETTLED_AFTER
        assert views_of(day, [one for one in events if first <= one.day <= last]) == views_of(day, events)


# --- what is written ------------------------------------------------------------------------------------------------


def clock(last: date) -> datetime:
    """A moment at which all of that day, and nothing of the next, is tolerated."""
    return daily_log.midnight(last + DAY) - logic.TOLERANCE


Add = Callable[..., Watermark]


@pytest.fixture(scope="module", params=["duckdb", pytest.param("spark", marks=pytest.mark.slow)])
def engine(request) -> str:
    if request.param == "spark":
        request.getfixturevalue("spark")
    return request.param


@pytest.fixture(scope="module")
def add(engine) -> Add:
    return functools.partial(added, engine)


def added(
    engine: str, raw: Path, workspace: Path, start: date, end: date, config: SequencesConfig = SMALL
) -> Watermark:
    given = {"events": canonical_table(raw, "events"), "sampled_negatives": False, "workspace": workspace}
    return add_days(**given, start=start, end=end, config=config, engine=engine, as_of=clock(end))


def contents(workspace: Path) -> dict[str, object]:
    """Everything that the log says, but for the moments at which it was written."""
    found: dict[str, object] = {"watermark": (workspace / "days" / "watermark.json").read_bytes()}
    for path in sorted((workspace / "days").glob("**/manifest.json")):
        kind = {"undated": "undated", "states": "state"}.get(path.relative_to(workspace / "days").parts[0], "day")
        manifest = artifact.read(path.parent, kind=kind)
        found[str(path.parent.relative_to(workspace))] = (manifest.files, manifest.facts, manifest.config)
    return found


def assembled(engine: str, workspace: Path, out: Path, config: SequencesConfig = SMALL) -> artifact.Manifest:
    given = {"ingest": other_events(out.parent), "raw": out.parent, "workspace": workspace}
    return build(**given, out=out, config=config, engine=engine)


def other_events(raw: Path) -> Path:
    """A raw folder that holds none of the log's events, but one of another user, which no artifact of the log has."""
    texts = {name: pa.array(["other"]) for name in ("user_id", "item_id", "request_id")}
    at = pa.array([datetime(2024, 3, 2, tzinfo=UTC)], pa.timestamp("us", tz="UTC"))
    shown = {"event_type": pa.array(["impression"]), "event_time": at, "position": pa.array([0])}
    pq.write_table(pa.table(texts | shown), raw / "events.parquet")
    return raw


@pytest.fixture(scope="module")
def raw(drawn_events, write_events, tmp_path_factory) -> Path:
    """900 events around the midnights of six days, a bot on the fourth, and rows that cannot be used."""
    rng = random.Random(11)
    events = drawn_events([rng.randrange(10**12) for _ in range(900)])
    events = [replace(one, event_time=one.event_time - 4 * DAY) if one.day > DAYS[6] else one for one in events]
    assert {one.day for one in events} == set(DAYS[:6])
    noon = datetime(2024, 3, 4, 12, tzinfo=UTC)
    events += [
        Event(user_id="u1", item_id=f"i{n % 3}", event_time=noon + n * SECOND, event_type="click", request_id="bot")
        for n in range(30)
    ]
    ahead = [daily_log.midnight(DAYS[6]), datetime(2150, 1, 1, tzinfo=UTC)]
    dated = [daily_log.midnight(DAYS[6]) - logic.MICROSECOND, *ahead]
    events += [Event(user_id="u8", item_id="z", event_time=at, event_type="click", request_id="r80") for at in dated]
    folder = write_events(tmp_path_factory.mktemp("raw"), [*events, *known_late()])
    table = pq.read_table(folder / "events.parquet")
    broken = table.slice(0, 20).set_column(0, "user_id", pa.array([""] * 20))
    undated = table.slice(20, 5).set_column(2, "event_time", pa.nulls(5, pa.timestamp("us", tz="UTC")))
    pq.write_table(pa.concat_tables([table, broken, undated]), folder / "events.parquet", row_group_size=200)
    return folder


@pytest.fixture(scope="module")
def grown(add, raw, tmp_path_factory) -> Path:
    """A workspace whose days were added four at once, and then one after another."""
    workspace = tmp_path_factory.mktemp("grown")
    add(raw, workspace, DAYS[0], DAYS[3])
    for day in DAYS[4:6]:
        add(raw, workspace, day, day)
    return workspace


def test_days_added_one_by_one_are_those_of_a_back_fill(add, grown, raw, tmp_path) -> None:
    add(raw, tmp_path, DAYS[0], LAST)
    assert contents(tmp_path) == contents(grown)
    assert read_watermark(grown).last == LAST
    assert {path.name for path in (grown / "days" / "states").iterdir()} == {"2024-03-03", "2024-03-04"}


def test_the_days_together_are_what_a_build_from_all_raw_events_writes(engine, grown, raw, tmp_path) -> None:
    given = {"ingest": raw, "raw": raw, "workspace": tmp_path / "no log", "as_of": clock(LAST)}
    whole = build(**given, out=tmp_path / "whole", config=SMALL, engine=engine)
    joined = assembled(engine, grown, tmp_path / "joined")
    assert joined.files == whole.files
    assert joined.facts == whole.facts
    assert whole.facts["capped_users"]["most_clicks"] >= 30
    assert whole.facts["events_rejected"]["null_event_time"] == 5
    assert whole.facts["events_rejected"]["future_event_time"] == 2
    assert whole.notes["as_of"] == clock(LAST).isoformat()
    [last] = [
        row["event_time"] for row in pq.read_table(tmp_path / "joined" / "clicks").to_pylist() if row["user_id"] == "u8"
    ]
    assert last == daily_log.midnight(DAYS[6]) - logic.MICROSECOND
    shown = pq.read_table(tmp_path / "joined" / "impressions").to_pylist()
    assert [row["clicked"] for row in shown if row["request_id"] == "r90"] == [1]


@pytest.fixture
def cut_short(grown, tmp_path) -> Path:
    """A log whose last day's adding was killed before it wrote the watermark."""
    workspace = tmp_path / "ws"
    shutil.copytree(grown, workspace)
    older = Watermark(**{**asdict(read_watermark(grown)), "last": DAYS[4]})
    daily_log.write_watermark(workspace, older)  # as the last day's adding found it
    (workspace / "days" / f".left-behind{artifact.PARTIAL}").mkdir()
    return workspace


def test_a_run_killed_before_the_watermark_is_noticed(engine, cut_short, tmp_path) -> None:
    cure = "was cut short: say `courier sequences --from 2024-03-04 --to 2024-03-05`"
    for refused in (lambda: daily_log.log_digest(cut_short), lambda: assembled(engine, cut_short, tmp_path / "o")):
        with pytest.raises(DailyLogError, match=cure):
            refused()


def test_a_run_killed_before_the_watermark_is_repeated_without_harm(add, cut_short, grown, raw, monkeypatch) -> None:
    workspace, older = cut_short, read_watermark(cut_short)
    shutil.rmtree(workspace / "days" / "states" / "2024-03-03")  # what can be computed of the days is no loss

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(daily_log, "write_watermark", killed)
        with pytest.raises(KeyboardInterrupt):
            add(raw, workspace, LAST, LAST)
    assert read_watermark(workspace) == older
    add(raw, workspace, LAST, LAST)  # and with it, a re-run of a day changes nothing
    expected = {name: said for name, said in contents(grown).items() if name != "days/states/2024-03-03"}
    assert contents(workspace) == expected
    assert not list((workspace / "days").glob(f".*{artifact.PARTIAL}"))


def test_a_back_fill_killed_midway_is_neither_read_nor_gone_on_from_until_it_is_repeated(
    add, grown, raw, tmp_path, monkeypatch
) -> None:
    workspace, write = tmp_path / "ws", daily_build._write_day
    shutil.copytree(grown, workspace)

    def killed_at_the_fourth(scratch: Path, at: Path, day: date, *more: object) -> None:
        if day == DAYS[3]:
            raise KeyboardInterrupt
        write(scratch, at, day, *more)

    with monkeypatch.context() as patched:
        patched.setattr(daily_build, "_write_day", killed_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            add(raw, workspace, DAYS[2], DAYS[2])
    cure = "was cut short: say `courier sequences --from 2024-03-01 --to 2024-03-06`"
    for refused in (lambda: daily_log.log_digest(workspace), lambda: add(raw, workspace, LAST, LAST)):
        with pytest.raises(DailyLogError, match=cure):
            refused()
    add(raw, workspace, DAYS[0], LAST)
    assert contents(workspace) == contents(grown)


def test_a_day_that_is_missing_is_named_with_the_command_that_makes_it(grown, tmp_path) -> None:
    shutil.copytree(grown / "days", tmp_path / "days")
    shutil.rmtree(tmp_path / "days" / "2024-03-06")
    with pytest.raises(
        DailyLogError, match="2024-03-06 is missing or damaged: say `courier sequences --from 2024-03-06"
    ):
        daily_log.log_digest(tmp_path)


def test_a_day_that_counts_less_than_a_day_of_today_is_named_with_the_command_that_builds_the_log_again(
    grown, tmp_path
) -> None:
    shutil.copytree(grown / "days", tmp_path / "days")
    path = tmp_path / "days" / "2024-03-02" / artifact.MANIFEST
    manifest = json.loads(path.read_text("utf-8"))
    for name in ("conversions", "shown_again"):
        del manifest["facts"][name]
    path.write_text(json.dumps(manifest), "utf-8")
    told = "2024-03-02 does not count conversions, shown_again.*`courier sequences --from 2024-03-01 --to 2024-03-06`"
    with pytest.raises(DailyLogError, match=told):
        daily_log.log_digest(tmp_path)


def test_another_config_is_refused_until_the_log_is_built_again(engine, add, grown, raw, tmp_path) -> None:
    other = SequencesConfig()
    for refused in (
        lambda: add(raw, grown, LAST, LAST, other),
        lambda: assembled(engine, grown, tmp_path / "out", other),
    ):
        with pytest.raises(DailyLogError, match="--from 2024-03-01 --to 2024-03-06` to build it again"):
            refused()


def test_a_log_begun_after_the_first_event_is_refused_with_the_day_of_that_event(raw, tmp_path) -> None:
    events = canonical_table(raw, "events")
    refuse_to_leave_out(events, tmp_path, DAYS[0], DAYS[0])
    with pytest.raises(DailyLogError, match="--from 2024-03-01 --to 2024-03-03"):
        refuse_to_leave_out(events, tmp_path, DAYS[2], DAYS[2])


@pytest.mark.usefixtures("spark")
def test_a_log_that_one_engine_has_begun_another_goes_on_with_to_the_same_rows(raw, tmp_path) -> None:
    for workspace, engines in ((tmp_path / "ds", ["duckdb", "spark"]), (tmp_path / "sd", ["spark", "duckdb"])):
        added(engines[0], raw, workspace, DAYS[0], DAYS[3])
        added(engines[1], raw, workspace, DAYS[4], LAST)
        assembled(engines[0], workspace, workspace / "out")
    assert rows_of(tmp_path / "ds" / "days") == rows_of(tmp_path / "sd" / "days")
    assert rows_of(tmp_path / "ds" / "out") == rows_of(tmp_path / "sd" / "out")
    logs = [contents(tmp_path / name) for name in ("ds", "sd")]
    facts = [{path: one[1] for path, one in log.items() if path != "watermark"} for log in logs]
    assert facts[0] == facts[1]


def rows_of(folder: Path) -> dict[str, list[str]]:
    """The rows of each table in a folder, however they lie in parts."""
    tables = {path.parent for path in folder.rglob("*.parquet")}
    return {str(one.relative_to(folder)): sorted(map(str, pq.read_table(one).to_pylist())) for one in tables}
