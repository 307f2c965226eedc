"""Moments as whole microseconds since 1970 and days as whole days since then, in DuckDB's SQL."""

from datetime import date, datetime
from typing import Final

from jobs.rules.events import DAY, EARLIEST, EPOCH, MICROSECOND, micros

DAY_US: Final = DAY // MICROSECOND
_FIRST_DAY: Final = (EARLIEST - EPOCH) // DAY


def day_of(us: str) -> str:
    """The UTC day of a moment >= EARLIEST in microseconds; DuckDB's cast of a TIMESTAMPTZ asks for a time zone."""
    # Its division rounds towards zero, so days are counted from the earliest one.
    return f"(({us} + {-micros(EARLIEST)}) // {DAY_US} + {_FIRST_DAY})::INTEGER"


def number(day: date) -> int:
    """A day in days since 1970."""
    return (day - EPOCH.date()).days


def moment(us: int) -> datetime:
    """Microseconds since 1970 as an aware moment."""
    return EPOCH + us * MICROSECOND
