"""What an engine does for the daily log; all that does not depend on the engine is in jobs.sequences.daily.build."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, Protocol

from jobs.config import SequencesConfig
from jobs.raw.canonical import CanonicalTable
from jobs.sequences.daily.log import COUNTS, Plan
from model.artifact import AnyPath, Manifest

DAY: Final = "day"  # a table's rows of a day lie in a folder day=N, N in days since 1970
# What a day counts where nothing happened on it.
NOTHING: Final[Mapping[str, Any]] = {
    **dict.fromkeys(COUNTS, 0),
    "events_rejected": {},
    "first": None,
    "last": None,
    "most_clicks": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """Where to find what each user had clicked before the first day to write: a state, or else all days before."""

    state: AnyPath | None
    days: Sequence[AnyPath]


class NewDays(Protocol):
    """Days that were computed, and wait to be written."""

    @property
    def facts(self) -> Mapping[date, Mapping[str, Any]]:
        """Of each day on which something happened, what differs from NOTHING."""
        ...

    def write_tables(self, folder: AnyPath) -> None:
        """Write each table's rows of each day that is planned to `folder`/TABLE/day=N."""
        ...

    def write_state(self, day: date, folder: AnyPath) -> None:
        """Write each user's last snapshot as of the end of the day: user_id, event_time, history of (at, item_id)."""
        ...


class DailyEngine(Protocol):
    """Computes days, and sequences of days. Its files mean the same to all engines, so a log may change hands."""

    def count_days(self, table: CanonicalTable) -> Mapping[str, Mapping[str, int]]:
        """The rows of each day (ISO, or UNDATED) in each file of events, by its path."""
        ...

    def new_days(
        self, table: CanonicalTable, as_of: datetime, todo: Plan, config: SequencesConfig, earlier: Earlier
    ) -> AbstractContextManager[NewDays]:
        """The days of a plan. table: the files of events that hold them, and perhaps other days too."""
        ...

    def write_undated(self, table: CanonicalTable, as_of: datetime, folder: AnyPath) -> Mapping[str, Any]:
        """Write the rejected rows whose time is not known or lies ahead; returns what differs from NOTHING."""
        ...

    def write_sequences(
        self,
        folders: Sequence[AnyPath],
        counted: Mapping[str, Any],
        *,
        out: AnyPath,
        inputs: Mapping[str, str],
        config: SequencesConfig,
    ) -> Manifest:
        """Write the sequences of the days in these folders.

        counted: the sums over all days; capped_users is still to be completed, `users` and `items` to be counted.
        """
        ...
