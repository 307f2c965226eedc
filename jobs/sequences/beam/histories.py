"""Histories in Beam: walk through each user's clicks and page views in time order, a settled day at a time.

A user's events are kept apart by day until their day is settled, and each is then read once: what waits for the walk is
settled already, so all that waits can be walked through together, however many days are let go at a time.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import groupby
from typing import Any, Final

import apache_beam as beam
from apache_beam.coders import PickleCoder, VarIntCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms import userstate
from apache_beam.utils.timestamp import Timestamp

from jobs.rules.events import Event
from jobs.rules.histories import AFTER_THE_CLICK, Snapshot
from jobs.rules.page_views import PageView
from jobs.sequences.beam.settling import Settling, forever, start_of

# A page view belongs to its request day or the next, and is known when the day after its request day is settled.
SETTLED_AFTER_DAYS: Final = 3
Clicked = tuple[str, datetime]
OfDay = tuple[int, list[Event | PageView]]  # a settled day of a user: date.toordinal(), and all that happened


class JoinHistories(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Give each page view what its user clicked strictly before it.

    Outputs `views` of (PageView, history) and `snapshots` of Snapshot: the history after each moment with a click.
    A history is ((item_id, clicked at), ...), newest first, equal times by item_id, at most `length`.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.day_is_settled = Settling(SETTLED_AFTER_DAYS)
        self.walk = WalkInTime(length)

    def expand(self, clicks_and_views: Any) -> Any:
        """(PCollection of distinct clicks, PCollection of PageView) -> outputs as above."""
        clicks, views = clicks_and_views
        both = (clicks | "Clicks" >> forever(), views | "Views" >> forever())
        return (
            both
            | "Both" >> beam.Flatten()
            | "ByUserAndDay" >> beam.Map(_of_user_and_day)
            | "UntilSettled" >> beam.WindowInto(self.day_is_settled)
            | "Day" >> beam.GroupByKey()
            | "ByUser" >> beam.MapTuple(_of_user)
            | "Forever" >> forever()
            | "Walk" >> beam.ParDo(self.walk).with_outputs("snapshots", main="views")
        )


class WalkInTime(beam.DoFn):  # type: ignore[misc]
    """Keeps a user's newest clicks, and the settled days that it has not walked through yet."""

    PENDING = userstate.BagStateSpec("pending", PickleCoder())
    LAST = userstate.ReadModifyWriteStateSpec("last", VarIntCoder())
    NEWEST = userstate.ReadModifyWriteStateSpec("newest", PickleCoder())
    SETTLED = userstate.TimerSpec("settled", userstate.TimeDomain.WATERMARK)
    OF_PENDING, OF_LAST = beam.DoFn.StateParam(PENDING), beam.DoFn.StateParam(LAST)
    OF_NEWEST, OF_SETTLED = beam.DoFn.StateParam(NEWEST), beam.DoFn.TimerParam(SETTLED)

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def process(
        self,
        element: tuple[str, OfDay],
        pending: Any = OF_PENDING,
        last: Any = OF_LAST,
        settled: Any = OF_SETTLED,
    ) -> None:
        """Keep a settled day until the watermark says here too that the days before it have come."""
        day, _ = element[1]
        pending.add(element[1])
        last.write(max(day, last.read() or day))
        settled.set(self._settled_at(last.read()))

    @userstate.on_timer(SETTLED)  # type: ignore[untyped-decorator]
    def settle(
        self,
        user_id: str = beam.DoFn.KeyParam,
        now: Timestamp = beam.DoFn.TimestampParam,
        pending: Any = OF_PENDING,
        newest: Any = OF_NEWEST,
    ) -> Iterator[Any]:
        """Walk through all that waits: the timer is that of the last day of it."""
        waiting = list(pending.read())
        pending.clear()
        for one in waiting:  # a day that came while the timer was on its way has set it anew
            if self._settled_at(one[0]) > now:
                pending.add(one)
        due = [one for day, met in waiting if self._settled_at(day) <= now for one in met]
        history: tuple[Clicked, ...] = newest.read() or ()
        for at, met in groupby(sorted(due, key=_at), key=_at):
            together = list(met)
            for view in together:
                if isinstance(view, PageView):
                    yield view, history
            items = sorted({one.item_id for one in together if isinstance(one, Event)})
            if items:
                history = (*((item_id, at) for item_id in items), *history)[: self.length]
                yield TaggedOutput("snapshots", Snapshot(user_id, at + AFTER_THE_CLICK, history))
        newest.write(history)

    def _settled_at(self, day: int) -> Timestamp:
        return start_of(day + SETTLED_AFTER_DAYS)


def _of_user_and_day(one: Event | PageView) -> tuple[tuple[str, int], Event | PageView]:
    return (one.user_id, _at(one).toordinal()), one


def _of_user(key: tuple[str, int], met: Iterable[Event | PageView]) -> tuple[str, OfDay]:
    user_id, day = key
    return user_id, (day, list(met))


def _at(one: Event | PageView) -> datetime:
    return one.event_time if isinstance(one, Event) else one.request_time
