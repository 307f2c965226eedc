"""Generate a shop: drawn product images, users with drifting intentions, page views, clicks, and their truth."""

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.datasets import writer
from jobs.datasets.shop_behavior import DAY, SECOND, Catalogue, Habits, PageViews, simulate
from jobs.datasets.shop_images import CATEGORIES, ORNAMENTS, PALETTES, TEXTURES, draw, encode, placeholder
from model.errors import CourierError

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

START: Final = datetime(2025, 3, 3, tzinfo=UTC)  # a Monday
STYLES: Final = (tuple(PALETTES), TEXTURES, ORNAMENTS)
STYLE_NAMES: Final = ("palette", "texture", "ornament")
LEAST_ITEMS: Final = 5 * len(CATEGORIES)

ARRIVE_LATER: Final = 0.35  # of the items are created after the shop's first moment
BROKEN: Final = 0.007
MISSING: Final = 0.007
DUPLICATE: Final = 0.015
PLACEHOLDER: Final = 0.01

_MEDIAN_PRICE: Final = dict(zip(CATEGORIES, (60, 25, 80, 90, 30, 14, 55, 120), strict=True))
_FIRST_WORDS: Final = ("Everyday", "Harbour", "Studio", "Weekend", "Atelier", "Maison", "Corner", "Meadow", "Union")
_SECOND_WORDS: Final = ("Original", "Edition", "Series", "Essential", "Select", "Signature", "Basic", "Favourite")


class Defects(NamedTuple):
    """Items whose picture is not their own, as indexes; disjoint."""

    broken: NDArray[np.int64]
    missing: NDArray[np.int64]
    placeholder: NDArray[np.int64]
    duplicate: NDArray[np.int64]
    original: NDArray[np.int64]  # of each duplicate


def generate(out: Path, *, items: int, users: int, requests: int, seed: int, habits: Habits | None = None) -> None:
    """Write a generated shop to the folder `out`. Same arguments, same bytes.

    Raises CourierError if `out` holds something already, or a number is too small for a shop.
    """
    if items < LEAST_ITEMS or users < 1 or requests < 1:
        raise CourierError(f"a shop needs at least {LEAST_ITEMS} items, 1 user and 1 request: raise what is less")
    habits = habits or Habits()
    with writer.write(out) as folder, _progress() as progress:
        defects = _defects(items, np.random.default_rng([seed, 2]))
        catalogue = _catalogue(items, habits, defects, np.random.default_rng([seed, 3]))
        _write_images(folder / "images", catalogue, defects, seed, progress)
        task = progress.add_task("page views", total=requests)
        page_views = simulate(
            catalogue,
            users=users,
            requests=requests,
            categories=len(CATEGORIES),
            style_sizes=tuple(len(names) for names in STYLES),
            habits=habits,
            seed=seed,
            advance=partial(progress.advance, task),
        )
        writer.write_items(folder, _item_columns(catalogue, np.random.default_rng([seed, 4])))
        writer.write_events(folder, _event_columns(page_views, habits, np.random.default_rng([seed, 5])))
        _write_truth(folder, catalogue, page_views)
        writer.write_source(
            folder,
            name="generated shop",
            sampled_negatives=False,
            description=f"Drawn products and simulated users, {items} items, {users} users, {requests} page views, "
            f"seed {seed}; described in docs/decisions/0002-the-generated-shop.md.",
        )
    shown = page_views.items >= 0
    log.info("world_written", out=str(out), impressions=int(shown.sum()), clicks=int(page_views.clicked.sum()))


# --- the catalogue --------------------------------------------------------------------------------------------------


def _catalogue(items: int, habits: Habits, defects: Defects, rng: np.random.Generator) -> Catalogue:
    """Category, style, popularity and arrival, all independent of each other; each category opens with a full page."""
    category = rng.permutation(np.arange(items) % len(CATEGORIES))
    styles = np.stack([rng.integers(0, len(names), items) for names in STYLES], axis=1)
    category[defects.duplicate], styles[defects.duplicate] = category[defects.original], styles[defects.original]
    before = -(rng.random(items) * 60 * DAY).astype(np.int64) - 1
    after = (rng.random(items) * habits.days * DAY).astype(np.int64)
    rank = np.empty(items, np.int64)
    rank[np.lexsort((np.arange(items), category))] = _rank_within(np.bincount(category, minlength=len(CATEGORIES)))
    late = (rng.random(items) < ARRIVE_LATER) & (rank >= 5)
    return Catalogue(category, styles, rng.normal(size=items), np.where(late, after, before))


