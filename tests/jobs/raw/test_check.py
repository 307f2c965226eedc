"""`courier check` says what raw tables hold and fails where one cannot be used; a missing Java is said before Spark."""

import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from jobs.check import check
from jobs.config import ImagesConfig, IngestConfig, SequencesConfig
from jobs.raw.folder import RawTableUnusable
from jobs.raw.ingest import read_tables
from jobs.rules import events as logic
from jobs.rules.doubts import doubts
from jobs.rules.events import Event
from jobs.rules.page_views import unmatched_clicks

AT = datetime(2024, 3, 1, 12, tzinfo=UTC)
SHOWN = Event(user_id="u", item_id="a", event_time=AT, event_type="impression", request_id="r", position=0)
NOWHERE = Event(user_id="u", item_id="", event_time=AT, event_type="impression", request_id="r", position=0)
CONFIGS = {"sequences": SequencesConfig(), "images": ImagesConfig()}
COUNTS = ("read", "accepted", "rejected", "duplicates")
ROW = {
    "user_id": "u",
    "item_id": "a",
    "event_time": "2024-03-01T12:00:00Z",
    "event_type": "impression",
    "request_id": "r",
    "position": 0,
}


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture
def app() -> typer.Typer:
    from jobs.check import app

    return app


@pytest.fixture(params=["duckdb", "spark"])
def options(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What makes each engine check."""
    monkeypatch.delenv("MASTER", raising=False)
    if request.param == "duckdb":
        return []
    request.getfixturevalue("spark")  # the check runs in it
    return ["--master", "local[2]"]


@pytest.fixture
def raw(tmp_path, write_events):
    nothing = {
        name: pa.array([None], pa.string()) for name in ("image_uri", "category", "title", "price", "created_at")
    }
    pq.write_table(pa.table({"item_id": ["a"]} | nothing), tmp_path / "items.parquet")
    return write_events(tmp_path, [SHOWN, SHOWN, NOWHERE])


def test_the_answer_counts_rows_read_accepted_repeated_and_rejected(runner, app, raw, options) -> None:
    result = runner.invoke(app, [str(raw), "--json", *options])
    assert result.exit_code == 1  # for nothing was clicked
    said = json.loads(result.stdout)
    counted = {name: {what: said[name][what] for what in COUNTS} for name in ("events", "items")}
    assert counted == {
        "events": {"read": 3, "accepted": 2, "rejected": {"null_item_id": 1}, "duplicates": 1},
        "items": {"read": 1, "accepted": 1, "rejected": {}, "duplicates": 0},
    }


def test_events_that_lead_nowhere_are_counted_as_plain_python_counts_them(
    runner, app, raw, options, write_events, drawn_events
) -> None:
    events = drawn_events([n * 7_919_317_003 % 10**12 for n in range(300)])
    write_events(raw, events)
    fates, pages = logic.rejections(events, SequencesConfig().max_clicks_per_day), logic.page_keys(events)
    once = logic.deduplicate(one for one in events if one not in fates)
    unmatched = unmatched_clicks(once, pages)
    said = json.loads(runner.invoke(app, [str(raw), "--json", *options]).stdout)
    assert said["events"]["doubtful"] == {
        "of_unknown_items": sum(one.item_id != "a" for one in once),
        "unmatched_clicks": len(unmatched),
    }
    assert 0 < len(unmatched) < len(once)
    assert said["items"]["doubtful"] == {"without_events": 0}
    days = {str(one.event_time.date()) for one in once}
    assert [day["day"] for day in said["events"]["days"]] == sorted(days)
    for day in said["events"]["days"]:
        times = [one.event_time for one in once if str(one.event_time.date()) == day["day"]]
        assert (day["events"], day["first"], day["last"]) == (
            len(times),
            min(times).isoformat(),
            max(times).isoformat(),
        )


def test_up_to_three_rows_are_shown_for_each_reason_with_their_file(runner, app, raw, options) -> None:
    (raw / "events.parquet").unlink()
    (raw / "events").mkdir()
    rows = [ROW | {"item_id": "", "position": n} for n in range(5)]
    early = ROW | {"event_type": "click", "event_time": "2024-03-01T11:59:59.999999Z"}
    for name, lines in (("a b", [*rows, ROW]), ("c", [early])):
        text = "".join(json.dumps(row) + "\n" for row in lines)
        (raw / "events" / f"{name}.jsonl").write_text(text + "[not markup]" + "x" * 5000)
    said = json.loads(runner.invoke(app, [str(raw), "--json", *options]).stdout)["events"]
    assert said["rejected"] == {"bad_row": 2, "click_before_request": 1, "null_item_id": 5}
    shown = said["examples"]
    assert [(one["file"], one["number"], json.loads(one["row"])["position"]) for one in shown["null_item_id"]] == [
        ("events/a b.jsonl", n + 1, f"{n}") for n in range(3)
    ]
    [click] = shown["click_before_request"]
    assert click["file"] == "events/c.jsonl"
    assert json.loads(click["row"])["event_time"] == "2024-03-01T11:59:59.999999Z"
    assert [len(one["row"]) for one in shown["bad_row"]] == [1000]
    table = runner.invoke(app, [str(raw), *options], env={"COLUMNS": "90"}).stdout
    assert "[not markup]" in table
    assert max(map(len, table.splitlines())) <= 90


def test_an_item_that_no_event_names_is_counted(runner, app, raw, options) -> None:
    rows = [{"item_id": name, "image_uri": None} for name in ("a", "b", "b", "c")]
    (raw / "items.parquet").unlink()
    (raw / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = json.loads(runner.invoke(app, [str(raw), "--json", *options]).stdout)
    assert said["items"]["rejected"] == {"duplicate_item_id": 1}
    assert said["items"]["doubtful"] == {"without_events": 2}
    assert said["events"]["doubtful"] == {"of_unknown_items": 0, "unmatched_clicks": 0}


def test_a_table_without_rows_is_said_to_hold_none(runner, app, raw) -> None:
    (raw / "items.parquet").unlink()
    (raw / "items.csv").write_text("item_id,image_uri\n")
    result = runner.invoke(app, [str(raw)])
    assert isinstance(result.exception, RawTableUnusable)
    assert str(result.exception).endswith("items.csv holds no rows: fill it")


def test_the_table_names_each_reason(runner, app, raw) -> None:
    shown = runner.invoke(app, [str(raw)]).stdout
    assert "rejected: null_item_id" in shown


def test_a_table_without_a_usable_row_fails(runner, app, raw, write_events) -> None:
    write_events(raw, [NOWHERE])
    result = runner.invoke(app, [str(raw)])
    assert result.exit_code == 1
    assert isinstance(result.exception, RawTableUnusable)
    assert "none of 1 rows can be used (most often: null_item_id)" in str(result.exception)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"event_time": "1709294400"}, r"\(most often: bad_event_time, as in '1709294400'\): write moments as"),
        (
            {"event_time": "2024-03-01 12:00:00"},
            r"\(most often: naive_event_time, as in '2024-03-01 12:00:00'\): write",
        ),
        ({"position": "first"}, r"\(most often: bad_position, as in 'first'\): count positions from 0"),
        ({"event_type": "view"}, r"there are no impressions, .* \(there are: view 4\)$"),
        ({"request_id": ""}, r"\(most often: null_request_id\): fill them in"),
    ],
)
def test_a_table_of_one_fault_is_refused_with_its_value_and_cure(runner, app, raw, changed, said) -> None:
    (raw / "events.parquet").unlink()
    (raw / "events.jsonl").write_text("".join(json.dumps(ROW | changed) + "\n" for _ in range(4)))
    assert re.search(said, str(runner.invoke(app, [str(raw)]).exception))


def test_what_most_rows_are_rejected_for_is_said_before_what_that_leads_to(runner, app, raw) -> None:
    (raw / "events.parquet").unlink()
    click = ROW | {"event_type": "click", "position": None}
    rows = [*[ROW | {"position": "first"}] * 4, click]
    (raw / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = r"4 of 5 events are of no use \(bad_position, as in 'first'\): count positions from 0"
    assert re.search(said, str(runner.invoke(app, [str(raw)]).exception))


def test_a_missing_table_fails(runner, app, raw) -> None:
    (raw / "items.parquet").unlink()
    result = runner.invoke(app, [str(raw)])
    assert result.exit_code == 1
    assert "holds no table items" in str(result.exception)


def test_duckdb_finds_what_spark_finds(runner, app, raw, write_events, drawn_events, spark) -> None:  # noqa: ARG001
    events = drawn_events([n * 7_919_317_003 % 10**12 for n in range(2000)])
    write_events(raw, [*events, *(replace(one, item_id="", position=n) for n, one in enumerate(events[:5]))])
    rows = [{"item_id": name, "image_uri": None, "price": price} for name in "abbx" for price in (1, -1, 1e9)]
    rows.append({"item_id": "y", "image_uri": "y.png", "price": "cheap"})
    (raw / "items.parquet").unlink()
    (raw / "items").mkdir()
    for name in ("2", "1"):
        (raw / "items" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [json.loads(runner.invoke(app, [str(raw), "--json", *more]).stdout) for more in ([], ["--master", "local"])]
    assert said[0] == said[1]
    assert said[0]["events"]["rejected"].keys() >= {"request_of_another_user", "click_before_request", "null_item_id"}
    assert said[0]["items"]["rejected"].keys() == {"duplicate_item_id"}
    assert said[0]["items"]["lost"] == {"bad_price": 1}
    assert said[0]["doubts"]


def test_parquet_text_that_is_no_utf8_is_counted_in_both_tables(runner, app, raw, options) -> None:
    bad = pa.array([b"\xff", b"x"]).view(pa.string())
    columns = {name: pa.array([value] * 2) for name, value in ROW.items() if name != "event_time"}
    at = pa.array([AT, AT], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table(columns | {"event_time": at, "user_id": bad}), raw / "events.parquet")
    pq.write_table(pa.table({"item_id": ["a", "b"], "image_uri": ["a", "b"], "title": bad}), raw / "items.parquet")
    said = json.loads(runner.invoke(app, [str(raw), "--json", *options]).stdout)
    assert [said[name]["rejected"] for name in ("events", "items")] == [{"bad_encoding": 1}] * 2
    assert "\ufffd" in said["events"]["examples"]["bad_encoding"][0]["row"]


def test_neither_java_nor_spark_is_needed_unless_a_master_is_named(runner, app, raw, monkeypatch) -> None:
    from jobs.engines.spark_session import JavaMissing

    monkeypatch.delenv("MASTER", raising=False)
    monkeypatch.setenv("JAVA_HOME", str(raw))
    monkeypatch.setattr("pyspark.sql.SparkSession.getActiveSession", lambda: None)
    assert "nothing was clicked" in str(runner.invoke(app, [str(raw)]).exception)
    assert isinstance(runner.invoke(app, [str(raw), "--master", "local"]).exception, JavaMissing)


def test_what_the_tables_hold_together_is_what_plain_python_sees(raw, write_events, drawn_events) -> None:
    events = drawn_events([n * 7_919_317_003 % 10**12 for n in range(300)])
    odd = [replace(one, event_type="view") for one in events[:3]]
    write_events(raw, [*events, *odd])
    fates, pages = logic.rejections(events, SequencesConfig().max_clicks_per_day), logic.page_keys(events)
    accepted = [one for one in events if one not in fates]
    once = logic.deduplicate(accepted)
    # An impression is one where it was shown, whatever its position: as on its page.
    shown = {(pages[one], one.item_id) for one in once if one.event_type == "impression"}
    clicked = {(pages.get(one), one.item_id) for one in once if one.event_type == "click"}
    seen = check(raw).seen
    assert seen.types == dict(sorted(Counter(one.event_type for one in once).items()))
    assert seen.unknown_types == {"view": 3}
    assert seen.users == len({one.user_id for one in once})
    assert (seen.first, seen.last) == (min(o.event_time for o in once), max(o.event_time for o in once))
    assert (seen.shown, seen.pages) == (len(shown), len({page for page, _ in shown}))
    assert seen.clicked == len(shown & clicked) > 0
    assert seen.early == list(fates.values()).count(logic.EARLY_CLICK) > 0
    assert seen.unknown == sum(one.item_id != "a" for one in once)
    assert (seen.items, seen.duplicates) == (1, len(accepted) - len(once))


@pytest.mark.parametrize(
    ("events", "items"),
    [("7.0", "7"), ("7", "007"), ("1e5", "100000"), (" a ", "a"), ("ABC", "abc"), ("e\u0301", "\u00e9")],
)
def test_ids_that_differ_in_form_alone_are_shown_as_a_pair(raw, write_events, events, items) -> None:
    write_events(raw, [replace(SHOWN, item_id=events), replace(SHOWN, item_id=events, event_type="click")])
    pq.write_table(pa.table({"item_id": ["other", items], "image_uri": ["o", "a"]}), raw / "items.parquet")
    seen = check(raw).seen
    assert (seen.unknown, seen.pair) == (2, (events, items))
    said = f"events say {events!r}, items {items!r}: write the item_id alike"
    assert [one.stops for one in doubts(seen) if said in one.said] == [True]


def test_the_first_pictures_are_looked_at(raw) -> None:
    pq.write_table(
        pa.table({"item_id": ["a", "b", "c", "d"], "image_uri": ["a.png", "b.png", "https://cdn.example.com/c", None]}),
        raw / "items.parquet",
    )
    (raw / "a.png").write_bytes(b"no picture")
    seen = check(raw).seen
    assert seen.pictures == {"not_an_image": 1, "not_found": 1}
    assert any(one.stops and "of the first 2 pictures 0 can be used" in one.said for one in doubts(seen))


def test_a_run_stops_before_anything_is_built_of_what_cannot_work(raw, tmp_path) -> None:
    from jobs.check import build

    read_tables(raw=raw, raw_digest="", out=tmp_path / "ingest", config=IngestConfig())
    with pytest.raises(RawTableUnusable, match="nothing was clicked"):
        build(ingest=tmp_path / "ingest", raw=raw, out=tmp_path / "check", configs=CONFIGS)
    assert not (tmp_path / "check").exists()


def test_doubts_are_kept_in_the_report(raw, write_events, tmp_path) -> None:
    from jobs.check import build

    pages = [
        replace(SHOWN, user_id=user, request_id=user, event_time=AT.replace(minute=n)) for n, user in enumerate("uvw")
    ]
    write_events(raw, [*pages, replace(pages[0], event_type="click")])
    read_tables(raw=raw, raw_digest="", out=tmp_path / "ingest", config=IngestConfig())
    build(ingest=tmp_path / "ingest", raw=raw, out=tmp_path / "check", configs=CONFIGS)
    said = json.loads((tmp_path / "check" / "check.json").read_text("utf-8"))
    assert [(one["stops"], one["said"].partition(":")[0]) for one in said["doubts"]] == [
        (False, "each of 3 pages shows one item, so there is no choice among what was shown together")
    ]
    assert said["events"]["read"] == said["events"]["accepted"] == 4


@pytest.mark.parametrize(
    ("said", "version"),
    [('openjdk version "17.0.15" 2025-04-15', 17), ('java version "1.8.0_292"', 8), ("command not found", None)],
)
def test_the_version_of_java_is_read(said, version) -> None:
    from jobs.engines.spark_session import java_version

    assert java_version(said) == version


def test_a_machine_without_java_is_told_the_cure(monkeypatch, tmp_path) -> None:
    from jobs.engines.spark_session import JavaMissing, require_java

    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(JavaMissing, match=r"Java 17\+ and JAVA_HOME.*install Java 17"):
        require_java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JavaMissing, match="no java on the PATH"):
        require_java()


def test_a_java_too_old_is_told_the_cure(monkeypatch, tmp_path) -> None:
    from jobs.engines.spark_session import JavaMissing, require_java

    (tmp_path / "bin").mkdir()
    java = tmp_path / "bin" / "java"
    java.write_text("#!/bin/sh\necho 'java version \"1.8.0_292\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(JavaMissing, match="is 8: install Java 17"):
        require_java()
