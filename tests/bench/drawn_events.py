"""Draw a raw events table of any size: zipf users, zipf items, pages with impressions and a tenth of them clicked."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contract import EVENTS
from jobs.datasets.writer import schema, write

MICROS = 1_000_000
DAY = 86_400 * MICROS
START = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * MICROS
DAYS = 30
PAGE = 10  # impressions of a page view
CTR = 0.1
BUYS = 0.05  # of the clicks
REPEATED = 0.005  # of the events are sent twice
CHUNK = 90_000  # page views, about a million events


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """Who meets what: `pages` page views in 30 days, users and items drawn with probability ~ rank ** -exponent.

    bot: the share of all clicks that one user more makes, on pages of its own.
    """

    pages: int
    users: int
    items: int
    seed: int = 0
    user_exponent: float = 0.7  # with 1.0 the first of 400,000 users would open one page view in 14
    item_exponent: float = 1.0
    bot: float = 0.0


def crowd(events: int, *, seed: int = 0, bot: float = 0.0) -> Crowd:
    """A crowd that makes about this many events; the users grow with them, the items with their square root."""
    pages = max(1, round(events / (PAGE * (1 + CTR * (1 + BUYS)) * (1 + REPEATED))))
    return Crowd(pages=pages, users=max(2, pages // 5), items=max(PAGE, round(70 * events**0.5)), seed=seed, bot=bot)


def write_raw(out: Path, drawn: Crowd) -> None:
    """The raw folder `out` with the table events, in files of about a million events, in the order of time."""
    with write(out) as folder:
        (folder / "events").mkdir()
        for number, part in enumerate(_chunks(drawn)):
            pq.write_table(part, folder / "events" / f"part-{number:05}.parquet", row_group_size=1 << 18)


def _chunks(drawn: Crowd) -> Iterator[pa.Table]:
    rng = np.random.default_rng(drawn.seed)
    users, items = (
        _cumulative(n, s) for n, s in ((drawn.users, drawn.user_exponent), (drawn.items, drawn.item_exponent))
    )
    starts = range(0, drawn.pages, CHUNK)
    for start in starts:
        pages = np.arange(start, min(start + CHUNK, drawn.pages))
        within = (start / drawn.pages, (pages[-1] + 1) / drawn.pages)
        opened = START + (rng.uniform(*within, len(pages)) * DAYS * DAY).astype(np.int64)
        yield _events(rng, drawn, pages, opened, users, items)


def _cumulative(count: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, count + 1, dtype=float) ** -exponent
    return np.cumsum(weights) / weights.sum()


def _events(
    rng: np.random.Generator, drawn: Crowd, pages: np.ndarray, opened: np.ndarray, users: np.ndarray, items: np.ndarray
) -> pa.Table:
    """The events of these page views as the contract's table, in the order of time."""
    who = np.searchsorted(users, rng.random(len(pages)))
    is_bot = rng.random(len(pages)) < drawn.bot * CTR / (1 - drawn.bot * (1 - CTR))  # it clicks all that it sees
    who = np.where(is_bot, drawn.users, who)
    page, position = np.repeat(np.arange(len(pages)), PAGE), np.tile(np.arange(PAGE), len(pages))
    item = np.searchsorted(items, rng.random(len(page)))
    at = opened[page] + position * 40_000
    hit = np.flatnonzero((rng.random(len(page)) < CTR) | is_bot[page])
    bought = hit[rng.random(len(hit)) < BUYS]
    click_at = at[hit] + rng.integers(MICROS, 600 * MICROS, len(hit))
    buy_at = at[bought] + rng.integers(600 * MICROS, 3600 * MICROS, len(bought))
    row = np.concatenate([np.arange(len(page)), hit, bought])
    kind = np.repeat([0, 1, 2], [len(page), len(hit), len(bought)])
    when = np.concatenate([at, click_at, buy_at])
    sent = np.concatenate([np.arange(len(row)), rng.integers(0, len(row), round(REPEATED * len(row)))])
    sent = sent[np.argsort(when[sent], kind="stable")]
    row, kind, when = row[sent], kind[sent], when[sent]
    names = pa.array(["impression", "click", "purchase"])
    columns = {
        "user_id": _numbered("u", who[page[row]]),
        "item_id": _numbered("i", item[row]),
        "event_time": pa.array(when, pa.timestamp("us", tz="UTC")),
        "event_type": names.take(pa.array(kind)),
        "request_id": _scattered(pages).take(pa.array(page[row])),
        "position": pa.array(position[row].astype(np.int32), mask=kind != 0),
    }
    return pa.table(columns).cast(schema(EVENTS))


def _numbered(prefix: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")


def _scattered(numbers: np.ndarray) -> pa.Array:
    """16 hex digits for each number, all distinct and in no order, as the request ids of a site are."""
    digits = (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).byteswap().tobytes().hex()  # odd: one to one
    return pa.array([digits[at : at + 16] for at in range(0, len(digits), 16)])
