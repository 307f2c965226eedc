"""Which raw events are accepted, and which of them are one and the same: plain Python, the oracle of the Spark job."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from feature_repo import contract
from feature_repo.contract import EVENT_TYPES

# Why an event is rejected, in the order in which the reasons are looked for.
BAD_ROW: Final = "bad_row"  # no JSON object, too many or too few CSV cells, or a NUL somewhere
BAD_ENCODING: Final = "bad_encoding"  # bytes that are not UTF-8; whoever reads a row sets this key in it where so
NULL_USER_ID: Final = "null_user_id"  # absent, empty or only white space; so for the other keys
NULL_ITEM_ID: Final = "null_item_id"
NULL_REQUEST_ID: Final = "null_request_id"
UNKNOWN_EVENT_TYPE: Final = "unknown_event_type"
NULL_EVENT_TIME: Final = "null_event_time"
NAIVE_EVENT_TIME: Final = "naive_event_time"  # a moment without its offset from UTC
BAD_EVENT_TIME: Final = "bad_event_time"  # not an ISO 8601 moment, or not of our time
BAD_POSITION: Final = "bad_position"  # of an impression: negative, or not a whole number; any other event does without
NULL_POSITION: Final = "null_position"  # an impression must say where it was shown
FUTURE_EVENT_TIME: Final = "future_event_time"  # it would stand first in its user's history until that moment comes
# Two more need the other events of the same page view, and the last those of the same user and day.
FOREIGN_REQUEST: Final = "request_of_another_user"
EARLY_CLICK: Final = "click_before_request"  # its own label would stand in its history
TOO_MANY_CLICKS: Final = "too_many_clicks"  # no human clicks so often: a bot must not sink a job, nor train a model
REJECTIONS: Final = (
    *(BAD_ROW, BAD_ENCODING, NULL_USER_ID, NULL_ITEM_ID, NULL_REQUEST_ID, UNKNOWN_EVENT_TYPE),
    *(NULL_EVENT_TIME, NAIVE_EVENT_TIME, BAD_EVENT_TIME, BAD_POSITION, NULL_POSITION, FUTURE_EVENT_TIME),
    *(FOREIGN_REQUEST, EARLY_CLICK, TOO_MANY_CLICKS),
)

IMPRESSION: Final = "impression"
CLICK: Final = "click"
CONVERSIONS: Final = ("cart", "purchase")  # carried with their type; neither labels nor history
DAY: Final = timedelta(days=1)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)

EARLIEST: Final = contract.EARLIEST
LATEST: Final = contract.LATEST
# How far ahead of the judge's clock an event may be dated. Clocks that are set over the network differ by seconds, one
# set by hand by minutes, or by the hour of a summer time that is not kept; whoever is further ahead is in a wrong zone.
TOLERANCE: Final = timedelta(hours=1)

# DuckDB matches text against these too, so they read nothing that is not understood alike by Python and by RE2.
WHITE_SPACE: Final = " \t\n\r\f\v"
LOCAL_MOMENT: Final = r"[12]\d{3}-\d\d-\d\d[Tt ][0-2]\d:[0-5]\d(?::[0-5]\d(?:[.,]\d{1,9})?)?"
# Behind an offset Go writes the zone's letters, and Java its name in brackets.
OFFSET: Final = (
    r"(?:[Zz]| ?(?:UTC|GMT)| ?[+-](?:0\d|1[0-4])(?::?[0-5]\d)?(?: [A-Z]{2,5})?)(?:\[[A-Za-z][A-Za-z0-9_+/-]*\])?"
)
# pandas writes the positions of a column with gaps as 3.0; Java writes 10000000.0 as 1.0E7, hence seven digits.
POSITION: Final = r"\d{1,7}(?:\.0*)?"
LARGEST_POSITION: Final = 9_999_999  # what POSITION allows a whole number


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Event:
    """An accepted event; event_time is aware UTC, position 0 is the top of the page."""

    user_id: str
    item_id: str
    event_time: datetime
    event_type: str
    request_id: str
    position: int | None = None

    @property
    def identity(self) -> tuple[str, str, datetime, str, str]:
        """What makes two events one and the same."""
        return self.user_id, self.item_id, self.event_time, self.event_type, self.request_id

    @property
    def day(self) -> date:
        """The UTC day on which it happened."""
        return self.event_time.date()


# --- one event by itself --------------------------------------------------------------------------------------------


def reject_reason(raw: Mapping[str, Any], now: datetime) -> str | None:
    """Why this raw event is unusable by itself, or None. Values are as read: text, numbers, datetimes, None.

    now: the clock that it is judged by, aware.
    """
    if found := damage(raw):
        return found
    for key, reason in (("user_id", NULL_USER_ID), ("item_id", NULL_ITEM_ID), ("request_id", NULL_REQUEST_ID)):
        if is_absent(raw.get(key)):
            return reason
    kind = event_type(raw.get("event_type"))
    if kind is None:
        return UNKNOWN_EVENT_TYPE
    found = _time_reason(raw.get("event_time")) or _position_reason(raw.get("position"), kind)
    if found is None and moment(raw["event_time"]) >= future_from(now):
        return FUTURE_EVENT_TIME
    return found


def event_type(value: object) -> str | None:
    """The type that a raw value names, whatever the case of its letters; None for no type of ours."""
    named = value.strip(WHITE_SPACE).lower() if isinstance(value, str) else None
    return named if named in EVENT_TYPES else None


def damage(raw: Mapping[str, Any]) -> str | None:
    """BAD_ROW or BAD_ENCODING where a row was not read as it was meant, whatever table it is of; else None."""
    if any(isinstance(value, str) and "\0" in value for value in raw.values()):
        return BAD_ROW
    return BAD_ENCODING if raw.get(BAD_ENCODING) else None


def event(raw: Mapping[str, Any], now: datetime) -> Event:
    """The event that an acceptable row describes. Raises ValueError for a row that `reject_reason` names."""
    if reason := reject_reason(raw, now):
        raise ValueError(f"event {dict(raw)} is unusable: {reason}")
    return Event(
        user_id=str(raw["user_id"]),
        item_id=str(raw["item_id"]),
        event_time=moment(raw["event_time"]),
        event_type=str(event_type(raw["event_type"])),
        request_id=str(raw["request_id"]),
        position=position(raw.get("position")),
    )


def is_absent(value: object) -> bool:
    """Whether a raw value is null, NaN, empty or only white space."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip(WHITE_SPACE))


