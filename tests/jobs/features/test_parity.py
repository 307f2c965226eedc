"""What serving used is what the offline tables say of the same moment; and where it is not, it is found and named."""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import courier
from feature_repo.contract import EVENT_TIME, ITEM_PROFILE, ITEM_STATISTICS, USER_HISTORY
from feature_repo.definitions import open_store
from feature_repo.online_views import open_views
from jobs.features import materialize
from jobs.features.history_store import HistoryStore
from jobs.features.parity.causes import CAUSES
from jobs.features.parity.compare import ParityReport, _differing, compare
from jobs.features.parity.logged import LogUnusable, RequestLogFiles
from jobs.features.parity.program import document, verdict
from model import artifact
from model.ctr.inputs.request_log import log_key
from serving.features import RankingFeatures
from serving.request_log import LoggedFeatures, RequestLog

DAY = timedelta(days=1)
SPACE, CODEBOOK = "s0123456789ab", "c0123456789ab"


@dataclass(frozen=True)
class Served:
    """A loaded shop, and what its server answers from."""

    shop: Any

    @property
    def workspace(self) -> Path:
        return self.shop.workspace

    def log(
        self,
        folder: Path,
        asked: Sequence[tuple[str, Sequence[str], datetime]],
        *,
        codebook_id: str = CODEBOOK,
        key: bytes = b"",
    ) -> RequestLogFiles:
        """The log of these requests: user, items, moment."""
        log = RequestLog(folder, rate=1, total_bytes=10**9, key=key)
        logged = LoggedFeatures(RankingFeatures(open_views(self.workspace)), log, "r1")
        for user, items, moment in asked:
            logged.ranking_rows(user, items, SPACE, codebook_id, as_of=moment, vectors=False)
        log.close()
        assert log.dropped == 0
        return RequestLogFiles(folder, key)

    def compare(self, folder: Path, *asked: tuple[str, Sequence[str], datetime], **how: Any) -> ParityReport:
        return compare(self.workspace, self.log(folder, asked, **how))


