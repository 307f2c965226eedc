"""Page views with their labels, the pre-training rows made of them, and the split by time: plain Python, the oracle."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from jobs.rules.events import CLICK, IMPRESSION, Event, PageKey
from jobs.rules.histories import history_before
from model.errors import CourierError

TRAIN, VALID, TEST = "train", "valid", "test"


@dataclass(frozen=True, slots=True, order=True)
class Shown:
    """An item on a page: its topmost position there, whether this page view led to a click on it, its first showing."""

    position: int
    item_id: str
    clicked: bool
    shown_at: datetime  # at the page view's request_time or later, and perhaps on the next day


@dataclass(frozen=True, slots=True)
class PageView:
    """A page view: whose it was, when its first impression was shown, and its distinct items from the top down."""

    request_id: str
    request_day: date
    user_id: str
    request_time: datetime
    shown: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class PretrainRow:
    """A row of COURIER's pre-training: items of a page view, top down, their labels (0, 1), and the newest clicks."""

    request_id: str
    item_ids: tuple[str, ...]
    labels: tuple[int, ...]
    history_item_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Half-open periods: train [start, valid_start), valid [valid_start, test_start), test [test_start, end)."""

    valid_start: datetime
    test_start: datetime

    def period(self, at: datetime) -> str:
        """The period that a moment belongs to."""
        if at < self.valid_start:
            return TRAIN
        return VALID if at < self.test_start else TEST


def page_views(events: Iterable[Event], pages: Mapping[Event, PageKey]) -> list[PageView]:
    """The page views among accepted, deduplicated events, sorted by request_id and day.

    pages: jobs.rules.events.page_keys of all the events that are acceptable by themselves.
    A click labels the item that it names on the page view that it belongs to.
    """
    members: dict[PageKey, list[Event]] = defaultdict(list)
    for one in events:
        if one in pages:
            members[pages[one]].append(one)
    views = (_page_view(key, members[key]) for key in sorted(members))
    return [view for view in views if view is not None]


def _page_view(key: PageKey, events: Sequence[Event]) -> PageView | None:
    impressions = [one for one in events if one.event_type == IMPRESSION]
    if not impressions:
        return None
    clicked = {one.item_id for one in events if one.event_type == CLICK}
    of_item: dict[str, list[Event]] = defaultdict(list)
    for one in impressions:
        of_item[one.item_id].append(one)
    shown = sorted(
        Shown(min(one.position or 0 for one in same), item_id, item_id in clicked, min(one.event_time for one in same))
        for item_id, same in of_item.items()
    )
    return PageView(*key, impressions[0].user_id, min(one.event_time for one in impressions), tuple(shown))


def unmatched_clicks(events: Iterable[Event], pages: Mapping[Event, PageKey]) -> list[Event]:
    """The clicks whose page view shows no impression of their item: they are history, but label nothing."""
    events = list(events)
    shown = {(pages[one], one.item_id) for one in events if one.event_type == IMPRESSION}
    return [one for one in events if one.event_type == CLICK and (pages.get(one), one.item_id) not in shown]


def kept_on_page(shown: Iterable[Shown], size: int) -> list[Shown]:
    """At most `size` items of a page, top down: the clicked ones first of all, then the topmost."""
    return sorted(sorted(shown, key=lambda one: (not one.clicked, one.position, one.item_id))[:size])


def pretrain_row(view: PageView, clicks: Iterable[Event], size: int, history: int) -> PretrainRow:
    """A page view as a pre-training row. clicks: those of the view's user, at any time."""
    kept = kept_on_page(view.shown, size)
    before = history_before(clicks, view.request_time, history)
    return PretrainRow(
        view.request_id,
        tuple(one.item_id for one in kept),
        tuple(int(one.clicked) for one in kept),
        tuple(item_id for item_id, _ in before),
    )


def cut(count: int, fraction: float) -> int:
    """Which of `count` > 0 page views in time order, from 0, opens the period after the first `fraction` of them."""
    return min(int(count * fraction), count - 1)


def time_split(request_times: Iterable[datetime], train_fraction: float, valid_fraction: float) -> TimeSplit:
    """The split that gives these fractions of the page views to training and validation; equal times stay together.

    Raises CourierError where there is no page view.
    """
    times = sorted(request_times)
    if not times:
        raise CourierError("no page view to split by time")
    valid_start = times[cut(len(times), train_fraction)]
    return TimeSplit(valid_start, times[cut(len(times), train_fraction + valid_fraction)])
