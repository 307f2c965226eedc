"""What raw tables show that cannot work, or hardly: said before hours are spent on them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from jobs.rules.events import CLICK, CONVERSIONS, IMPRESSION
from jobs.rules.items import SENTENCES

FEW: Final = 0.05  # of events: so many of no known item, or of clicks before their page, are worth a word
MOST: Final = 0.5
OK_REASON: Final = ""  # of a picture that can be used


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """A sentence about raw tables. stops: whether nothing can come of them."""

    said: str
    stops: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What two raw tables hold together.

    types: accepted events by type, repeats once.  unknown_types: the commonest of other types -> rows.
    duplicates: accepted rows that repeat another.  users: of accepted events.
    first, last: the moments of the first and the last accepted event; None where there is none.
    shown: distinct items on page views; clicked: those of them that were clicked; pages: page views.
    early: clicks before their page, which are rejected.
    unknown: accepted events, repeats once, of no accepted item; pair: an item_id of such an event and one of the items
    that may be meant by it; None where no two are alike.  items: accepted ones.
    pictures: what became of the first references that lead nowhere far, by reason, "" for a usable picture; empty where
    there are none, or none was looked at.
    """

    types: Mapping[str, int]
    unknown_types: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    users: int = 0
    first: datetime | None = None
    last: datetime | None = None
    shown: int = 0
    clicked: int = 0
    pages: int = 0
    early: int = 0
    unknown: int = 0
    pair: tuple[str, str] | None = None
    items: int = 0
    pictures: Mapping[str, int] = field(default_factory=dict)


def doubts(seen: Seen) -> list[Doubt]:
    """What is to be said of raw tables, what stops first."""
    found = [*_about_types(seen), *_about_items(seen), *_about_pictures(seen), *_about_time(seen), *_about_pages(seen)]
    return sorted(found, key=lambda one: not one.stops)


def _about_types(seen: Seen) -> Iterator[Doubt]:
    if not seen.types.get(IMPRESSION):
        there = {**seen.types, **seen.unknown_types}
        listed = ", ".join(
            f"{name} {rows:,}" for name, rows in sorted(there.items(), key=lambda one: (-one[1], one[0]))
        )
        yield Doubt(
            said="there are no impressions, and courier learns from what was shown and not clicked: log each item of a "
            f"page that was shown as an impression (there are: {listed or 'no events'})",
            stops=True,
        )
    elif not seen.types.get(CLICK):
        deeds = sum(seen.types.get(kind, 0) for kind in CONVERSIONS)
        yield Doubt(
            said=f"nothing was clicked: there are {seen.types[IMPRESSION]:,} impressions, {deeds:,} carts and purchases"
            " and no clicks: log the clicks, each with the request_id of its page",
            stops=True,
        )
    elif seen.shown and seen.clicked == seen.shown:
        yield Doubt(
            said=f"all {seen.shown:,} impressions were clicked, and nothing was shown without a click: log what was",
            stops=True,
        )
    total = sum(seen.types.values())
    if seen.duplicates > MOST * (total + seen.duplicates):
        yield Doubt(
            said=f"{seen.duplicates:,} of {total + seen.duplicates:,} events repeat another one: they count once; see "
            "that what delivers them does so once",
            stops=False,
        )
    if seen.users == 1:
        yield Doubt(said="all events are of one user: nothing can be learnt of users from one", stops=True)


def _about_items(seen: Seen) -> Iterator[Doubt]:
    total = sum(seen.types.values())
    if not total or seen.unknown <= FEW * total:
        return
    pair = f": events say {seen.pair[0]!r}, items {seen.pair[1]!r}" if seen.pair else ""
    stops = seen.unknown > (1 - FEW) * total
    yield Doubt(
        said=f"{seen.unknown:,} of {total:,} events name none of {seen.items:,} items{pair}: write the item_id alike in"
        " both tables",
        stops=stops,
    )


def _about_pictures(seen: Seen) -> Iterator[Doubt]:
    looked, usable = sum(seen.pictures.values()), seen.pictures.get(OK_REASON, 0)
    if not looked or usable > MOST * looked:
        return
    lost = {reason: count for reason, count in seen.pictures.items() if reason != OK_REASON}
    worst = max(sorted(lost), key=lambda reason: lost[reason])
    yield Doubt(
        said=f"of the first {looked} pictures {usable} can be used; most often ({lost[worst]}, {worst}): "
        f"{SENTENCES[worst]}",
        stops=not usable,
    )


def _about_time(seen: Seen) -> Iterator[Doubt]:
    if seen.first is not None and seen.first == seen.last and sum(seen.types.values()) > 1:
        yield Doubt(
            said=f"all events happened at {seen.first.isoformat()}: no split by time is possible: keep their moments",
            stops=True,
        )
    clicks = seen.types.get(CLICK, 0) + seen.early
    if seen.early > FEW * clicks:
        yield Doubt(
            said=f"{seen.early:,} of {clicks:,} clicks happened before their page was shown, so there are two clocks:"
            " stamp pages and clicks by the same one",
            stops=seen.early > MOST * clicks,
        )


def _about_pages(seen: Seen) -> Iterator[Doubt]:
    if seen.pages and seen.shown == seen.pages:
        yield Doubt(
            said=f"each of {seen.pages:,} pages shows one item, so there is no choice among what was shown together: "
            "give what was shown together one request_id",
            stops=False,
        )
