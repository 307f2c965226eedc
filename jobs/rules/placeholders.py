"""Which pictures say "no image": shown by far more items than others are, and by items with nothing in common.

Variants of a product share a picture too, and may lie in categories of their own. So many items and categories alone
tell nothing: a placeholder is out of the ordinary for its catalogue, and neither titles nor prices agree.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

# As many pictures may be shown by half as many items as a placeholder, itself among them, or one in ONE_IN, if more.
FEW: Final = 3
ONE_IN: Final = 100

_WORD = re.compile(r"\w+")


class Shown(NamedTuple):
    """An item and the picture that it shows; of price and title None where they are unknown, as of category."""

    item_id: str
    image_id: str
    category: str | None = None
    title: str | None = None
    price: float | None = None


@dataclass(frozen=True)
class Common:
    """What more than half of a catalogue's items have, words of titles and a price; it tells nothing of any of them."""

    words: frozenset[str] = frozenset()
    price: float | None = None


def find_placeholders(items: Sequence[Shown], min_items: int, min_categories: int) -> frozenset[str]:
    """The image_ids of placeholders.

    Each is shown by at least min_items items, of at least min_categories known categories, by far more items than
    other pictures are (is_extraordinary), and by items that have nothing in common (agree).
    """
    shown: dict[str, list[Shown]] = {}
    for item in items:
        shown.setdefault(item.image_id, []).append(item)
    common = common_to([item.title for item in items], [item.price for item in items])
    times = [len(users) for users in shown.values()]
    return frozenset(
        image_id
        for image_id, users in shown.items()
        if len(users) >= min_items
        and len({item.category for item in users} - {None}) >= min_categories
        and is_extraordinary(len(users), times)
        and not agree([item.title for item in users], [item.price for item in users], common)
    )


def is_extraordinary(items: int, times: Collection[int]) -> bool:
    """Whether a picture that so many items show stands out. times: of every picture, how many items show it."""
    return sum(2 * other >= items for other in times) <= most_alike(len(times))


def most_alike(pictures: int) -> int:
    """How many of a catalogue's pictures may be shown by half as many items as a placeholder is, itself among them."""
    return max(FEW, pictures // ONE_IN)


def common_to(titles: Sequence[str | None], prices: Sequence[float | None]) -> Common:
    """What more than half of the items have of these titles and prices, one of each an item."""
    return Common(_words_of_most(map(words, titles), len(titles)), _price_of_most(prices, None))


def agree(titles: Sequence[str | None], prices: Sequence[float | None], common: Common) -> bool:
    """Whether the items of these titles and prices have something in common, besides what the whole catalogue has.

    One price for more than half of them; or half of their titles' words, counted in every title, are words that more
    than half of the items have.
    """
    if _price_of_most(prices, common.price) is not None:
        return True
    telling = [words(title) - common.words for title in titles]
    shared = _words_of_most(telling, len(titles))
    return bool(shared) and 2 * sum(len(one & shared) for one in telling) >= sum(map(len, telling))


def words(title: str | None) -> frozenset[str]:
    """The distinct words of a title in small letters."""
    return frozenset(_WORD.findall((title or "").lower()))


def _words_of_most(titles: Iterable[frozenset[str]], items: int) -> frozenset[str]:
    counted = Counter(word for title in titles for word in title)
    return frozenset(word for word, times in counted.items() if 2 * times > items)


def _price_of_most(prices: Sequence[float | None], but: float | None) -> float | None:
    known = Counter(price for price in prices if price is not None and price != but)
    return next((price for price, times in known.items() if 2 * times > len(prices)), None)
