"""A small shop's artifacts, its real Feast store, raw events, one Spark for all tests, and an S3 server."""

import bisect
import functools
import os
import random
import re
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
from hypothesis import settings
from upath import UPath

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports tests as files, without a place for what they import

from database_servers import postgresql_server, redis_server, releases_url  # noqa: F401 (fixtures)

from feature_repo.contract import CTR_HISTORY, ITEM_STATISTICS, USER_STATISTICS, WINDOWS_DAYS, View
from jobs.features import offline
from jobs.rules.events import Event
from model import artifact
from model.released_items import FOLDER as LOOKUP
from model.released_items import write_lookup

# `ci` draws the same examples each time, `all` (make test-all: --hypothesis-profile=all) others and more of them.
settings.register_profile("ci", deadline=None, derandomize=True, database=None)  # a busy machine is slow, not wrong
settings.register_profile("all", deadline=None, derandomize=False, max_examples=300, print_blob=True)
settings.load_profile("ci")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the front door does, before torch is loaded

START = datetime(2024, 3, 1, tzinfo=UTC)
SPACE = "s0123456789ab"
CODEBOOK = "c0123456789ab"
MICROSECOND = timedelta(microseconds=1)
TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Shop:
    """A shop's artifacts, and the plain lists that they were written from."""

    workspace: Path
    sequences: Path
    images: Path
    embed: Path
    cluster: Path
    features: Path
    impressions: list[dict[str, Any]]
    clicks: list[dict[str, Any]]
    items: list[dict[str, Any]]
    cluster_ids: dict[str, int]
    vectors: dict[str, np.ndarray]
    as_of: datetime