def moment(value: object) -> datetime:
    """A moment in UTC, finer than microseconds cut off.

    Raises ValueError for text that is no ISO 8601 moment with an offset, a datetime without one, anything else, and a
    moment outside of [EARLIEST, LATEST).
    """
    if isinstance(value, str) and re.fullmatch(LOCAL_MOMENT + OFFSET, value, re.ASCII):
        offset = re.sub(r"([+-][\d:]+) [A-Z]+$", r"\1", value.partition("[")[0])
        offset = re.sub(" ?(?:UTC|GMT)$", "Z", offset.upper().replace(",", "."))
        value = datetime.fromisoformat(re.sub(r" ([+-][\d:]+)$", r"\1", offset))
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError(f"{value!r} is not a moment with an offset from UTC")
    if not EARLIEST <= value < LATEST:
        raise ValueError(f"{value} is not of our time, which is {EARLIEST:%Y} to {LATEST:%Y}")
    return value.astimezone(UTC)


def micros(at: datetime) -> int:
    """Microseconds since 1970 of an aware moment, exactly."""
    return (at - EPOCH) // MICROSECOND


def future_from(now: datetime) -> datetime:
    """The first moment that is rejected as a future one by who judges at `now`."""
    return now + TOLERANCE


def _time_reason(value: object) -> str | None:
    if is_absent(value):
        return NULL_EVENT_TIME
    naive_text = isinstance(value, str) and re.fullmatch(LOCAL_MOMENT, value, re.ASCII)
    if naive_text or (isinstance(value, datetime) and value.tzinfo is None):
        return NAIVE_EVENT_TIME
    try:
        moment(value)
    except ValueError:
        return BAD_EVENT_TIME
    return None


def position(value: object) -> int | None:
    """A place on the page; None where there is none, or what stands there is none."""
    return None if is_absent(value) or not re.fullmatch(POSITION, str(value), re.ASCII) else int(float(str(value)))


def _position_reason(value: object, kind: str) -> str | None:
    if kind != IMPRESSION or position(value) is not None:
        return None
    return NULL_POSITION if is_absent(value) else BAD_POSITION


