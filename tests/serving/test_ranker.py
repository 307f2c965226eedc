"""The order of a ranking, and what becomes of it when users, items or the whole store are unknown."""

import json
import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from model.ctr.inputs.item_vectors import ItemVectors
from model.releases import Release
from serving import ranker
from serving.ranker import STORE_FAILED, BadRanking, Ranker
from serving.release import OpenRelease

NOW = datetime(2024, 6, 1, tzinfo=UTC)


@dataclass
class Rows:
    """What a feature source answers."""

    table: pa.Table
    known_user: bool
    known_items: list[bool]
    vectors: ItemVectors | None = None


@dataclass
class FakeFeatures:
    """Prices of items in memory; counts what it was asked."""

    prices: dict[str, float]
    users: tuple[str, ...] = ("u1",)
    fails: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)

    def ranking_rows(
        self, user_id: str, item_ids: Sequence[str], space_id: str, codebook_id: str, *, as_of: datetime, vectors: bool
    ) -> Rows:
        of = (space_id, codebook_id)
        self.asked.append({"of": of, "as_of": as_of, "vectors": vectors, "items": list(item_ids)})
        if self.fails:
            raise ConnectionError("the store is away")
        table = pa.table({"item_id": list(item_ids), "price": [self.prices.get(item, 0.0) for item in item_ids]})
        return Rows(table, user_id in self.users, [item in self.prices for item in item_ids])


@dataclass
class CheapFirst:
    """A model in whose eyes the price is the click probability's complement."""

    images: str = "none"

    def predict(self, table: pa.Table, vectors: ItemVectors | None = None) -> npt.NDArray[np.float32]:
        assert (vectors is None) or self.images in ("vector", "simscore")
        return (1 - np.array(table["price"].to_pylist())).astype(np.float32)


PRICES = {"a": 0.9, "b": 0.25, "c": 0.5, "d": 0.25}


def order(ranking: ranker.Ranking) -> list[str]:
    return [one.item_id for one in ranking.results]


def test_the_likeliest_comes_first_and_equals_keep_the_order_given() -> None:
    for given, expected in (("abcd", "bdca"), ("dcba", "dbca")):
        ranking = Ranker(FakeFeatures(PRICES), CheapFirst(), "s1", "c1").rank("u1", list(given), NOW)
        assert order(ranking) == list(expected)
        assert [one.score for one in ranking.results] == pytest.approx([0.75, 0.75, 0.5, 0.1])
        assert ranking.degraded is None


def test_a_candidate_named_twice_is_ranked_once() -> None:
    features = FakeFeatures(PRICES)
    assert order(Ranker(features, CheapFirst(), "s1", "c1").rank("u1", ["a", "b", "a"], NOW)) == ["b", "a"]
    assert features.asked[0]["items"] == ["a", "b"]


def test_an_unknown_user_is_ranked_without_history_and_told_so() -> None:
    ranking = Ranker(FakeFeatures(PRICES), CheapFirst(), "s1", "c1").rank("nobody", ["a", "b"], NOW)
    assert order(ranking) == ["b", "a"]
    assert ranking.degraded == "user 'nobody' is unknown: ranked without a history"


def test_an_unknown_item_is_scored_on_defaults_and_marked() -> None:
    ranking = Ranker(FakeFeatures(PRICES), CheapFirst(), "s1", "c1").rank("u1", ["a", "new"], NOW)
    assert [(one.item_id, one.known) for one in ranking.results] == [("new", False), ("a", True)]
    assert ranking.degraded == "1 of 2 items unknown: scored on default values"


def test_a_score_that_is_no_number_is_null_and_stands_last() -> None:
    prices = {"a": math.nan, "b": 0.25, "c": -math.inf}
    ranking = Ranker(FakeFeatures(prices), CheapFirst(), "s1", "c1").rank("u1", ["a", "b", "c"], NOW)
    assert [(one.item_id, one.score) for one in ranking.results] == [("b", 0.75), ("a", None), ("c", None)]


def test_a_store_that_fails_leaves_the_order_given_and_says_so() -> None:
    ranking = Ranker(FakeFeatures(PRICES, fails=True), CheapFirst(), "s1", "c1").rank("u1", ["c", "a", "b", "c"], NOW)
    assert order(ranking) == ["c", "a", "b"]
    assert {(one.score, one.known) for one in ranking.results} == {(None, None)}
    assert ranking.degraded == STORE_FAILED


