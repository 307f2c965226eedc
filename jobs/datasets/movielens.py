"""Import MovieLens ratings with posters as raw tables: a high rating is a click, its page is filled by sampling."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from feature_repo.contract import PAGE_VIEW_SIZE
from jobs.datasets import writer
from model.errors import CourierError

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

CLICK_RATING: Final = 4.0  # a rating of at least this is a click
NEGATIVES: Final = PAGE_VIEW_SIZE - 1
EXPLORED: Final = 1  # places of a page that are filled evenly, else a film that nobody clicked is never shown
PATIENCE: Final = 64  # rejected draws in a row before the remaining candidates are counted out exactly

_COLUMNS: Final = {
    "interactions": {"user_id": pa.string(), "item_id": pa.int64(), "timestamp": pa.int64(), "rating": pa.float64()},
    "items": {
        "item_id": pa.int64(),
        "title": pa.string(),
        "genres": pa.string(),
        "year": pa.int64(),
        "image_path": pa.string(),
    },
}
_REQUIRED: Final = {"interactions": ("user_id", "item_id", "timestamp", "rating"), "items": ("item_id",)}

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Clicks:
    """Clicks in the order of (time, user, item), (C,) each; users and items as indexes, time in seconds since 1970."""

    user: Ints
    item: Ints
    time: Ints


@dataclass(frozen=True, slots=True)
class Known:
    """Films in the order of the second, since 1970, from which they may be shown, (I,) each; items as indexes."""

    item: Ints
    since: Ints

    def at(self, time: int) -> Ints:
        """Those that may be shown at `time`."""
        return self.item[: np.searchsorted(self.since, time, side="right")]


def convert(src: Path, out: Path, *, seed: int) -> None:
    """Write the raw folder `out` from `src` (interactions.parquet, items.parquet, images/). Same seed, same bytes.

    Raises CourierError if `src` lacks a table, a table cannot be used or `out` is not empty.
    """
    ratings, items = _read(src, "interactions"), _read(src, "items")
    items = items.sort_by("item_id")
    users, user = np.unique(ratings["user_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    item_ids = np.union1d(items["item_id"].to_numpy(), ratings["item_id"].to_numpy())
    item = np.searchsorted(item_ids, ratings["item_id"].to_numpy())
    rated = _rated(user, item, len(users))
    liked = ratings["rating"].to_numpy() >= CLICK_RATING
    if not liked.any():
        raise CourierError(
            f"{src / 'interactions.parquet'} has no rating of {CLICK_RATING:g} or more: nothing is a click"
        )
    times = ratings["timestamp"].to_numpy()
    clicks = in_time_order(user[liked], item[liked], times[liked])
    known = known_films(item, times, _years(items, item_ids))
    pages = list(
        track(
            page_views(clicks, known, rated, seed=seed),
            description="page views",
            total=len(clicks.time),
            console=Console(stderr=True),
        )
    )
    with writer.write(out) as folder:
        writer.write_events(folder, _event_columns(clicks, pages, users, item_ids))
        writer.write_items(folder, _item_columns(items))
        writer.write_source(
            folder,
            name="movielens-posters",
            sampled_negatives=True,
            description="MovieLens ratings (Harper & Konstan 2015, doi:10.1145/2827872) with posters: research use "
            f"only. A rating of {CLICK_RATING:g} or more is a click; its page view is filled with {NEGATIVES} items "
            f"that the user never rated, seed {seed}: {NEGATIVES - EXPLORED} drawn by their clicks before that moment, "
            f"{EXPLORED} evenly among the films of earlier years and those rated before.",
        )
        images = _place_images(src, folder, items["image_path"].to_pylist(), items["item_id"].to_pylist())
    log.info(
        "movielens_imported",
        out=str(out),
        ratings=ratings.num_rows,
        page_views=len(pages),
        impressions=sum(len(page) for page in pages),
        full_pages=sum(len(page) == PAGE_VIEW_SIZE for page in pages),
        users=len(users),
        items=items.num_rows,
        images=images,
    )


def in_time_order(user: Ints, item: Ints, time: Ints) -> Clicks:
    """Clicks sorted by (time, user, item): ties in time keep this one order."""
    order = np.lexsort((item, user, time))
    return Clicks(user[order], item[order], time[order])


def known_films(item: Ints, time: Ints, years: Ints) -> Known:
    """From when each film may be shown: the year after its own, or the second after its first rating by anyone.

    item, time: of every rating, (R,).  years: of each item, (I,), 0 where unknown.
    """
    since = np.full(len(years), np.iinfo(np.int64).max)
    np.minimum.at(since, item, time + 1)
    new_year = (years - 1970 + 1).astype("datetime64[Y]").astype("datetime64[s]").astype(np.int64)
    since = np.where(years > 0, np.minimum(since, new_year), since)
    order = np.argsort(since, kind="stable")
    return Known(order, since[order])


def page_views(clicks: Clicks, known: Known, rated: Sequence[Set[int]], *, seed: int) -> Iterator[list[int]]:
    """For each click, the items of its page, top first: the clicked one and up to NEGATIVES others, at random places.

    rated: per user, all items the user rates at any time; none of them is drawn. The others are distinct: all but
    EXPLORED of them in proportion to their clicks at times strictly before this one, the rest, and what those did not
    fill, evenly among the known.
    """
    rng = np.random.default_rng(seed)
    before = np.searchsorted(clicks.time, clicks.time, side="left")  # clicks[:before[n]] lie strictly before click n
    rows = zip(clicks.user.tolist(), clicks.item.tolist(), clicks.time.tolist(), before.tolist(), strict=True)
    for user, item, time, past in rows:
        popular = draw(clicks.item[:past], rated[user], [], NEGATIVES - EXPLORED, rng)
        page = draw(known.at(time), rated[user], popular, NEGATIVES, rng)
        page.insert(int(rng.integers(len(page) + 1)), item)
        yield page


def draw(past: Ints, refused: Set[int], chosen: Sequence[int], size: int, rng: np.random.Generator) -> list[int]:
    """Complete `chosen` to up to `size` distinct items of `past` that are not refused, each drawn by its entries."""
    found = list(chosen)
    while len(found) < size and len(past):
        draws = past[rng.integers(0, len(past), PATIENCE)].tolist()
        wanted = dict.fromkeys(item for item in draws if item not in refused and item not in found)
        if not wanted:
            return _draw_exactly(past, refused, found, size, rng)
        found.extend(list(wanted)[: size - len(found)])
    return found


def _draw_exactly(past: Ints, refused: Set[int], chosen: list[int], size: int, rng: np.random.Generator) -> list[int]:
    """Complete `chosen` by the same law, from the counted candidates: for pasts in which nearly all is refused."""
    items, entries = np.unique(past, return_counts=True)
    free = np.array([item not in refused and item not in chosen for item in items.tolist()])
    items, entries = items[free], entries[free]
    missing = min(size - len(chosen), len(items))
    if not missing:
        return chosen
    sampled: list[int] = rng.choice(items, size=missing, replace=False, p=entries / entries.sum()).tolist()
    return chosen + sampled


def _rated(user: Ints, item: Ints, users: int) -> list[set[int]]:
    rated: list[set[int]] = [set() for _ in range(users)]
    for who, what in zip(user.tolist(), item.tolist(), strict=True):
        rated[who].add(what)
    return rated


def _years(items: pa.Table, item_ids: Ints) -> Ints:
    """The year of each of `item_ids`, 0 where the table does not tell it."""
    years = dict(zip(items["item_id"].to_pylist(), items["year"].to_pylist(), strict=True))
    return np.array([years.get(item) or 0 for item in item_ids.tolist()], np.int64)


# --- reading and writing --------------------------------------------------------------------------------------------


def _read(src: Path, name: str) -> pa.Table:
    """The needed columns of a table of `src`, cast to their types."""
    path = src / f"{name}.parquet"
    if not path.is_file():
        raise CourierError(f"{path} does not exist: give a folder with interactions.parquet, items.parquet and images/")
    try:
        table = pq.read_table(path)
        table = pa.table({column: pc.cast(table[column], kind) for column, kind in _COLUMNS[name].items()})
    except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        needed = ", ".join(f"{column} {kind}" for column, kind in _COLUMNS[name].items())
        raise CourierError(f"{path} is not a table with the columns {needed} ({str(error).splitlines()[0]})") from None
    for column in _REQUIRED[name]:
        if table[column].null_count:
            raise CourierError(f"{path} has {table[column].null_count} rows without {column}: remove or complete them")
    return table


def _event_columns(
    clicks: Clicks, pages: Sequence[Sequence[int]], users: NDArray[np.str_], item_ids: Ints
) -> Mapping[str, Any]:
    """Impressions of each page view, then its click, at the same instant: histories hold clicks strictly before it."""
    width = max(6, len(str(len(pages) - 1)))
    rows: dict[str, list[Any]] = {name: [] for name in ("user", "item", "time", "type", "request", "position")}
    for n, page in enumerate(pages):
        clicked = page.index(int(clicks.item[n]))
        rows["item"] += [*page, page[clicked]]
        rows["position"] += [*range(len(page)), clicked]
        rows["type"] += ["impression"] * len(page) + ["click"]
        rows["request"] += [f"m-{n:0{width}d}"] * (len(page) + 1)
    times = [len(page) + 1 for page in pages]
    return {
        "user_id": np.repeat(users[clicks.user], times).astype(object),
        "item_id": item_ids.astype(str).astype(object)[rows["item"]],
        "event_time": np.repeat(clicks.time, times).astype("datetime64[s]").astype("datetime64[us]"),
        "event_type": rows["type"],
        "request_id": rows["request"],
        "position": rows["position"],
    }


def _item_columns(items: pa.Table) -> dict[str, Any]:
    """The raw items table: the first genre is the category; price and creation are unknown."""
    ids = [str(item) for item in items["item_id"].to_pylist()]
    return {
        "item_id": ids,
        "image_uri": [f"images/{item}.jpg" for item in ids],
        "category": [genres.split("|")[0] if genres else None for genres in items["genres"].to_pylist()],
        "title": items["title"].to_pylist(),
        "price": [None] * len(ids),
        "created_at": [None] * len(ids),
    }


def _place_images(src: Path, folder: Path, paths: Sequence[str | None], ids: Sequence[int]) -> int:
    """Link or copy the posters that exist to images/<id>.jpg; returns how many. The images job reports the rest."""
    (folder / "images").mkdir()
    placed = 0
    for path, item in zip(paths, ids, strict=True):
        if path and (src / path).is_file():
            _link(src / path, folder / "images" / f"{item}.jpg")
            placed += 1
    return placed


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


# --- command line ---------------------------------------------------------------------------------------------------


@app.command()
def movielens(
    src: Annotated[Path, typer.Argument(help="A folder with interactions.parquet, items.parquet and images/.")],
    out: Annotated[Path, typer.Argument(help="The raw folder to write; must not exist, or be empty.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
) -> None:
    """Import MovieLens ratings with posters; negatives are sampled. Research use only."""
    convert(src, out, seed=seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    app(args=None if argv is None else list(argv), prog_name="courier import movielens")
