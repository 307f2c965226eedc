"""MovieLens as raw tables: high ratings are clicks, pages are filled from what was known strictly before."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contract import EVENTS, ITEMS, PAGE_VIEW_SIZE
from jobs.datasets import writer
from jobs.datasets.movielens import EXPLORED, NEGATIVES, convert, draw, in_time_order, known_films, main, page_views
from model.errors import CourierError

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "movielens-posters"

# user, item, second, rating. Anna's last page can show 1, 2, 3, 4, 5 and 6: all rated before, none rated by her.
RATINGS = [
    ("zoe", 1, 100, 5.0),
    ("zoe", 2, 100, 4.0),
    ("bob", 3, 100, 4.5),
    ("bob", 4, 110, 4.0),
    ("bob", 5, 120, 5.0),
    ("zoe", 6, 130, 3.5),  # not a click
    ("anna", 9, 200, 4.0),
    ("anna", 7, 200, 5.0),
    ("anna", 8, 300, 1.0),
]


def write_source(folder: Path, ratings: list[tuple[str, int, int, float]] = RATINGS) -> Path:
    """A folder like the real one: nine films, the ninth without a poster."""
    (folder / "images").mkdir(parents=True)
    columns = zip(*ratings, strict=True)
    table = dict(zip(("user_id", "item_id", "timestamp", "rating"), map(list, columns), strict=True))
    pq.write_table(pa.table(table), folder / "interactions.parquet")
    films = {
        "item_id": list(range(9, 0, -1)),
        "title": [f"Film {n}" for n in range(9, 0, -1)],
        "genres": ["Drama|War", "Comedy", None] * 3,
        "year": [None, 1971, *[1970] * 7],
        "image_path": [f"images/{n}.jpg" for n in range(9, 0, -1)],
    }
    pq.write_table(pa.table(films), folder / "items.parquet")
    for n in range(1, 9):
        (folder / "images" / f"{n}.jpg").write_bytes(b"poster %d" % n)
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    convert(write_source(tmp_path / "src"), tmp_path / "raw", seed=0)
    return tmp_path / "raw"


@pytest.fixture
def events(raw: Path) -> pd.DataFrame:
    return pq.read_table(raw / "events.parquet").to_pandas()


# --- the raw folder -------------------------------------------------------------------------------------------------


def test_the_tables_are_the_contracts(raw: Path) -> None:
    assert pq.read_schema(raw / "events.parquet") == writer.schema(EVENTS)
    assert pq.read_schema(raw / "items.parquet") == writer.schema(ITEMS)


def test_a_rating_of_four_is_a_click_and_less_is_not(events: pd.DataFrame) -> None:
    clicks = events[events.event_type == "click"]
    assert set(clicks.item_id) == {"1", "2", "3", "4", "5", "9", "7"}


def test_requests_are_numbered_in_the_order_of_time_user_item(events: pd.DataFrame) -> None:
    clicks = events[events.event_type == "click"]
    assert list(zip(clicks.request_id, clicks.user_id, clicks.item_id, strict=True)) == [
        ("m-000000", "bob", "3"),
        ("m-000001", "zoe", "1"),
        ("m-000002", "zoe", "2"),
        ("m-000003", "bob", "4"),
        ("m-000004", "bob", "5"),
        ("m-000005", "anna", "7"),
        ("m-000006", "anna", "9"),
    ]


def test_pages_hold_what_was_rated_strictly_before_and_the_user_never_rates(events: pd.DataFrame) -> None:
    shown = events[events.event_type == "impression"].groupby("request_id").item_id.agg(set).tolist()
    first, bob_4, bob_5 = shown[:3], shown[3], shown[4]
    assert first == [{"3"}, {"1"}, {"2"}]  # nothing lies strictly before second 100
    assert bob_4 == {"4", "1", "2"}
    assert bob_5 == {"5", "1", "2"}
    for page, clicked in zip(shown[5:], ("7", "9"), strict=True):
        assert len(page) == PAGE_VIEW_SIZE
        assert page - {clicked} < {"1", "2", "3", "4", "5", "6"}


def test_a_film_is_known_after_its_first_rating_or_its_year_whichever_comes_first() -> None:
    item, time = np.array([0, 1, 1, 0]), np.array([50, 40_000_000, 30, 20])
    known = known_films(item, time, np.array([0, 0, 1970, 1969, 0]))
    year = int(pd.Timestamp("1971-01-01").timestamp())
    assert dict(zip(known.item.tolist(), known.since.tolist(), strict=True)) == {
        0: 21,
        1: 31,
        2: year,
        3: 0,
        4: np.iinfo(np.int64).max,
    }
    assert [set(known.at(second).tolist()) for second in (20, 21, 31, year - 1, year)] == [
        {3},
        {0, 3},
        {0, 1, 3},
        {0, 1, 3},
        {0, 1, 2, 3},
    ]


def test_a_click_happens_at_the_instant_and_place_of_its_impression(events: pd.DataFrame) -> None:
    assert events.event_time.iloc[0] == pd.Timestamp(100, unit="s", tz="UTC")
    pages = events.groupby("request_id")
    assert (pages.event_time.nunique() == 1).all()
    assert (pages.event_type.last() == "click").all()
    key = ["request_id", "user_id", "item_id", "position"]
    clicks, shown = (events[events.event_type == name][key] for name in ("click", "impression"))
    assert len(clicks.merge(shown, on=key)) == len(clicks)
    assert all(sorted(places) == list(range(len(places))) for _, places in shown.groupby("request_id").position)


def test_items_keep_their_first_genre_and_their_poster(raw: Path) -> None:
    items = pq.read_table(raw / "items.parquet").to_pylist()
    assert [item["item_id"] for item in items] == [str(n) for n in range(1, 10)]
    assert items[8] == {
        "item_id": "9",
        "image_uri": "images/9.jpg",
        "category": "Drama",
        "title": "Film 9",
        "price": None,
        "created_at": None,
        "updated_at": None,
    }
    assert items[6]["category"] is None
    assert (raw / "images" / "8.jpg").read_bytes() == b"poster 8"
    assert not (raw / "images" / "9.jpg").exists()


def test_the_source_says_that_negatives_are_sampled_and_whom_to_cite(raw: Path) -> None:
    source = json.loads((raw / "SOURCE.json").read_text("utf-8"))
    assert source["sampled_negatives"] is True
    assert "doi:10.1145/2827872" in source["description"]
    assert "research use only" in source["description"]


def test_the_same_seed_writes_the_same_bytes_whatever_the_order_of_the_rows(tmp_path: Path, raw: Path) -> None:
    convert(write_source(tmp_path / "shuffled", RATINGS[::-1]), tmp_path / "again", seed=0)
    for name in ("events.parquet", "items.parquet", "SOURCE.json"):
        assert (tmp_path / "again" / name).read_bytes() == (raw / name).read_bytes()


def test_the_command_takes_source_out_and_seed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(write_source(tmp_path / "src")), str(tmp_path / "raw"), "--seed", "1"])
    assert ended.value.code == 0
    assert (tmp_path / "raw" / "events.parquet").is_file()


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_source_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CourierError, match=r"interactions\.parquet does not exist"):
        convert(tmp_path, tmp_path / "raw", seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "columns",
    [
        {"user_id": ["a"], "item_id": [1], "timestamp": [1]},
        {"user_id": ["a"], "item_id": ["one"], "timestamp": [1], "rating": [4.0]},
        {"user_id": ["a"], "item_id": [1], "timestamp": [None], "rating": [4.0]},
        {"user_id": ["a"], "item_id": [1], "timestamp": [1], "rating": [[4.0]]},
    ],
    ids=["no rating", "item is a word", "no time", "rating is a list"],
)
def test_a_table_that_cannot_be_used_is_refused_by_name(tmp_path: Path, columns: dict[str, list[object]]) -> None:
    src = write_source(tmp_path / "src")
    pq.write_table(pa.table(columns), src / "interactions.parquet")
    with pytest.raises(CourierError, match=r"interactions\.parquet"):
        convert(src, tmp_path / "raw", seed=0)
    assert not (tmp_path / "raw").exists()


def test_a_file_that_is_no_table_is_refused_by_name(tmp_path: Path) -> None:
    src = write_source(tmp_path / "src")
    (src / "items.parquet").write_text("<html>", "utf-8")
    with pytest.raises(CourierError, match=r"items\.parquet"):
        convert(src, tmp_path / "raw", seed=0)


def test_a_source_without_a_single_click_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CourierError, match="no rating of 4 or more"):
        convert(write_source(tmp_path / "src", [("anna", 1, 5, 3.0)]), tmp_path / "raw", seed=0)


# --- the draw -------------------------------------------------------------------------------------------------------

ratings = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12), st.integers(0, 6), st.booleans()), max_size=60)


@settings(max_examples=100, deadline=None)
@given(ratings, st.integers(0, 3), st.lists(st.sampled_from([0, 1969, 1970]), min_size=13, max_size=13))
def test_every_page_keeps_the_law_of_its_candidates(
    rows: list[tuple[int, int, int, bool]], seed: int, years: list[int]
) -> None:
    """Against the obvious twin: the sets of what may be shown, counted out rating by rating."""
    rated = [{item for user, item, _, _ in rows if user == who} for who in range(5)]
    liked = np.array([row[:3] for row in rows if row[3]], np.int64).reshape(-1, 3)
    clicks = in_time_order(*liked.T)
    every = np.array([row[1:3] for row in rows], np.int64).reshape(-1, 2)
    known = known_films(*every.T, np.array(years))
    history = list(zip(clicks.time.tolist(), clicks.user.tolist(), clicks.item.tolist(), strict=True))
    assert history == sorted(history)
    for (time, user, item), page in zip(history, page_views(clicks, known, rated, seed=seed), strict=True):
        clicked = {other for at, _, other in history if at < time} - rated[user]
        free = {film for film, year in enumerate(years) if year == 1969}
        free |= {film for _, film, at, _ in rows if at < time}
        free -= rated[user]
        negatives = set(page) - {item}
        assert page.count(item) == 1
        assert len(negatives) == len(page) - 1 == min(NEGATIVES, len(free))
        assert negatives <= free
        assert len(negatives & clicked) >= min(NEGATIVES - EXPLORED, len(clicked))


@pytest.mark.parametrize("refused", [set(), set(range(10, 2000))], ids=["by rejection", "counted out"])
def test_an_item_is_drawn_by_its_clicks(refused: set[int]) -> None:
    """First draws of 1, 2, 3 with 1, 2, 5 clicks: an eighth, a quarter, the rest, whether or not most is refused."""
    past = np.array([1, 2, 2, 3, 3, 3, 3, 3, *refused])
    rng = np.random.default_rng(0)
    first = Counter(draw(past, refused, [], NEGATIVES, rng)[0] for _ in range(1500))
    shares = np.array([first[item] / 1500 for item in (1, 2, 3)])
    np.testing.assert_allclose(shares, [1 / 8, 1 / 4, 5 / 8], atol=4 * np.sqrt(0.25 / 1500))


def test_a_film_that_nobody_clicked_is_shown_as_often_as_any_other_on_the_place_kept_for_that() -> None:
    """20 films have all clicks, 20 have none: an explored place shows each of the free ones alike."""
    clicks = in_time_order(np.arange(2000), np.arange(2000) % 20, np.arange(2000))
    known = known_films(np.zeros(0, np.int64), np.zeros(0, np.int64), np.full(40, 1969))
    pages = page_views(clicks, known, [{item % 20} for item in range(2000)], seed=0)
    shown = Counter(item for page in pages for item in page if item >= 20)
    expected = EXPLORED / (39 - (NEGATIVES - EXPLORED))  # of 40 films, one is clicked and some are drawn by clicks
    shares = np.array([shown[film] / 2000 for film in range(20, 40)])
    np.testing.assert_allclose(shares, expected, atol=4.5 * np.sqrt(expected / 2000))


def test_the_clicked_item_stands_anywhere_on_the_page() -> None:
    clicks = in_time_order(np.arange(400), np.arange(400) % 20, np.arange(400))
    known = known_films(clicks.item, clicks.time, np.zeros(20, np.int64))
    pages = list(page_views(clicks, known, [{item} for item in np.arange(400).tolist()], seed=0))[20:]
    places = Counter(page.index(item % 20) for item, page in enumerate(pages, start=20))
    assert sorted(places) == list(range(PAGE_VIEW_SIZE))
    assert min(places.values()) > 380 / PAGE_VIEW_SIZE / 2


# --- the real folder ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_ratings_become_full_pages_without_a_future_in_them(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is absent: the import of real ratings was NOT tested")
    convert(REAL, tmp_path / "raw", seed=0)
    events = pq.read_table(tmp_path / "raw" / "events.parquet").to_pandas()
    clicks = events[events.event_type == "click"]
    shown = events[events.event_type == "impression"]
    ratings = pq.read_table(REAL / "interactions.parquet").to_pandas()
    films = pq.read_table(REAL / "items.parquet", columns=["item_id", "year"]).to_pandas().set_index("item_id").year
    seen = pd.to_datetime(ratings.groupby("item_id").timestamp.min() + 1, unit="s", utc=True)
    new_year = pd.to_datetime(films.dropna().astype(int).add(1).astype(str), format="%Y", utc=True)
    known = pd.concat([seen, new_year]).groupby(level=0).min()
    known.index = known.index.astype(str)
    asked = set(zip(clicks.request_id, clicks.item_id, strict=True))
    is_click = np.array([pair in asked for pair in zip(shown.request_id, shown.item_id, strict=True)])
    negatives = shown[~is_click]
    assert len(clicks) == 111_783
    assert (negatives.event_time >= negatives.item_id.map(known)).all()
    rated = set(zip(ratings.user_id, ratings.item_id.astype(str), strict=True))
    assert not any(pair in rated for pair in zip(negatives.user_id, negatives.item_id, strict=True))
    assert (shown.groupby("request_id").size() == PAGE_VIEW_SIZE).mean() > 0.999
    assert len(list((tmp_path / "raw" / "images").iterdir())) == 5236
