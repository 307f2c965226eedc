"""When a day of events is settled: windows that close then.

Each group is keyed by a day, the last part of its key, and closes a number of days after that day began; the watermark
of a batch passes every window at once.
"""

from typing import Any, Final

import apache_beam as beam
from apache_beam.coders.coders import IntervalWindowCoder
from apache_beam.transforms import window
from apache_beam.utils.timestamp import Timestamp

EPOCH_DAY: Final = 719_163  # date(1970, 1, 1).toordinal()
DAY_SECONDS: Final = 86_400


def forever() -> Any:
    """One window for all: what was settled goes on without a day."""
    return beam.WindowInto(window.GlobalWindows())


def start_of(day: int) -> Timestamp:
    """The first moment of a day, given as date.toordinal()."""
    return Timestamp((day - EPOCH_DAY) * DAY_SECONDS)


class Settling(window.NonMergingWindowFn):  # type: ignore[misc]  # Beam ships no types
    """One window for each day; elements are (key, value), the day the last part of the key (date.toordinal())."""

    def __init__(self, days: int) -> None:
        """days: how many days after its day began a window closes."""
        self.seconds = days * DAY_SECONDS

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.seconds))

    def assign(self, context: Any) -> list[window.IntervalWindow]:
        """The window of an element's day, whatever its timestamp."""
        start = start_of(context.element[0][-1])
        return [window.IntervalWindow(start, start + self.seconds)]

    def get_window_coder(self) -> IntervalWindowCoder:
        """How a window is written down."""
        return IntervalWindowCoder()
