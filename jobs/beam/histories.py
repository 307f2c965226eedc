"""Histories in Beam: walk through each user's clicks and page views in time order, a settled day at a time."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final

import apache_beam as beam
from apache_beam.coders import PickleCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms import userstate

from jobs.beam.settling import forever, start_of
from jobs.logic.events import Event
from jobs.logic.histories import AFTER_THE_CLICK, Snapshot
from jobs.logic.page_views import PageView

# A page view belongs to its request day or the next, and is known when the day after its request day is settled.
SETTLED_AFTER_DAYS: Final = 3
Clicked = tuple[str, datetime]


class JoinHistories(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Give each page view what its user clicked strictly before it.

    Outputs `views` of (PageView, history) and `snapshots` of Snapshot: the history after each moment with a click.
    A history is ((item_id, clicked at), ...), newest first, equal times by item_id, at most `length`.
    """

    def __init__(self, length: int, allowed_lateness: timedelta) -> None:
        super().__init__()
        self.walk = WalkInTime(length, int(allowed_lateness.total_seconds()))

    def expand(self, clicks_and_views: Any) -> Any:
        """(PCollection of distinct clicks, PCollection of PageView) -> outputs as above."""
        clicks, views = clicks_and_views
        both = (clicks | "Clicks" >> forever(), views | "Views" >> forever())
        return (
            both
            | "Both" >> beam.Flatten()
            | "ByUser" >> beam.Map(_of_user)
            | "Walk" >> beam.ParDo(self.walk).with_outputs("snapshots", main="views")
        )


class WalkInTime(beam.DoFn):  # type: ignore[misc]
    """Keeps a user's newest clicks, and the clicks and page views of the days that are not settled yet."""

    PENDING = userstate.BagStateSpec("pending", PickleCoder())
    NEWEST = userstate.ReadModifyWriteStateSpec("newest", PickleCoder())
    SETTLED = userstate.TimerSpec("settled", userstate.TimeDomain.WATERMARK)
    OF_PENDING, OF_NEWEST = beam.DoFn.StateParam(PENDING), beam.DoFn.StateParam(NEWEST)
    OF_SETTLED = beam.DoFn.TimerParam(SETTLED)

    def __init__(self, length: int, lateness_seconds: int) -> None:
        super().__init__()
        self.length, self.lateness = length, lateness_seconds

    def process(
        self, element: tuple[str, Event | PageView], pending: Any = OF_PENDING, settled: Any = OF_SETTLED
    ) -> None:
        """Keep it until its day is settled."""
        day = _at(element[1]).toordinal()
        pending.add(element[1])
        settled.set(start_of(day + SETTLED_AFTER_DAYS) + self.lateness, dynamic_timer_tag=str(day))

    @userstate.on_timer(SETTLED)  # type: ignore[untyped-decorator]
    def settle(
        self,
        user_id: str = beam.DoFn.KeyParam,
        tag: str = beam.DoFn.DynamicTimerTagParam,
        pending: Any = OF_PENDING,
        newest: Any = OF_NEWEST,
    ) -> Iterator[Any]:
        """Walk through what is settled."""
        known = list(pending.read())
        # Timers that are due together fire in any order: whichever is first takes the days before its own along.
        due = [one for one in known if _at(one).toordinal() <= int(tag)]
        if not due:
            return
        pending.clear()
        for one in known:
            if _at(one).toordinal() > int(tag):
                pending.add(one)
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


def _of_user(one: Event | PageView) -> tuple[str, Any]:
    return one.user_id, one


def _at(one: Event | PageView) -> datetime:
    return one.event_time if isinstance(one, Event) else one.request_time