def _rank_within(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2 ... within each group, groups laid end to end."""
    return np.concatenate([np.arange(count) for count in counts])


def _defects(items: int, rng: np.random.Generator) -> Defects:
    """At least three broken, one missing, two duplicates and six placeholders, however small the shop."""
    sizes = [
        max(least, round(share * items))
        for share, least in ((BROKEN, 3), (MISSING, 1), (PLACEHOLDER, 6), (DUPLICATE, 2), (DUPLICATE, 2))
    ]
    broken, missing, placeholders, duplicate, original, _ = np.split(rng.permutation(items), np.cumsum(sizes))
    return Defects(broken, missing, placeholders, duplicate, original)


def _item_id(index: int) -> str:
    return f"i{index:05d}"


def _item_ids(items: int) -> list[str]:
    return [_item_id(index) for index in range(items)]


def _item_columns(catalogue: Catalogue, rng: np.random.Generator) -> dict[str, Any]:
    """The raw items table; words and prices know the category, never the style."""
    names = [CATEGORIES[index] for index in catalogue.category]
    ids = _item_ids(len(names))
    median = np.array([_MEDIAN_PRICE[name] for name in names], float)
    first, second = rng.choice(_FIRST_WORDS, len(names)), rng.choice(_SECOND_WORDS, len(names))
    return {
        "item_id": ids,
        "image_uri": [f"images/{item_id}.jpg" for item_id in ids],
        "category": names,
        "title": [f"{a} {b} {name.title()}" for a, b, name in zip(first, second, names, strict=True)],
        "price": np.round(median * np.exp(rng.normal(0, 0.4, len(names))), 2),
        "created_at": _timestamps(catalogue.created),
    }


# --- images ---------------------------------------------------------------------------------------------------------


def _write_images(folder: Path, catalogue: Catalogue, defects: Defects, seed: int, progress: Progress) -> None:
    folder.mkdir()
    ids = _item_ids(len(catalogue.category))
    others = np.concatenate([defects.missing, defects.placeholder, defects.duplicate])
    own = np.setdiff1d(np.arange(len(ids)), others)
    task = progress.add_task("images", total=len(own))
    with ThreadPoolExecutor(2) as pool:  # Pillow and NumPy leave the interpreter's lock while they draw
        for _ in pool.map(partial(_write_image, folder, catalogue, seed), own.tolist()):
            progress.advance(task)
    for index in defects.placeholder:
        (folder / f"{ids[index]}.jpg").write_bytes(encode(placeholder()))
    for copy, original in zip(defects.duplicate, defects.original, strict=True):
        shutil.copyfile(folder / f"{ids[original]}.jpg", folder / f"{ids[copy]}.jpg")
    for kind, index in enumerate(defects.broken):
        _break(folder / f"{ids[index]}.jpg", kind)


def _write_image(folder: Path, catalogue: Catalogue, seed: int, index: int) -> None:
    """Draw one item's picture from the item's own seed, so that the order of drawing changes nothing."""
    palette, texture, ornament = (names[label] for names, label in zip(STYLES, catalogue.styles[index], strict=True))
    rng = np.random.default_rng([seed, 6, index])
    image = draw(CATEGORIES[catalogue.category[index]], palette, texture, ornament, rng)
    (folder / f"{_item_id(index)}.jpg").write_bytes(encode(image))


def _break(path: Path, kind: int) -> None:
    """Spoil a picture: cut short, replaced by a web page, or emptied."""
    whole = path.read_bytes()
    page = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
    path.write_bytes((whole[: len(whole) // 3], page, b"")[kind % 3])


# --- events and truth -----------------------------------------------------------------------------------------------


def _timestamps(since_start: NDArray[np.int64]) -> NDArray[np.datetime64]:
    return np.datetime64(START.replace(tzinfo=None), "us") + since_start.astype("timedelta64[us]")


def _request_ids(count: int) -> NDArray[np.object_]:
    width = max(6, len(str(count - 1)))
    return np.array([f"r{index:0{width}d}" for index in range(count)], object)


def _event_columns(page_views: PageViews, habits: Habits, rng: np.random.Generator) -> dict[str, Any]:
    """The raw events table in time order: impressions, then what followed each click."""
    request, position = np.nonzero(page_views.items >= 0)
    click = page_views.clicked[request, position]
    at = page_views.time[request]
    clicked_at = at + ((1.5 + 1.5 * position + rng.uniform(0, 3, len(at))) * SECOND).astype(np.int64)
    cart = click & (rng.random(len(at)) < habits.cart)
    cart_at = clicked_at + (rng.uniform(5, 120, len(at)) * SECOND).astype(np.int64)
    bought = cart & (rng.random(len(at)) < habits.purchase)
    bought_at = cart_at + (rng.uniform(30, 900, len(at)) * SECOND).astype(np.int64)
    kinds = (
        ("impression", np.ones_like(click), at),
        ("click", click, clicked_at),
        ("cart", cart, cart_at),
        ("purchase", bought, bought_at),
    )
    row = np.concatenate([np.flatnonzero(happened) for _, happened, _ in kinds])
    time = np.concatenate([times[happened] for _, happened, times in kinds])
    kind = np.concatenate([np.full(happened.sum(), code) for code, (_, happened, _) in enumerate(kinds)])
    order = np.lexsort((position[row], request[row], kind, time))
    row, time, kind = row[order], time[order], kind[order]
    return {
        "user_id": _labels("u", page_views.user[request[row]]),
        "item_id": _labels("i", page_views.items[request[row], position[row]]),
        "event_time": _timestamps(time),
        "event_type": np.array([name for name, _, _ in kinds], object)[kind],
        "request_id": _request_ids(len(page_views.time))[request[row]],
        "position": position[row].astype(np.int32),
    }


def _labels(prefix: str, indexes: NDArray[np.int64]) -> NDArray[np.object_]:
    return np.array([f"{prefix}{index:05d}" for index in range(int(indexes.max()) + 1)], object)[indexes]


def _write_truth(folder: Path, catalogue: Catalogue, page_views: PageViews) -> None:
    request, position = np.nonzero(page_views.items >= 0)
    clicks = {
        "request_id": pa.array(_request_ids(len(page_views.time))[request], pa.string()),
        "item_id": pa.array(_labels("i", page_views.items[request, position]), pa.string()),
        "p_click": pa.array(page_views.p_click[request, position], pa.float64()),
    }
    pq.write_table(pa.table(clicks), folder / "truth.parquet")
    labels = {
        name: np.array(values, object)[catalogue.styles[:, k]]
        for k, (name, values) in enumerate(zip(STYLE_NAMES, STYLES, strict=True))
    }
    labels["style"] = labels["palette"] + "-" + labels["texture"] + "-" + labels["ornament"]
    ids = {"item_id": _item_ids(len(catalogue.category))}
    columns = {name: pa.array(values, pa.string()) for name, values in (ids | labels).items()}
    pq.write_table(pa.table(columns), folder / "truth_items.parquet")


# --- command line ---------------------------------------------------------------------------------------------------


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


@app.command()
def world(
    out: Annotated[Path, typer.Argument(help="The raw folder to write; must not exist, or be empty.")],
    items: Annotated[int, typer.Option(help="Products in the shop.")] = 3000,
    users: Annotated[int, typer.Option(help="Users.")] = 2000,
    requests: Annotated[int, typer.Option(help="Page views, of five items each.")] = 60000,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
) -> None:
    """Generate a shop: raw tables, drawn images, and the truth that only the evaluator may read."""
    generate(out, items=items, users=users, requests=requests, seed=seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    app(args=None if argv is None else list(argv), prog_name="courier world")
