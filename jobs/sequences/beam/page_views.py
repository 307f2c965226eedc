"""Page views in Beam: which page view an event belongs to, what contradicts it, the bot cap, duplicates and labels.

jobs.rules.events and jobs.rules.page_views say what each transform means. Every group is keyed by a day and is let go
when that day is settled (jobs.sequences.beam.settling). Between the transforms an accepted event travels with the day
of its page view's request, or None: (Event, day).
"""

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from jobs.rules.events import (
    CLICK,
    EPOCH,
    IMPRESSION,
    MICROSECOND,
    TOO_MANY_CLICKS,
    Event,
    in_time,
    inconsistency,
    micros,
)
from jobs.rules.page_views import PageView, Shown
from jobs.sequences.beam.settling import Settling

# What is known of a request_id's days: when the first impression was shown that day, and to whom.
Openings = dict[int, tuple[datetime, str]]
Placed = tuple[Event, int | None]
Told = tuple[Any, Iterable[tuple[bool, Any]]]  # a key, and whether each that was met says something of it or is a value
# An event's page view may have been opened the day before; the openings of two days before and of the day after tell.
JUDGED_BY_OPENING: Final = (-1, 0, 1, 2)


class AttributeToPageViews(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Find each event's page view; (Event, reason) at `rejected` where the event contradicts it."""

    def __init__(self) -> None:
        super().__init__()
        self.day_is_read, self.day_is_settled = Settling(1), Settling(2)

    def expand(self, events: Any) -> Any:
        """PCollection of Event -> outputs `accepted` of Placed and `rejected` of (Event, reason)."""
        openings = (
            events
            | "Impressions" >> beam.Filter(_is_impression)
            | "Opening" >> beam.Map(_opening)
            | "UntilRead" >> beam.WindowInto(self.day_is_read)
            | "First" >> beam.CombinePerKey(min)
            | "ToJudgedDays" >> beam.FlatMap(_to_judged_days)
            | "OpeningsUntilSettled" >> beam.WindowInto(self.day_is_settled)
        )
        of_day = (
            events
            | "ByRequestAndDay" >> beam.Map(lambda one: ((one.request_id, one.day.toordinal()), one))
            | "UntilSettled" >> beam.WindowInto(self.day_is_settled)
        )
        return (
            (openings, of_day)
            | "Meet" >> TellOfEach()
            | "Judge" >> beam.FlatMap(_judge).with_outputs("rejected", main="accepted")
        )


class TellOfEach(beam.PTransform):  # type: ignore[misc]
    """Bring the little that is known of each key to its many values: PCollection of Told, for `tell`.

    Beam's own CoGroupByKey holds all values of a key in memory. Here they are gone through twice, as the runner keeps
    them, and never held: one request_id that a site says on every page makes one group of each day's events, and a
    bot another. Such a group is still one worker's: dealt out, every part of every key would have to be told.
    """

    def expand(self, known_and_values: Any) -> Any:
        """(PCollection of (key, known), PCollection of (key, value)) -> PCollection of Told."""
        known, values = known_and_values
        both = (known | "Known" >> beam.MapTuple(_known), values | "Values" >> beam.MapTuple(_value))
        return both | "Both" >> beam.Flatten() | "Together" >> beam.GroupByKey()


def _known(key: Any, known: Any) -> tuple[Any, tuple[bool, Any]]:
    return key, (True, known)


def _value(key: Any, value: Any) -> tuple[Any, tuple[bool, Any]]:
    return key, (False, value)


def tell(told: Told) -> tuple[Any, list[Any], Iterator[Any]]:
    """(key, all that is known of it, its values); these are read one by one from what can be read again."""
    key, met = told
    return key, [one for is_known, one in met if is_known], (one for is_known, one in met if not is_known)


def _is_impression(one: Event) -> bool:
    return one.event_type == IMPRESSION


def _opening(one: Event) -> tuple[tuple[str, int], tuple[datetime, str]]:
    return (one.request_id, one.day.toordinal()), (one.event_time, one.user_id)


def _to_judged_days(found: tuple[tuple[str, int], tuple[datetime, str]]) -> Iterator[Any]:
    (request_id, day), opening = found
    for later in JUDGED_BY_OPENING:
        yield (request_id, day + later), (day, opening)


def _judge(told: Told) -> Iterator[Any]:
    (_, day), known, events = tell(told)
    openings: Openings = dict(known)
    request_day = _request_day(day, openings)
    opening = None if request_day is None else _opening_of(request_day, openings)
    for one in events:
        reason = inconsistency(one, opening)
        yield TaggedOutput("rejected", (one, reason)) if reason else (one, request_day)


def _request_day(day: int, openings: Openings) -> int | None:
    """The request day of a request's events of `day`."""
    return next((shown for shown in (day - 1, day, day + 1) if shown in openings), None)


def _opening_of(request_day: int, openings: Openings) -> tuple[datetime, str] | None:
    """When a page view began and whose it is. Where a page view of the day before took the impressions of the request
    day, those of the day after are left.
    """
    return openings.get(request_day + 1 if request_day - 1 in openings else request_day)


# --- the bot cap ----------------------------------------------------------------------------------------------------


class CapClicks(beam.PTransform):  # type: ignore[misc]
    """Let a user's first clicks of a day stand; (Event, reason) at `rejected` for those beyond."""

    def __init__(self, max_clicks_per_day: int) -> None:
        super().__init__()
        self.most, self.day_is_settled = max_clicks_per_day, Settling(2)

    def expand(self, placed: Any) -> Any:
        """PCollection of Placed -> (PCollection of Placed, PCollection of (Event, reason))."""
        clicks, others = placed | "Part" >> beam.Partition(lambda one, _: int(one[0].event_type != CLICK), 2)
        of_day = (
            clicks
            | "ByUserAndDay" >> beam.Map(lambda one: ((one[0].user_id, one[0].day.toordinal()), one))
            | "UntilSettled" >> beam.WindowInto(self.day_is_settled)
        )
        last = (
            of_day
            | "InTime" >> beam.MapTuple(lambda key, one: (key, in_time(one[0])))
            | "First" >> beam.CombinePerKey(LastOfTheFirst(self.most))
        )
        judged = (
            (last, of_day)
            | "Meet" >> TellOfEach()
            | "Judge" >> beam.FlatMap(_cap).with_outputs("rejected", main="accepted")
        )
        return (judged.accepted, others) | "All" >> beam.Flatten(), judged.rejected


class LastOfTheFirst(beam.CombineFn):  # type: ignore[misc]
    """The last of the first `most` distinct inputs, in their order; it never holds more than twice as many."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def create_accumulator(self) -> set[Any]:
        """No input yet."""
        return set()

    def add_input(self, first: set[Any], one: Any) -> set[Any]:
        """One input more."""
        first.add(one)
        return first if len(first) <= 2 * self.most else self.compact(first)

    def merge_accumulators(self, several: Iterable[set[Any]]) -> set[Any]:
        """What was found apart, together."""
        first: set[Any] = set()
        for one in several:
            first = self.compact(first | one)
        return first

    def compact(self, first: set[Any]) -> set[Any]:
        """Only the first `most`."""
        return first if len(first) <= self.most else set(heapq.nsmallest(self.most, first))

    def extract_output(self, first: set[Any]) -> Any:
        """The last that stands."""
        return max(self.compact(first))


def _cap(told: Told) -> Iterator[Any]:
    _, [last], clicks = tell(told)
    for placed in clicks:
        over = in_time(placed[0]) > last
        yield TaggedOutput("rejected", (placed[0], TOO_MANY_CLICKS)) if over else placed


# --- duplicates -----------------------------------------------------------------------------------------------------


class Deduplicate(beam.PTransform):  # type: ignore[misc]
    """Each event once; of one event at several positions the topmost stands."""

    def __init__(self) -> None:
        super().__init__()
        self.day_is_settled = Settling(2)

    def expand(self, placed: Any) -> Any:
        """PCollection of Placed -> PCollection of Placed."""
        return (
            placed
            | "Identity" >> beam.Map(_identity)
            | "UntilSettled" >> beam.WindowInto(self.day_is_settled)
            | "Topmost" >> beam.CombinePerKey(min)
            | "Event" >> beam.MapTuple(_event)
        )


# Keys must be written alike everywhere, so they hold text and numbers only: a moment as microseconds since 1970.
Identity = tuple[str, str, int, str, str, int | None, int]


def _identity(placed: Placed) -> tuple[Identity, float]:
    one, request_day = placed
    at = micros(one.event_time)
    key = (one.user_id, one.item_id, at, one.event_type, one.request_id, request_day, one.day.toordinal())
    return key, math.inf if one.position is None else one.position


def _event(identity: Identity, depth: float) -> Placed:
    user_id, item_id, at, event_type, request_id, request_day, _ = identity
    one = Event(
        user_id=user_id,
        item_id=item_id,
        event_time=EPOCH + at * MICROSECOND,
        event_type=event_type,
        request_id=request_id,
        position=None if depth == math.inf else int(depth),
    )
    return one, request_day


# --- page views -----------------------------------------------------------------------------------------------------


class BuildPageViews(beam.PTransform):  # type: ignore[misc]
    """Bring together what was shown and what was clicked on each page view.

    Outputs `views` of PageView, and `unmatched` of int: how many clicks name an item that their page view lacks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.page_is_settled = Settling(3)  # its clicks may come on the day after its own

    def expand(self, placed: Any) -> Any:
        """PCollection of Placed -> outputs of PageView and int."""
        return (
            placed
            | "ShownOrClicked" >> beam.Filter(lambda one: one[0].event_type in (IMPRESSION, CLICK))
            | "ByPageView" >> beam.Map(_met)
            | "UntilSettled" >> beam.WindowInto(self.page_is_settled)
            | "Meet" >> beam.CombinePerKey(OnThePage())
            | "View" >> beam.FlatMap(_page_view).with_outputs("unmatched", main="views")
        )


@dataclass(slots=True)
class Page:
    """What is known of a page view: its opening, and each item's topmost position, first showing and clicks.

    Position and showing are None for an item that was clicked and not shown.
    """

    opening: tuple[datetime, str] | None = None
    items: dict[str, tuple[int | None, datetime | None, int]] = field(default_factory=dict)

    def meet(self, item_id: str, position: int | None, shown_at: datetime | None, clicks: int) -> None:
        """Take in that an item was shown at a position and a time, or clicked."""
        known, before, clicked = self.items.get(item_id, (None, None, 0))
        positions = [one for one in (known, position) if one is not None]
        times = [one for one in (before, shown_at) if one is not None]
        self.items[item_id] = (min(positions, default=None), min(times, default=None), clicked + clicks)

    def open(self, opening: tuple[datetime, str] | None) -> None:
        """Take in when an item was shown, and to whom."""
        openings = [one for one in (self.opening, opening) if one is not None]
        self.opening = min(openings, default=None)


class OnThePage(beam.CombineFn):  # type: ignore[misc]
    """Events of one page view, distinct and in any order -> Page."""

    def create_accumulator(self) -> Page:
        """An empty page."""
        return Page()

    def add_input(self, page: Page, one: Event) -> Page:
        """One event more."""
        if one.event_type == CLICK:
            page.meet(one.item_id, None, None, 1)
        else:
            page.meet(one.item_id, one.position, one.event_time, 0)
            page.open((one.event_time, one.user_id))
        return page

    def merge_accumulators(self, several: Iterable[Page]) -> Page:
        """What was met apart, together."""
        page = Page()
        for one in several:
            page.open(one.opening)
            for item_id, met in one.items.items():
                page.meet(item_id, *met)
        return page

    def extract_output(self, page: Page) -> Page:
        """The page as it is."""
        return page


def _met(placed: Placed) -> tuple[tuple[str, str, int], Event]:
    one, request_day = placed
    # Clicks without a page view meet nothing; by user, so that no group of them grows out of bounds.
    owner = "" if request_day is not None else one.user_id
    return (one.request_id, owner, one.day.toordinal() if request_day is None else request_day), one


def _page_view(group: tuple[tuple[str, str, int], Page]) -> Iterator[Any]:
    (request_id, _, day), page = group
    yield TaggedOutput("unmatched", sum(clicks for _, at, clicks in page.items.values() if at is None))
    if page.opening is not None:
        shown = (
            Shown(position, item_id, clicks > 0, at)
            for item_id, (position, at, clicks) in page.items.items()
            if position is not None and at is not None
        )
        yield PageView(request_id, date.fromordinal(day), page.opening[1], page.opening[0], tuple(sorted(shown)))