@pytest.fixture(scope="module")
def served(shop_maker: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A shop of its own, for what is planted in it."""
    shop = shop_maker(tmp_path_factory.mktemp("parity"))
    materialize.build(features=shop.features, workspace=shop.workspace, out=shop.workspace / "materialize" / "k")
    return Served(shop)


def causes(report: ParityReport) -> dict[str, dict[str, int]]:
    return {name: dict(one.causes) for name, one in report.by_feature.items() if one.causes}


def replayed(shop: Any, count: int) -> list[tuple[str, list[str], datetime]]:
    """Requests of known and unknown users for known and unknown items, from the load's moment on."""
    rng = random.Random(3)
    users = [*sorted({row["user_id"] for row in shop.clicks}), "nobody"]
    items = [*(row["item_id"] for row in shop.items), "nothing"]
    return [
        (rng.choice(users), rng.sample(items, 5), shop.as_of + timedelta(seconds=number)) for number in range(count)
    ]


@pytest.fixture
def restored(served: Served, tmp_path: Path) -> Iterator[None]:
    """The online store and the registry as they were, once the test is over."""
    stores, aside = served.workspace / "feast", tmp_path / "before"
    aside.mkdir()
    for path in stores.glob("*.db*"):
        shutil.copy(path, aside)
    yield
    for path in stores.glob("*.db*"):
        path.unlink()  # SQLite takes a file whose bytes went back for the one that it has in memory
    for path in aside.iterdir():
        path.rename(stores / path.name)


def write_online(served: Served, view: str, row: dict[str, Any]) -> None:
    open_store(served.workspace).write_to_online_store(view, pd.DataFrame([row]))


def profile(served: Served, item: str) -> dict[str, Any]:
    table = pq.read_table(served.shop.features / ITEM_PROFILE.name)
    return next(row for row in table.to_pylist() if row["item_id"] == item)


def test_of_a_thousand_replayed_requests_no_value_differs(served: Served, tmp_path: Path) -> None:
    report = served.compare(tmp_path, *replayed(served.shop, 1_000))
    assert causes(report) == {}
    assert (report.requests, report.candidates) == (1_000, 5_000)
    assert report.by_feature["price"].values == 5_000
    assert report.by_feature["history_item_ids"].values == 1_000
    assert verdict(report) is None
    assert document(report)["passed"]


@pytest.mark.usefixtures("restored")
def test_one_value_changed_in_the_online_store_is_found_and_named(served: Served, tmp_path: Path) -> None:
    write_online(served, ITEM_PROFILE.name, profile(served, "i5") | {"price": 99.0})
    at = served.shop.as_of
    report = served.compare(tmp_path, *replayed(served.shop, 40), ("u1", ["i4", "i5", "i6"], at))
    assert set(causes(report)) == {"price"}
    assert set(causes(report)["price"]) == {"unknown"}
    worst = report.by_feature["price"].worst
    assert worst is not None
    assert (worst.item_id, worst.online, worst.offline) == ("i5", 99.0, 5.5)
    sentence = verdict(report)
    assert sentence is not None
    assert "values of price differ" in sentence
    assert "item i5" in sentence
    assert CAUSES["unknown"] in sentence


@pytest.mark.usefixtures("restored")
def test_a_category_changed_online_is_found_in_the_histories_too(served: Served, tmp_path: Path) -> None:
    clicked = next(row["item_id"] for row in reversed(served.shop.clicks) if row["user_id"] == "u1")
    write_online(served, ITEM_PROFILE.name, profile(served, clicked) | {"category": "other"})
    report = served.compare(tmp_path, ("u1", ["i4"] if clicked != "i4" else ["i6"], served.shop.as_of))
    assert causes(report) == {"history_categories": {"unknown": 1}}
    worst = report.by_feature["history_categories"].worst
    assert worst is not None
    assert (worst.item_id, worst.online) == (clicked, "other")


@pytest.mark.usefixtures("restored")
def test_pushed_clicks_are_counted_and_are_no_fault(served: Served, tmp_path: Path) -> None:
    at = served.shop.as_of + DAY
    micros = int((at - DAY / 2 - datetime.fromtimestamp(0, UTC)) / timedelta(microseconds=1))
    HistoryStore(served.workspace).add({"u1": [("i4", micros)]})
    report = served.compare(tmp_path, ("u1", ["i4"], at), ("u2", ["i4"], at))
    history = {"history_item_ids", "history_clicked_at", "history_cluster_ids", "history_categories"}
    assert causes(report) == {name: {"pushed": 1} for name in history}
    assert verdict(report) is None


@pytest.mark.usefixtures("restored")
def test_a_history_that_lacks_a_click_is_a_fault_though_it_is_newer(served: Served, tmp_path: Path) -> None:
    at = served.shop.as_of + DAY
    micros = int((at - datetime.fromtimestamp(0, UTC)) / timedelta(microseconds=1))
    row = {"user_id": "u1", EVENT_TIME: at, "history_item_ids": ["i4"], "history_clicked_at": [micros]}
    write_online(served, USER_HISTORY.name, row)
    report = served.compare(tmp_path, ("u1", ["i4"], at))
    assert causes(report)["history_item_ids"] == {"unknown": 1}
    assert report.by_feature["history_categories"].causes == {"unknown": 1}


def test_a_request_of_an_earlier_moment_than_the_load_names_what_became_valid_after_it(
    served: Served, tmp_path: Path
) -> None:
    report = served.compare(tmp_path, ("u1", ["i1", "i2", "i3"], served.shop.as_of - 6 * DAY))
    found = causes(report)
    assert {"history_item_ids", "item_impressions_7d"} <= set(found)
    assert {cause for one in found.values() for cause in one} == {"early"}


def test_a_request_that_was_answered_by_another_codebook_is_named(served: Served, tmp_path: Path) -> None:
    report = served.compare(tmp_path, ("u1", ["i1", "i2"], served.shop.as_of), codebook_id="cother")
    assert causes(report) == {"cluster_id": {"release": 2}, "history_cluster_ids": {"release": 1}}


@pytest.mark.usefixtures("restored")
def test_a_view_whose_ttl_only_one_side_keeps_is_named(served: Served, tmp_path: Path) -> None:
    store = open_store(served.workspace)
    view = store.get_feature_view(ITEM_PROFILE.name)
    view.ttl = timedelta(days=400)
    store.apply([view])
    report = served.compare(tmp_path, ("u1", ["i1", "i2"], served.shop.as_of + timedelta(days=800)))
    assert set(causes(report)) == {"category", "price", "created_at"}
    assert {cause for one in causes(report).values() for cause in one} == {"ttl"}


def later_tables(served: Served, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], view: str) -> Path:
    """The workspace's sources lead to a features artifact in which one view is another, though nothing was loaded."""
    built = artifact.read(served.shop.features, kind="features")
    out = served.workspace / "features" / "later"
    with artifact.write(out, kind="features", inputs={}, config={}) as draft:
        shutil.copytree(
            served.shop.features, draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(artifact.MANIFEST)
        )
        [path] = (draft.path / view).glob("*.parquet")
        table = pq.read_table(path)
        pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path)
        draft.facts = dict(built.facts)
    materialize.point_sources(served.workspace, out)
    return out