def draw_events(
    rng: random.Random, *, users: int, items: int, requests: int, days: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Impressions and clicks in time order; every third request comes at the very moment of the user's last click.

    Every tenth request comes at midnight, when statistics change; the last two items are shown in the last tenth only.
    """
    impressions, clicks = [], []
    last: dict[str, datetime] = {}
    span = timedelta(days=days)
    for number, moment in enumerate(sorted(rng.random() for _ in range(requests))):
        at = START + timedelta(microseconds=int(moment * span / MICROSECOND))
        if number % 10 == 0:
            at = at.replace(hour=0, minute=0, second=0, microsecond=0)
        user = f"u{rng.randrange(users)}"
        if number % 3 == 0 and user in last:
            at = last[user]
        request = f"r{number:06d}"
        for position, item in enumerate(rng.sample(range(items if moment > 0.9 else items - 2), 5)):
            clicked = rng.random() < 0.3
            row = {"request_id": request, "user_id": user, "item_id": f"i{item}"}
            shown_at = at + timedelta(minutes=position)  # now and then on the next day
            shown = {"request_time": at, "shown_at": shown_at, "position": position}
            impressions.append({**row, **shown, "clicked": int(clicked)})
            if clicked:
                last[user] = at + timedelta(seconds=rng.randrange(60))
                clicks.append({**row, "event_time": last[user]})
    clicks.sort(key=lambda click: (click["event_time"], click["item_id"]))
    return impressions, clicks


def histories(clicks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of user_history: after each distinct click time, what the user clicked, newest first."""
    by_user = defaultdict(list)
    for click in clicks:
        by_user[click["user_id"]].append((click["event_time"], click["item_id"]))
    rows = []
    for user, clicked in by_user.items():
        for moment in sorted({at for at, _ in clicked}):
            newest = sorted((c for c in clicked if c[0] <= moment), key=lambda c: (-c[0].timestamp(), c[1]))
            kept = newest[:CTR_HISTORY]
            rows.append(
                {
                    "user_id": user,
                    "event_timestamp": moment + MICROSECOND,
                    "history_item_ids": [item for _, item in kept],
                    "history_clicked_at": [(at - datetime.fromtimestamp(0, UTC)) // MICROSECOND for at, _ in kept],
                }
            )
    return rows


def with_ctr(counts: Sequence[int]) -> list[float]:
    """Impressions and clicks of each window, and after each pair its smoothed CTR."""
    pairs = zip(counts[::2], counts[1::2], strict=True)
    return [number for shown, clicked in pairs for number in (shown, clicked, (clicked + 1) / (shown + 20))]


def statistics(
    view: View, impressions: Sequence[dict[str, Any]], clicks: Sequence[dict[str, Any]], as_of: datetime
) -> list[dict[str, Any]]:
    """The rows of a statistics view: a snapshot at every midnight at which some count of the entity changed."""
    [key] = view.keys
    shown, clicked = defaultdict(list), defaultdict(list)
    for row in impressions:
        shown[row[key]].append(row["shown_at"])
    for row in clicks:
        clicked[row[key]].append(row["event_time"])
    rows = []
    for entity in sorted(shown | clicked):
        times = [sorted(shown[entity]), sorted(clicked[entity])]
        before = [0, 0] * len(WINDOWS_DAYS)
        for day in range(1, (as_of - START).days + 1):
            midnight = START + timedelta(days=day)
            counts = [
                bisect.bisect_left(of, midnight) - bisect.bisect_left(of, midnight - timedelta(days=window))
                for window in WINDOWS_DAYS
                for of in times
            ]
            if counts != before:
                names = [feature.name for feature in view.features]
                numbers = with_ctr(counts)
                rows.append({key: entity, "event_timestamp": midnight, **dict(zip(names, numbers, strict=True))})
            before = counts
    return rows


def save(rows: Sequence[dict[str, Any]], schema: pa.Schema, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


def write_sequences(
    out: Path,
    impressions: Sequence[dict[str, Any]],
    clicks: Sequence[dict[str, Any]],
    *,
    valid: datetime,
    test: datetime,
) -> None:
    """A sequences artifact of these events, split at `valid` and `test`."""
    keys = [("request_id", pa.string()), ("user_id", pa.string()), ("item_id", pa.string())]
    shown = [
        ("request_time", TIME),
        ("shown_at", TIME),
        ("position", pa.int32()),
        ("clicked", pa.int8()),
        ("period", pa.string()),
    ]

    def period(at: datetime) -> str:
        return "train" if at < valid else "valid" if at < test else "test"

    end = max(row.get("event_time", row.get("shown_at")) for row in (*impressions, *clicks)) + MICROSECOND
    splits = {"start": START, "valid_start": valid, "test_start": test, "end": end}
    with artifact.write(out, kind="sequences", inputs={}, config={}) as draft:
        rows = [{**row, "period": period(row["request_time"])} for row in impressions]
        save(rows, pa.schema([*keys, *shown]), draft.path / "impressions" / "part-0.parquet")
        save(clicks, pa.schema([*keys, ("event_time", TIME)]), draft.path / "clicks" / "part-0.parquet")
        schema = offline.source_schema(offline.USER_HISTORY)
        save(histories(clicks), schema, draft.path / "histories" / "part-0.parquet")
        draft.facts = {"splits": {name: at.isoformat() for name, at in splits.items()}}


def write_images(out: Path, items: Sequence[dict[str, Any]]) -> None:
    schema = pa.schema(
        [("item_id", pa.string()), ("category", pa.string()), ("price", pa.float64()), ("created_at", TIME)]
    )
    with artifact.write(out, kind="images", inputs={}, config={}) as draft:
        save(items, schema, draft.path / "items.parquet")


def write_space(embed: Path, cluster: Path, vectors: dict[str, np.ndarray], cluster_ids: dict[str, int]) -> None:
    """Embed and cluster artifacts of the space SPACE."""
    schema = pa.schema([("item_id", pa.string()), ("image_id", pa.string()), ("row", pa.int32())])
    ids = sorted(vectors)
    with artifact.write(embed, kind="embed", inputs={}, config={}) as draft:
        np.save(draft.path / "vectors.npy", np.stack([vectors[item] for item in ids]))
        rows = [{"item_id": item, "image_id": f"p{item}", "row": row} for row, item in enumerate(ids)]
        save(rows, schema, draft.path / "items.parquet")
        draft.facts = {"space_id": SPACE, "vectors": len(ids), "items": len(ids)}
    with artifact.write(cluster, kind="cluster", inputs={}, config={}) as draft:
        rows = [{"item_id": item, "cluster_id": cluster_ids[item]} for item in sorted(cluster_ids)]
        save(rows, pa.schema([("item_id", pa.string()), ("cluster_id", pa.int32())]), draft.path / "items.parquet")
        names, codes = [row["item_id"] for row in rows], np.array([row["cluster_id"] for row in rows], np.int32)
        write_lookup(draft.path / LOOKUP, pa.array(names), codes, np.array([ids.index(name) for name in names]))
        draft.facts = {"space_id": SPACE, "codebook_id": CODEBOOK, "clusters": 8}


def write_features(shop_paths: dict[str, Path], out: Path, stats: dict[View, list[dict[str, Any]]]) -> None:
    """A features artifact whose statistics come from the plain counting above, everything else from the real job."""
    start, as_of = offline.period(shop_paths["sequences"])
    with artifact.write(out, kind="features", inputs={}, config={}) as draft:
        for view, rows in stats.items():
            save(rows, offline.source_schema(view), draft.path / view.name / "part-0.parquet")
        offline.write_histories(shop_paths["sequences"], draft.path)
        offline.write_item_facts(**shop_paths, out=draft.path, space_id=SPACE, codebook_id=CODEBOOK)
        rows_of = {view.name: offline.checked_rows(draft.path, view) for view in offline.VIEWS}
        draft.facts = {
            "rows": rows_of,
            "start": start.isoformat(),
            "as_of": as_of.isoformat(),
            "space_id": SPACE,
            "codebook_id": CODEBOOK,
        }


def make_shop(root: Path, *, users: int = 12, items: int = 40, requests: int = 300, days: int = 12) -> Shop:
    """A shop under `root`: the same one every time. Some items lack a category, price, creation date or picture."""
    rng = random.Random(7)
    impressions, clicks = draw_events(rng, users=users, items=items, requests=requests, days=days)
    catalogue = [
        {
            "item_id": f"i{number}",
            "category": None if number % 11 == 0 else f"c{number % 4}",
            "price": None if number % 7 == 0 else number + 0.5,
            "created_at": None if number % 5 == 0 else START + timedelta(days=number % 9),
        }
        for number in range(items + 2)  # the last two are never shown
    ]
    pictured = [row["item_id"] for number, row in enumerate(catalogue) if number % 13 != 3]
    draws = np.random.default_rng(7)
    vectors = {item: draws.normal(size=256).astype(np.float32) for item in pictured}
    vectors = {item: vector / np.linalg.norm(vector) for item, vector in vectors.items()}
    cluster_ids = {item: rng.randrange(8) for item in pictured}
    paths = {name: root / name / "k" for name in ("sequences", "images", "embed", "cluster")}
    split = {"valid": START + timedelta(days=days * 0.7), "test": START + timedelta(days=days * 0.85)}
    write_sequences(paths["sequences"], impressions, clicks, **split)
    write_images(paths["images"], catalogue)
    write_space(paths["embed"], paths["cluster"], vectors, cluster_ids)
    as_of = offline.period(paths["sequences"])[1]
    stats = {view: statistics(view, impressions, clicks, as_of) for view in (USER_STATISTICS, ITEM_STATISTICS)}
    write_features(paths, root / "features" / "k", stats)
    return Shop(
        workspace=root,
        **paths,
        features=root / "features" / "k",
        impressions=impressions,
        clicks=clicks,
        items=catalogue,
        cluster_ids=cluster_ids,
        vectors=vectors,
        as_of=as_of,
    )


# --- Spark ----------------------------------------------------------------------------------------------------------


# What takes longest comes first, so that no process is left alone with it at the end. Figures: docs/decisions/0008.
LONGEST = ("test_road.py", "test_leaks.py", "test_click_stream.py", "test_beam.py", "test_train.py", "test_resume.py")
OF_SPARK = re.compile(r"\bdef \w+\([^)]*\bspark\b|usefixtures\(\"spark\"\)|\bproduction_spark\b")


@functools.cache
def asks_for_spark(file: Path) -> bool:
    return OF_SPARK.search(file.read_text("utf-8")) is not None


def runs_spark(test: str, root: Path) -> bool:
    """Whether a test, by its id, runs Spark: its file asks for the fixture, or one of its parameters is the engine."""
    file, _, name = test.partition("::")
    return asks_for_spark(root / file) or "spark" in name.partition("[")[2]


@pytest.hookimpl(tryfirst=True)  # before what puts them into a random order
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> tuple[bool, int]:
        return not runs_spark(item.nodeid, config.rootpath), places.get(item.path.name, len(places))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of `--dist loadfile`: all files of Spark go to one process, for the first queries of a JVM are its slowest."""
    from xdist.scheduler import LoadFileScheduling

    class TogetherScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "spark" if runs_spark(nodeid, config.rootpath) else nodeid.partition("::")[0]

    return TogetherScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def java() -> None:
    """Skips a test of Spark where there is no Java, once and for all, and says how to get it."""
    from jobs.engines import spark_session as session

    try:
        session.require_java()
    except session.JavaMissing as missing:
        pytest.skip(f"SPARK IS NOT TESTED HERE: {missing}")


# Many small queries: to generate and compile Java for each costs more than to interpret it, a task more than its rows.
INTERPRETED = {
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.shuffle.partitions": "2",
}


@pytest.fixture(scope="session")
def spark(java: None) -> Iterator[Any]:  # noqa: ARG001 (without it there is no Spark)
    """One Spark for all tests of a process, which interprets its plans."""
    from jobs.engines import spark_session as session

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(session, "HEAP_GIB", (4, 4))  # of a machine that two processes share
        for name, value in INTERPRETED.items():
            patched.setitem(session.SETTINGS, name, value)
        running = session.spark_session("courier tests", master="local[2]", large=True)
    yield running
    running.stop()


@contextmanager
def compiling(running: Any) -> Iterator[None]:
    """The Spark of the tests with the settings that it has in production."""
    from jobs.engines import spark_session as session

    before = {name: running.conf.get(name) for name in INTERPRETED}
    for name in INTERPRETED:
        running.conf.unset(name)
    running.conf.set(session.PARTITIONS, session.LOCAL_PARTITIONS)
    yield
    for name, value in before.items():
        running.conf.set(name, value)


@pytest.fixture(scope="module")
def production_spark(spark: Any) -> Iterator[Any]:
    """The Spark of all tests, which for this module plans, compiles and cuts its tables as in production."""
    with compiling(spark):
        yield spark


# --- all tests ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def log_where_each_test_looks() -> Iterator[None]:
    """A program's `main` logs to the stderr of its day, which pytest closes with the test."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def shop_maker() -> Callable[..., Shop]:
    """`make_shop`, for tests that need a shop of their own."""
    return make_shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A small shop's artifacts; read-only."""
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def loaded_shop(shop: Shop) -> Shop:
    """The small shop with its Feast registry applied and its online store loaded."""
    from jobs.features import materialize

    materialize.build(features=shop.features, workspace=shop.workspace, out=shop.workspace / "materialize" / "k")
    return shop


# --- object stores --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A server of this process that answers as S3 does, on a free port of the loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> UPath:
    """A new bucket of that server, found by whoever speaks S3 in this process and in those that it starts."""
    for name, value in (("ENDPOINT_URL", s3_server), ("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    place = UPath(f"s3://courier-{uuid.uuid4().hex}", use_listings_cache=False)
    place.fs.mkdir(place.path)
    return place


# --- raw events -------------------------------------------------------------------------------------------------------


TEN_AT_NIGHT = datetime(2024, 3, 1, 22, tzinfo=UTC)
# Two hours before a midnight, the midnight itself, and the microseconds beside each: every edge of every interval.
OFFSETS = [
    timedelta(hours=hours, microseconds=micros) for hours in (0, 2, 3, 26, 50, 170, 194) for micros in (-1, 0, 1)
]


@pytest.fixture(scope="session")
def drawn_events() -> Callable[[Iterable[int]], list[Event]]:
    """Events from integers, one each: few users, items, requests and moments, so that all of them collide often."""

    def one(code: int) -> Event:
        def pick(options: int) -> int:
            nonlocal code
            code, choice = divmod(code, options)
            return choice

        request = pick(24)
        user = request % 5 if pick(20) else pick(5)  # now and then someone else's request
        return Event(
            user_id=f"u{user}",
            item_id="abcdefg"[pick(7)],
            event_time=TEN_AT_NIGHT + OFFSETS[pick(len(OFFSETS))],
            event_type=("impression", "impression", "impression", "click", "click", "cart", "purchase")[pick(7)],
            request_id=f"r{request}",
            position=pick(9),
        )

    return lambda codes: [one(code) for code in codes]


@pytest.fixture(scope="session")
def write_events() -> Callable[[Path, Iterable[Event]], Path]:
    """Write events as the table `events` of a raw folder, and return the folder."""

    def write(raw: Path, events: Iterable[Event]) -> Path:
        names = ("user_id", "item_id", "event_time", "event_type", "request_id", "position")
        kinds = [pa.string(), pa.string(), pa.timestamp("us", tz="UTC"), pa.string(), pa.string(), pa.int32()]
        rows = [{name: getattr(one, name) for name in names} for one in events]
        schema = pa.schema(list(zip(names, kinds, strict=True)))
        raw.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), raw / "events.parquet")
        return raw

    return write
