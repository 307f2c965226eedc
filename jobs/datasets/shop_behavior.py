"""How the generated shop's users behave: intentions that drift, visits, pages of one category, clicks.

Arrays in, arrays out. Times are microseconds since the shop's first moment. Why these numbers: docs/decisions/0002.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import PAGE_VIEW_SIZE

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """The numbers of the shop. Logits unless said otherwise."""

    days: int = 28
    # what is shown
    popular_share: float = 0.5  # of an item's exposure weight that follows its popularity; the rest is equal for all
    popularity_spread: float = 0.9  # standard deviation of log popularity
    novelty_boost: float = 6.0  # a new item's exposure weight is 1 + this, and fades
    novelty_days: float = 2.0
    # who comes
    activity_spread: float = 0.7  # standard deviation of log visits per user
    visit_pages: float = 6.0  # mean page views a visit
    stay: float = 0.9  # probability that a page serves the visit's intention, not one drawn anew
    intentions: tuple[float, ...] = (0.5, 0.35, 0.15)  # probability of holding 1, 2, 3 at once
    intention_days: float = 60.0  # mean life of an intention
    category_focus: float = 2.0  # standard deviation of an intention's log preference over categories
    # what is clicked
    base: float = -1.74
    position: tuple[float, ...] = (0.45, 0.2, 0.0, -0.15, -0.25)
    quality: float = 0.47  # per standard deviation of log popularity
    favourites: tuple[tuple[float, ...], ...] = ((1.8, 1.0), (1.3,), (1.0,))  # palette, texture, ornament
    idiosyncrasy: float = 0.2  # standard deviation over (user, item) pairs
    # what follows a click (probabilities)
    cart: float = 0.16
    purchase: float = 0.35  # of carts


class Catalogue(NamedTuple):
    """The shop's items, (N,) each: labels are indexes into the shop's lists of categories and styles."""

    category: Ints
    styles: Ints  # (N, 3): palette, texture, ornament
    popularity: Floats  # standard normal
    created: Ints  # microseconds; negative: before the shop's first moment


class PageViews(NamedTuple):
    """Requests in time order; (R,) unless said otherwise."""

    user: Ints
    time: Ints
    intention: Ints
    category: Ints
    items: Ints  # (R, PAGE_VIEW_SIZE), top first; -1 where the category had no more items
    p_click: Floats  # (R, PAGE_VIEW_SIZE); the true probability
    clicked: NDArray[np.bool_]  # (R, PAGE_VIEW_SIZE)


class Intentions(NamedTuple):
    """Who holds which intention when. Users hold up to S slots; a slot's intention is replaced up to G - 1 times."""

    slots: Ints  # (U,) how many each user holds at once
    ends: Ints  # (U, S, G) microseconds
    category: Floats  # (U * S * G, categories) log preference
    styles: tuple[Floats, ...]  # per attribute (U * S * G, values): what a match adds to the logit, mean 0