@pytest.fixture
def sources_restored(served: Served) -> Iterator[None]:
    yield
    materialize.point_sources(served.workspace, served.shop.features)
    shutil.rmtree(served.workspace / "features" / "later", ignore_errors=True)


@pytest.mark.usefixtures("sources_restored")
def test_what_the_tables_learnt_after_the_load_is_late_data(served: Served, tmp_path: Path) -> None:
    at = served.shop.as_of + DAY

    def one_day_more(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        newest = max((row for row in rows if row["item_id"] == "i1"), key=lambda row: row[EVENT_TIME])
        return [*rows, newest | {EVENT_TIME: at - DAY / 2, "item_impressions_7d": 12_345}]

    log = served.log(tmp_path, [("u1", ["i1", "i2"], at), ("u1", ["i1", "i2"], at - DAY)])
    later_tables(served, one_day_more, ITEM_STATISTICS.name)
    report = compare(served.workspace, log)
    assert causes(report) == {"item_impressions_7d": {"late": 1}}
    worst = report.by_feature["item_impressions_7d"].worst
    assert worst is not None
    assert (worst.item_id, worst.moment, worst.offline) == ("i1", at, 12_345)


@pytest.mark.usefixtures("sources_restored")
def test_an_offline_table_that_was_changed_is_named_by_its_feature(served: Served, tmp_path: Path) -> None:
    def cheaper(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"price": 1.0} if row["item_id"] == "i5" else row for row in rows]

    log = served.log(tmp_path, [("u1", ["i5", "i6"], served.shop.as_of)])
    later_tables(served, cheaper, ITEM_PROFILE.name)
    assert causes(compare(served.workspace, log)) == {"price": {"late": 1}}


@pytest.mark.usefixtures("sources_restored")
def test_a_row_that_was_loaded_and_then_lost_from_the_store_is_no_late_data(served: Served, tmp_path: Path) -> None:
    log = served.log(tmp_path, [("u1", ["i5"], served.shop.as_of)])
    [path] = tmp_path.glob("*.parquet")
    table = pq.read_table(path)
    empty = pa.array([[float("nan")]], table.schema.field("price").type)
    pq.write_table(table.set_column(table.schema.get_field_index("price"), "price", empty), path)
    later_tables(served, lambda rows: rows[1:], ITEM_STATISTICS.name)
    assert causes(compare(served.workspace, log))["price"] == {"unknown": 1}


VALUES = {
    pa.string(): st.sampled_from(["", "a", "A", "\0", "\u00e9", "e\u0301"]),
    pa.float64(): st.sampled_from([0.0, -0.0, 0.1, 0.1 + 2**-55, float("nan"), float("inf"), 5e-324]),
    pa.int64(): st.sampled_from([-(2**63), -1, 0, 2**53, 2**53 + 1, 2**63 - 1]),
}
VALUES |= {pa.list_(kind): st.lists(values, max_size=2) for kind, values in VALUES.items()}