def test_no_more_rankings_run_at_once_than_there_are_cores() -> None:
    ranker_, inside, most = Ranker(FakeFeatures(PRICES), CheapFirst(), "s1", "c1"), threading.Semaphore(2), []

    class Counting(FakeFeatures):
        def ranking_rows(self, *asked: Any, **options: Any) -> Rows:
            most.append(inside.acquire(blocking=False))  # a third at once finds no place
            rows = super().ranking_rows(*asked, **options)
            inside.release()
            return rows

    two = replace(ranker_, features=Counting(PRICES), turns=threading.Semaphore(2))
    with ThreadPoolExecutor(16) as pool:
        rankings = list(pool.map(lambda _: order(two.rank("u1", ["a", "b"], NOW)), range(400)))
    assert rankings == [["b", "a"]] * 400
    assert all(most)
    assert ranker_.turns._value == os.cpu_count()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("images", "wanted"), [("none", False), ("cluster_id", False), ("simscore", True), ("vector", True)]
)
def test_vectors_are_read_only_for_a_model_that_needs_them(images: str, wanted: bool) -> None:
    features = FakeFeatures(PRICES)
    Ranker(features, CheapFirst(images), "s1", "c1").rank("u1", ["a"], NOW)
    assert features.asked == [{"of": ("s1", "c1"), "as_of": NOW, "vectors": wanted, "items": ["a"]}]


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch, opened: OpenRelease) -> FakeFeatures:
    fake = FakeFeatures(PRICES)
    monkeypatch.setattr(ranker, "open_release", lambda *_: opened)
    monkeypatch.setattr(ranker, "load_ranker", lambda *_: Ranker(fake, CheapFirst(), "s1", "c1"))
    return fake


@pytest.fixture
def opened() -> OpenRelease:
    release = Release(release_id="r1", created_at=NOW, space_id="s1", ctr_model="neural/none", artifacts={}, metrics={})
    return OpenRelease(release, {}, Path())


def test_the_answer_is_json(features: FakeFeatures, capsys: pytest.CaptureFixture[str]) -> None:
    items = ["--items", "a", "--items", "b", "--items", "new"]
    ranker.main(["--user", "u1", *items, "--json", "--as-of", "2024-06-01T02:00:00+02:00"])
    assert json.loads(capsys.readouterr().out) == {
        "results": [
            {"item_id": "new", "score": 1.0, "known": False},
            {"item_id": "b", "score": 0.75, "known": True},
            {"item_id": "a", "score": 0.1, "known": True},
        ],
        "release": "r1",
        "degraded": "1 of 3 items unknown: scored on default values",
    }
    assert features.asked[0]["as_of"] == NOW


def test_an_item_is_named_as_it_stands(features: FakeFeatures, capsys: pytest.CaptureFixture[str]) -> None:
    odd = ["a,b", " lead", "tail ", "a\nb", "--help", "-k", "", '"', "\\", "x" * 5_000]
    ranker.main(["--user", "--user", *(word for item in odd for word in ("--items", item)), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert [one["item_id"] for one in answer["results"]] == odd
    assert features.asked[0]["items"] == odd
    assert answer["degraded"].startswith("user '--user' is unknown")


def test_without_json_a_table_is_printed(features: FakeFeatures, capsys: pytest.CaptureFixture[str]) -> None:
    features.fails = True
    ranker.main(["--user", "[bold]u", "--items", "a"])
    printed = capsys.readouterr().out
    assert "ranked for [bold]u" in printed
    assert "degraded: the feature store does not answer" in printed


def test_without_as_of_ages_count_to_now(features: FakeFeatures) -> None:
    before = datetime.now(UTC)
    ranker.main(["--user", "u1", "--items", "a", "--json"])
    assert before <= features.asked[0]["as_of"] <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--items", "a"] * 1_001, "--items is given 1001 times: give it 1 to 1000 times"),
        (["--items", "a", "--as-of", "yesterday"], "'yesterday' is not an ISO 8601 moment"),
        (["--items", "a", "--as-of", "2024-06-01"], "names no offset from UTC"),
    ],
)
@pytest.mark.usefixtures("features")
def test_a_ranking_that_cannot_be_made_is_one_sentence(options: list[str], sentence: str) -> None:
    with pytest.raises(BadRanking, match=sentence):
        ranker.main(["--user", "u1", *options])


def test_a_workspace_without_a_release_is_told_the_cure(tmp_path: Path) -> None:
    from model.releases import NoRelease

    with pytest.raises(NoRelease, match="courier run RAW"):
        ranker.main(["--workspace", str(tmp_path), "--user", "u1", "--items", "a"])
