"""The generated shop: the contract's tables, one defined world per seed, a truth that the clicks obey."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from feature_repo.contract import EVENT_TYPES, PAGE_VIEW_SIZE
from jobs.datasets import writer
from jobs.datasets.shop import START, _write_image, generate, main
from jobs.datasets.shop_behavior import DAY, Catalogue, Habits, simulate
from jobs.datasets.shop_images import CATEGORIES, ORNAMENTS, PALETTES, SIZE, TEXTURES, draw, placeholder
from model.errors import CourierError

ITEMS, USERS, REQUESTS = 120, 60, 1500


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "raw"
    generate(out, items=ITEMS, users=USERS, requests=REQUESTS, seed=0)
    return out


@pytest.fixture(scope="module")
def events(shop: Path) -> pd.DataFrame:
    return pq.read_table(shop / "events.parquet").to_pandas()


@pytest.fixture(scope="module")
def items(shop: Path) -> pd.DataFrame:
    return pq.read_table(shop / "items.parquet").to_pandas().set_index("item_id")


@pytest.fixture(scope="module")
def truth_items(shop: Path) -> pd.DataFrame:
    return pq.read_table(shop / "truth_items.parquet").to_pandas().set_index("item_id")


def of_type(events: pd.DataFrame, event_type: str) -> pd.DataFrame:
    return events[events.event_type == event_type]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def simulated(seed: int = 0, requests: int = 4000, **habits: object) -> tuple[Catalogue, object]:
    """A catalogue of 400 items of two categories, a quarter of which arrive later, and page views over it."""
    rng = np.random.default_rng(seed)
    styles = np.stack([rng.integers(0, size, 400) for size in (8, 6, 5)], axis=1)
    created = np.where(np.arange(400) % 4 == 3, (rng.random(400) * 28 * DAY).astype(int), -1)
    catalogue = Catalogue(np.arange(400) // 200, styles, rng.normal(size=400), created)
    views = simulate(
        catalogue,
        users=100,
        requests=requests,
        categories=2,
        style_sizes=(8, 6, 5),
        habits=Habits(**habits),  # type: ignore[arg-type]
        seed=seed,
    )
    return catalogue, views


# --- one world per seed ---------------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(shop: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", items=ITEMS, users=USERS, requests=REQUESTS, seed=0)
    generate(tmp_path / "other", items=ITEMS, users=USERS, requests=REQUESTS, seed=1)
    assert digests(tmp_path / "again") == digests(shop)
    assert digests(tmp_path / "other")["events.parquet"] != digests(shop)["events.parquet"]


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(CourierError, match="already exists"):
        generate(tmp_path, items=ITEMS, users=USERS, requests=REQUESTS, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_shop_too_small_for_a_page_of_each_category_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CourierError, match="at least 40 items"):
        generate(tmp_path / "raw", items=39, users=1, requests=1, seed=0)


def test_the_command_writes_the_smallest_shop(tmp_path: Path) -> None:
    command = [str(tmp_path / "raw"), "--items", "40", "--users", "1", "--requests", "1", "--seed", "3"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    assert pq.read_table(tmp_path / "raw" / "truth.parquet").num_rows == PAGE_VIEW_SIZE


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writer.write(tmp_path / "raw") as folder:
        (folder / "absent" / "file").write_text("", "utf-8")
    assert list(tmp_path.iterdir()) == []


# --- the raw tables -------------------------------------------------------------------------------------------------


def test_the_tables_are_the_contracts_and_their_times_are_microseconds_utc(shop: Path) -> None:
    assert pq.read_schema(shop / "events.parquet") == writer.schema(writer.EVENTS)
    assert pq.read_schema(shop / "items.parquet") == writer.schema(writer.ITEMS)
    assert str(pq.read_schema(shop / "events.parquet").field("event_time").type) == "timestamp[us, tz=UTC]"
    assert json.loads((shop / "SOURCE.json").read_text("utf-8"))["sampled_negatives"] is False


def test_a_page_holds_distinct_items_of_one_category_at_one_moment(events: pd.DataFrame, items: pd.DataFrame) -> None:
    shown = of_type(events, "impression").assign(category=lambda e: e.item_id.map(items.category))
    pages = shown.groupby("request_id")
    assert len(pages) == REQUESTS
    assert (pages[["user_id", "event_time", "category"]].nunique() == 1).all(axis=None)
    assert (pages.item_id.nunique() == PAGE_VIEW_SIZE).all()
    assert (pages.position.agg(lambda p: tuple(sorted(p))) == tuple(range(PAGE_VIEW_SIZE))).all()


def test_nothing_is_shown_before_it_exists(events: pd.DataFrame, items: pd.DataFrame) -> None:
    assert (events.event_time > events.item_id.map(items.created_at)).all()
    late = items.created_at > pd.Timestamp(START)
    assert 0.1 < late.mean() < 0.5


def test_events_lie_in_time_order_and_every_event_answers_the_one_before_it(events: pd.DataFrame) -> None:
    assert events.event_time.is_monotonic_increasing
    assert set(events.event_type) == set(EVENT_TYPES)
    key = ["user_id", "request_id", "item_id", "position"]
    for earlier, later in itertools.pairwise(EVENT_TYPES):
        joined = of_type(events, later).merge(of_type(events, earlier), on=key, suffixes=("", "_before"), how="left")
        assert joined.event_time_before.notna().all()
        assert (joined.event_time > joined.event_time_before).all()


def test_a_page_is_answered_before_the_user_asks_for_the_next_one_of_the_visit() -> None:
    _, views = simulated()
    for user in range(100):
        times = views.time[views.user == user]
        gaps = np.diff(times)
        assert (gaps >= 0).all()
    assert np.median(np.diff(np.sort(views.time[views.user == 0]))) >= 15_000_000


# --- truth ----------------------------------------------------------------------------------------------------------


def test_truth_names_every_impression_once_and_clicks_follow_it(shop: Path, events: pd.DataFrame) -> None:
    truth = pq.read_table(shop / "truth.parquet").to_pandas()
    shown = of_type(events, "impression")[["request_id", "item_id"]]
    both = truth.merge(shown, on=["request_id", "item_id"], validate="one_to_one")
    assert len(both) == len(truth) == len(shown)
    clicked = of_type(events, "click").set_index(["request_id", "item_id"]).index
    label = truth.set_index(["request_id", "item_id"]).index.isin(clicked)
    deviation = np.sqrt((truth.p_click * (1 - truth.p_click)).sum())
    assert abs(label.sum() - truth.p_click.sum()) < 4 * deviation
    assert roc_auc_score(label, truth.p_click) > 0.7


def test_an_empty_place_on_a_page_has_no_probability_and_no_click() -> None:
    catalogue = Catalogue(np.zeros(3, int), np.zeros((3, 3), int), np.zeros(3), np.array([-1, -1, 14 * DAY]))
    views = simulate(
        catalogue, users=4, requests=200, categories=1, style_sizes=(8, 6, 5), habits=Habits(base=9.0), seed=0
    )
    empty = views.items < 0
    assert (empty.sum(axis=1) == np.where(views.time > 14 * DAY, 2, 3)).all()
    assert (views.p_click[empty] == 0).all()
    assert not views.clicked[empty].any()
    assert not empty[:, 0].any()


def test_without_tastes_quality_and_noise_the_probability_is_the_positions() -> None:
    _, views = simulated(favourites=((0.0,), (0.0,), (0.0,)), quality=0.0, idiosyncrasy=0.0)
    expected = 1 / (1 + np.exp(-(Habits().base + np.array(Habits().position))))
    np.testing.assert_allclose(views.p_click, np.tile(expected, (4000, 1)))


def test_the_higher_place_is_clicked_more_often_but_not_because_of_what_stands_there() -> None:
    catalogue, views = simulated(requests=20_000)
    rates = views.clicked.mean(axis=0)
    assert (np.diff(rates) < 0).all()
    assert rates[0] < 2 * rates[-1]
    assert np.ptp(catalogue.popularity[views.items].mean(axis=0)) < 0.05


def test_an_intentions_probability_rises_with_its_favourite_palette_alone() -> None:
    catalogue, views = simulated(favourites=((3.0,), (0.0,), (0.0,)), quality=0.0, idiosyncrasy=0.0)
    palette = catalogue.styles[views.items, 0]
    logit = np.log(views.p_click / (1 - views.p_click)) - Habits().base - np.array(Habits().position)
    liked = logit > 0
    np.testing.assert_allclose(np.unique(logit.round(6)), [-3 / 8, 3 - 3 / 8])
    for intention in np.unique(views.intention):
        rows = views.intention == intention
        assert len(np.unique(palette[rows][liked[rows]])) <= 1


def test_intentions_drift_and_stay_within_a_visit() -> None:
    _, views = simulated(requests=20_000)
    of_user = pd.DataFrame({"user": views.user, "intention": views.intention, "day": views.time // DAY})
    first, last = (of_user[of_user.day.between(*days)] for days in ((0, 4), (23, 27)))
    assert (~last.intention.isin(first.intention)).mean() > 0.2
    changes = of_user.groupby("user").intention.agg(lambda i: (i.diff() != 0).mean())
    assert changes.mean() < 0.3


def test_a_style_shows_in_no_other_column(items: pd.DataFrame, truth_items: pd.DataFrame) -> None:
    words = {word.lower() for title in items.title for word in title.split()}
    labels = {*PALETTES, *TEXTURES, *ORNAMENTS}
    assert not words & labels
    for column in ("palette", "texture", "ornament"):
        by_category = pd.crosstab(items.category, truth_items[column])
        assert (by_category > 0).mean(axis=None) > 0.8


# --- images ---------------------------------------------------------------------------------------------------------


def unreadable(path: Path) -> bool:
    try:
        Image.open(path).load()
    except OSError:
        return True
    return False


def test_the_planted_defects_are_there_and_only_those(
    shop: Path, items: pd.DataFrame, truth_items: pd.DataFrame
) -> None:
    files = {item: shop / uri for item, uri in items.image_uri.items()}
    missing = [item for item, path in files.items() if not path.exists()]
    broken = [item for item, path in files.items() if path.exists() and unreadable(path)]
    assert (len(missing), len(broken)) == (1, 3)
    assert sorted(files[item].stat().st_size == 0 for item in broken) == [False, False, True]
    assert sum(files[item].read_bytes().startswith(b"<!DOCTYPE") for item in broken) == 1
    whole = items.drop(index=[*missing, *broken]).assign(sha=lambda t: [digest(files[item]) for item in t.index])
    groups = whole.groupby("sha").groups.values()
    shared = sorted((list(group) for group in groups if len(group) > 1), key=len)
    assert [len(group) for group in shared] == [2, 2, 6]
    for pair in shared[:-1]:
        assert items.loc[pair].category.nunique() == 1
        assert truth_items.loc[pair].drop_duplicates().shape[0] == 1
    assert items.loc[shared[-1]].category.nunique() >= 3


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_picture_is_square_rgb_on_a_light_ground() -> None:
    for category in CATEGORIES:
        image = draw(category, "navy", "dots", "star", np.random.default_rng(0))
        assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")
        pixels = np.asarray(image)
        assert np.concatenate([pixels[0], pixels[-1]]).mean() > 190
        assert (np.abs(pixels.astype(int) - pixels[0, 0]).max(axis=-1) > 60).mean() > 0.1
    assert placeholder().size == (SIZE, SIZE)


@pytest.mark.parametrize("part", ["category", "palette", "texture", "ornament"])
def test_changing_one_label_changes_the_picture_under_the_same_camera(part: str) -> None:
    values = {"category": CATEGORIES, "palette": tuple(PALETTES), "texture": TEXTURES, "ornament": ORNAMENTS}
    plain = {name: choices[1] for name, choices in values.items()}
    drawn = [drawn_at_96({**plain, part: choice}) for choice in values[part]]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert (np.abs(one - other).max(axis=-1) > 40).mean() > 0.01


def drawn_at_96(labels: dict[str, str]) -> np.ndarray:
    image = draw(**labels, rng=np.random.default_rng(5))
    return np.asarray(image.resize((96, 96)), float)


def test_a_picture_depends_on_its_item_alone_not_on_the_order_of_drawing(tmp_path: Path) -> None:
    catalogue = Catalogue(np.arange(4), np.arange(12).reshape(4, 3) % 5, np.zeros(4), np.zeros(4, int))
    for folder, order in (("one", (0, 1, 2, 3)), ("two", (3, 1, 0, 2))):
        (tmp_path / folder).mkdir()
        for index in order:
            _write_image(tmp_path / folder, catalogue, 7, index)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert Image.open(tmp_path / "one" / "i00000.jpg").format == "JPEG"