def simulate(
    catalogue: Catalogue,
    *,
    users: int,
    requests: int,
    categories: int,
    style_sizes: tuple[int, ...],
    habits: Habits,
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> PageViews:
    """Page views and clicks of the whole period; `advance` is told the number of page views as they are made."""
    rng = np.random.default_rng([seed, 1])
    intentions = _intentions(users, categories, style_sizes, habits, rng)
    user, time, visit = _visits(users, requests, habits, rng)
    intention = _acted_on(intentions, user, time, visit, habits, rng)
    category = _categories(intentions.category[intention], rng)
    items = np.full((requests, PAGE_VIEW_SIZE), -1)
    for wanted in range(categories):
        rows = np.flatnonzero(category == wanted)
        items[rows] = _pages(catalogue, np.flatnonzero(catalogue.category == wanted), time[rows], habits, rng)
        advance(len(rows))
    p_click = _click_probability(catalogue, intentions, user, intention, items, habits, rng)
    clicked = rng.random(p_click.shape) < p_click
    return PageViews(user, time, intention, category, items, p_click, clicked)


def _intentions(
    users: int, categories: int, style_sizes: tuple[int, ...], habits: Habits, rng: np.random.Generator
) -> Intentions:
    slots, generations = len(habits.intentions), 1 + int(4 * np.ceil(habits.days / habits.intention_days))
    lives = rng.exponential(habits.intention_days * DAY, (users, slots, generations))
    lives[:, :, -1] = habits.days * DAY  # the last generation outlives the shop
    count = users * slots * generations
    return Intentions(
        slots=1 + rng.choice(slots, size=users, p=habits.intentions),
        ends=lives.cumsum(axis=2).astype(np.int64),
        category=rng.normal(0, habits.category_focus, (count, categories)),
        styles=tuple(
            _taste(count, size, scores, rng) for size, scores in zip(style_sizes, habits.favourites, strict=True)
        ),
    )


def _taste(count: int, size: int, scores: tuple[float, ...], rng: np.random.Generator) -> Floats:
    """(count, size): each row holds `scores` at random values and 0 elsewhere, less its mean."""
    row = np.zeros(size)
    row[: len(scores)] = scores
    taste = rng.permuted(np.tile(row - row.mean(), (count, 1)), axis=1)
    return np.asarray(taste)


def _visits(users: int, requests: int, habits: Habits, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """user, time and visit of each request, in time order. A visit's pages follow each other by 15 s or more."""
    pages = rng.geometric(1 / habits.visit_pages, size=requests)
    visit = np.repeat(np.arange(requests), pages)[:requests]
    visits = int(visit[-1]) + 1
    activity = np.exp(rng.normal(0, habits.activity_spread, users))
    user = rng.choice(users, size=visits, p=activity / activity.sum())
    gaps = 15 * SECOND + (rng.exponential(30 * SECOND, requests)).astype(np.int64)
    first = np.flatnonzero(np.diff(visit, prepend=-1))
    elapsed = np.cumsum(gaps) - np.repeat(np.cumsum(gaps)[first], np.diff(first, append=requests))
    time = _visit_starts(visits, habits, rng)[visit] + elapsed
    order = np.argsort(time, kind="stable")
    return user[visit][order], time[order], visit[order]


def _visit_starts(visits: int, habits: Habits, rng: np.random.Generator) -> Ints:
    """Microseconds; evenly over the days, most often around 20:00; the last two hours stay free for visits to end."""
    day = rng.integers(0, habits.days, visits)
    hour = np.clip(rng.normal(20, 4.5, visits), 0, None) % 22
    return day * DAY + (hour * 3600 * SECOND).astype(np.int64)


def _acted_on(
    intentions: Intentions, user: Ints, time: Ints, visit: Ints, habits: Habits, rng: np.random.Generator
) -> Ints:
    """The intention each request serves: one per visit, now and then left for another one the user holds."""
    _, slots, generations = intentions.ends.shape
    u_visit, u_leave, u_other = rng.random(int(visit.max()) + 1), rng.random(len(user)), rng.random(len(user))
    draw = np.where(u_leave < habits.stay, u_visit[visit], u_other)
    slot = (draw * intentions.slots[user]).astype(np.int64)
    generation = (intentions.ends[user, slot] <= time[:, None]).sum(axis=1)
    return np.asarray((user * slots + slot) * generations + np.minimum(generation, generations - 1))


def _categories(log_preference: Floats, rng: np.random.Generator) -> Ints:
    """One category per row, drawn by its softmax (the Gumbel-max trick)."""
    return np.asarray((log_preference + rng.gumbel(size=log_preference.shape)).argmax(axis=1))


def _pages(
    catalogue: Catalogue, candidates: Ints, time: Ints, habits: Habits, rng: np.random.Generator, chunk: int = 4096
) -> Ints:
    """(len(time), PAGE_VIEW_SIZE) distinct items of `candidates` that exist at `time`, drawn by exposure weight.

    Drawing without replacement by weight: the largest of log weight + Gumbel noise (Efraimidis and Spirakis 2006).
    The order on the page is random, so that position tells nothing about the item.
    """
    pages = np.full((len(time), PAGE_VIEW_SIZE), -1)
    popular = np.exp(habits.popularity_spread * catalogue.popularity[candidates])
    popular = habits.popular_share * popular / popular.mean() + 1 - habits.popular_share
    shown = min(PAGE_VIEW_SIZE, len(candidates))
    for start in range(0, len(time), chunk):
        age = time[start : start + chunk, None] - catalogue.created[candidates]
        novelty = 1 + habits.novelty_boost * np.exp(-np.maximum(age, 0) / (habits.novelty_days * DAY))
        keys = np.where(age > 0, np.log(popular * novelty) + rng.gumbel(size=age.shape), -np.inf)
        best = np.argpartition(-keys, shown - 1, axis=1)[:, :shown]
        exists = np.isfinite(np.take_along_axis(keys, best, axis=1))
        order = np.argsort(np.where(exists, rng.random(best.shape), 2.0), axis=1)
        chosen = np.where(exists, candidates[best], -1)
        pages[start : start + chunk, :shown] = np.take_along_axis(chosen, order, axis=1)
    return pages


def _click_probability(
    catalogue: Catalogue,
    intentions: Intentions,
    user: Ints,
    intention: Ints,
    items: Ints,
    habits: Habits,
    rng: np.random.Generator,
) -> Floats:
    """(R, PAGE_VIEW_SIZE): sigmoid(base + position + quality + style match + noise of the pair); 0 where no item is."""
    style = catalogue.styles[items]
    match = sum(taste[intention[:, None], style[..., k]] for k, taste in enumerate(intentions.styles))
    pairs, pair = np.unique(user[:, None] * len(catalogue.category) + items, return_inverse=True)
    noise = habits.idiosyncrasy * rng.normal(size=len(pairs))[pair.reshape(items.shape)]
    quality = habits.quality * catalogue.popularity[items]
    logit = habits.base + np.array(habits.position) + quality + match + noise
    return np.where(items >= 0, 1 / (1 + np.exp(-logit)), 0.0)