# --- events together ------------------------------------------------------------------------------------------------
# No rule looks further than a day back and a day ahead: so a day can be added to a log without computing its past anew,
# and a day is settled once the next one has been read.

PageKey = tuple[str, date]  # a page view: its request_id, and its request day


def page_keys(events: Iterable[Event]) -> dict[Event, PageKey]:
    """The page view that each event belongs to; an event without one is left out.

    A request's events belong to its page view of the day before, if an impression of the request lies there; else to
    that of the same day; else, for what precedes its impressions, to that of the day after. So a page shown across
    midnight is one page view, a click belongs to a page shown on its own day or the day before, and a request_id that
    comes again days later is another page view.
    """
    events = list(events)
    shown = {(one.request_id, one.day) for one in events if one.event_type == IMPRESSION}
    days = {one: (one.day - DAY, one.day, one.day + DAY) for one in events}
    found = {one: next((day for day in days[one] if (one.request_id, day) in shown), None) for one in events}
    return {one: (one.request_id, day) for one, day in found.items() if day is not None}


def inconsistent(events: Iterable[Event], pages: Mapping[Event, PageKey]) -> dict[Event, str]:
    """The events that contradict the impressions of their page view, and why.

    A page view belongs to the user of its earliest impression (of equal ones, the smallest user_id) and begins then.
    An event without a page view contradicts nothing.
    """
    events = list(events)
    opened: dict[PageKey, tuple[datetime, str]] = {}
    for one in events:
        if one.event_type == IMPRESSION:
            opening = (one.event_time, one.user_id)
            opened[pages[one]] = min(opened.get(pages[one], opening), opening)
    found = {one: inconsistency(one, opened.get(pages[one])) for one in events if one in pages}
    return {one: reason for one, reason in found.items() if reason}


def inconsistency(one: Event, opening: tuple[datetime, str] | None) -> str | None:
    """Why an event contradicts its page view, which began at a moment and belongs to a user; None opens none."""
    if opening is None:
        return None
    began, owner = opening
    if one.user_id != owner:
        return FOREIGN_REQUEST
    return EARLY_CLICK if one.event_type == CLICK and one.event_time < began else None


def over_the_cap(events: Iterable[Event], max_clicks_per_day: int) -> dict[Event, str]:
    """The clicks of a user and UTC day beyond the first `max_clicks_per_day` distinct ones, and why.

    In order of event_time, item_id, request_id: which ones stand depends on earlier clicks alone.
    """
    of_day: dict[tuple[str, date], list[Event]] = {}
    for one in clicks_of(events):
        of_day.setdefault((one.user_id, one.day), []).append(one)
    surplus: dict[Event, str] = {}
    for clicks in of_day.values():
        allowed = sorted({in_time(one) for one in clicks})[:max_clicks_per_day]
        surplus |= dict.fromkeys((one for one in clicks if in_time(one) not in allowed), TOO_MANY_CLICKS)
    return surplus


def in_time(click: Event) -> tuple[datetime, str, str]:
    """What the clicks of a user and day are counted by, in its order."""
    return click.event_time, click.item_id, click.request_id


def rejections(events: Iterable[Event], max_clicks_per_day: int) -> dict[Event, str]:
    """Why each of these events, acceptable by itself, is rejected when they are seen together."""
    events = list(events)
    contradicting = inconsistent(events, page_keys(events))
    return contradicting | over_the_cap((one for one in events if one not in contradicting), max_clicks_per_day)


def deduplicate(events: Iterable[Event]) -> list[Event]:
    """Each event once, sorted; of one event at several positions the topmost stands, a known one before none."""
    kept: dict[tuple[str, str, datetime, str, str], Event] = {}
    for one in events:
        rival = kept.setdefault(one.identity, one)
        if _depth(one) < _depth(rival):
            kept[one.identity] = one
    return [kept[identity] for identity in sorted(kept)]


def _depth(one: Event) -> float:
    return math.inf if one.position is None else one.position


def clicks_of(events: Iterable[Event]) -> list[Event]:
    """The clicks among the events."""
    return [one for one in events if one.event_type == CLICK]


def conversions_of(events: Iterable[Event]) -> list[Event]:
    """The carts and purchases among the events."""
    return [one for one in events if one.event_type in CONVERSIONS]