@settings(max_examples=40)  # each opens a database
@given(
    st.sampled_from(list(VALUES)).flatmap(
        lambda kind: st.tuples(st.just(kind), st.lists(st.tuples(VALUES[kind], VALUES[kind]), max_size=6))
    )
)
def test_values_differ_where_plain_python_says_so(drawn: tuple[pa.DataType, list[tuple[Any, Any]]]) -> None:
    kind, pairs = drawn
    one, other = (pa.table({"v": pa.array([pair[side] for pair in pairs], kind)}) for side in (0, 1))

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(member) for member in value]
        return "NaN" if value != value else value

    expected = [place for place, (left, right) in enumerate(pairs) if plain(left) != plain(right)]
    assert list(_differing(one, other)) == [("v", expected)]


@pytest.mark.parametrize("odd", ["", "x" * 5_000, "a,b", " i3", "\0", "e\u0301", "NaN", "null", "\U0001f457", "a'b"])
def test_an_odd_id_that_nobody_knows_is_compared_like_any_other(served: Served, tmp_path: Path, odd: str) -> None:
    report = served.compare(tmp_path, (odd, ["i3", odd], served.shop.as_of))
    assert (causes(report), report.candidates) == ({}, 2)


# --- the log ----------------------------------------------------------------------------------------------------------


def test_hashed_users_are_compared_as_the_users_that_they_are(served: Served, tmp_path: Path) -> None:
    key = log_key("a secret of this test")
    log = served.log(tmp_path, replayed(served.shop, 30), key=key)
    report = compare(served.workspace, log)
    assert (causes(report), report.requests) == ({}, 30)
    with pytest.raises(LogUnusable, match=r"users of .* are hashed: give the key"):
        compare(served.workspace, RequestLogFiles(tmp_path))
    with pytest.raises(LogUnusable, match="known under this key"):
        compare(served.workspace, RequestLogFiles(tmp_path, log_key("another secret of it")))


def test_files_of_another_form_are_counted_and_not_read_and_a_log_of_them_alone_is_refused(
    served: Served, tmp_path: Path
) -> None:
    log = served.log(tmp_path, replayed(served.shop, 3))
    pq.write_table(pa.table({"request_id": ["q"]}), tmp_path / "0-older.parquet")
    (tmp_path / ".half.parquet-x.partial").write_bytes(b"half")
    report = compare(served.workspace, log)
    assert (report.requests, report.skipped) == (3, ["0-older.parquet"])
    for path in tmp_path.glob("2*.parquet"):
        path.unlink()
    with pytest.raises(LogUnusable, match="no request but 1 files of another version"):
        compare(served.workspace, log)


def test_a_log_is_compared_in_parts_to_the_same_end(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replayed(served.shop, 6)
    for number in range(3):
        served.log(tmp_path, asked[2 * number : 2 * number + 2])
    whole = compare(served.workspace, RequestLogFiles(tmp_path))
    monkeypatch.setattr("jobs.features.parity.logged.CANDIDATES_A_BATCH", 10)
    parts = compare(served.workspace, RequestLogFiles(tmp_path))
    assert document(parts) == document(whole)
    assert parts.requests == 6


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_the_verb_answers_in_json_and_ends_with_one_sentence_where_values_differ(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.log(tmp_path, [("u1", ["i1"], served.shop.as_of)])
    capsys.readouterr()
    courier.main(["parity", str(served.workspace), "--log", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["differences"] == 0
    served.log(tmp_path, [("u1", ["i1"], served.shop.as_of - 6 * DAY)])
    with pytest.raises(SystemExit, match=r"^courier: \d+ of 2 values of history_item_ids differ: the store held a row"):
        courier.main(["parity", str(served.workspace), "--log", str(tmp_path)])
    assert "early" in capsys.readouterr().out
