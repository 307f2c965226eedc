"""The users' histories in the online store: merge clicks into them, and load a batch without moving a user back.

Each change reads what the store holds, merges, and writes only what differs, under a lock. Why the rule is ours and not
the store's: a late click changes a history and not its moment, and of Feast's own stores (0.67) SQLite and Postgres let
an older row overwrite a newer one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import structlog
import tenacity
from filelock import FileLock

from feature_repo.arrow_types import KIND_TYPES, TIME
from feature_repo.contract import CTR_HISTORY, EVENT_TIME, USER_HISTORY, USER_KEY
from feature_repo.online_views import Asked, OnlineViews, open_views
from jobs.features.offline_sources import SOURCES
from jobs.features.value_checks import TableChecker
from jobs.rules.online_histories import Click, History, merge, reconcile, valid_from
from model.errors import CourierError

log = structlog.get_logger()
Deed = TypeVar("Deed", bound=Callable[..., Any])

ITEMS, MOMENTS = (feature.name for feature in USER_HISTORY.features)
LOCK: Final = Path("feast") / "histories.lock"  # in the workspace
ATTEMPTS: Final = 6
# Named, not imported: sqlite3, redis and psycopg each have their own, and not every machine has every driver.
TRANSIENT: Final = frozenset({"OperationalError", "InterfaceError", "ConnectionError", "TimeoutError"})


class StoreNotReady(CourierError):
    """The workspace's feature store cannot take pushed histories yet."""


class Written(NamedTuple):
    """How many users' histories were written, and how many already held the clicks."""

    pushed: int
    unchanged: int


class HistoryStore:
    """The online histories of one workspace.

    Who changes them on one machine takes turns: a lock in the workspace is held from reading to writing, so two streams
    and a batch load at once lose nothing. Machines that share no file system have no such lock: there one key's clicks
    must be processed in one place, and a stream that ran during a batch load should replay those minutes.
    """

    def __init__(self, workspace: Path, length: int = CTR_HISTORY) -> None:
        """Raises StoreNotReady where nothing was materialized in the workspace."""
        if not (workspace / SOURCES).is_dir():
            raise StoreNotReady(f"{workspace} has no feature store that takes clicks: run courier materialize first")
        self._views: OnlineViews = open_views(workspace)
        self._length, self._lock = length, FileLock(workspace / LOCK)
        self._checker = TableChecker()

    def read(self, user_ids: Sequence[str]) -> dict[str, History]:
        """Each user's history in the store; empty where it holds none."""
        return histories_of(self._held(user_ids))

    def add(self, clicks: Mapping[str, Iterable[Click]]) -> Written:
        """Merge clicks into their users' histories. Tries again where the store is busy or away for a moment."""
        return _again(self._add)(clicks)

    def load(self, rows: pa.RecordBatch, *, as_of: datetime) -> int:
        """Bring the offline tables' histories, none empty: no user is moved back behind what a stream has pushed.

        rows: of user_history, each user once.  as_of: up to when the tables know.  Returns how many users the stream
        had taken further. Tries again as `add`.
        """
        return _again(self._load)(rows, as_of)

    def take_out(self, user_ids: Sequence[str], item_id: str) -> list[str]:
        """Take an item out of these users' histories; returns those of whom nothing is left, who stay as they were.

        Tries again as `add`.
        """
        return _again(self._take_out)(user_ids, item_id)

    def _take_out(self, user_ids: Sequence[str], item_id: str) -> list[str]:
        with self._lock:
            without = {
                user: tuple(click for click in history if click[0] != item_id)
                for user, history in self.read(user_ids).items()
            }
            left = {user: history for user, history in without.items() if history}
            if left:
                self._write(as_rows(left), datetime.now(UTC))  # it may end with an earlier click than what is held
        return [user for user, history in without.items() if not history]

    def _add(self, clicks: Mapping[str, Iterable[Click]]) -> Written:
        with self._lock:
            held = self.read(list(clicks))
            merged = {user: merge(held[user], new, self._length) for user, new in clicks.items()}
            changed = {user: history for user, history in merged.items() if history != held[user]}
            if changed:
                rows = as_rows(changed)
                cure = "mend the clicks that were sent, and send them again"
                self._checker.check(USER_HISTORY, pa.Table.from_batches([rows]), cure=cure)
                self._write(rows, None)
        return Written(len(changed), len(merged) - len(changed))

    def _load(self, rows: pa.RecordBatch, as_of: datetime) -> int:
        with self._lock:
            held = self._held(rows.column(USER_KEY).to_pylist())
            # The rule of `reconcile`, for all users at once; it is asked only for those whom the stream has taken on.
            ahead = pc.fill_null(pc.greater(_newest(held), _newest(rows)), False)
            online, offline = (histories_of(table.filter(ahead)) for table in (held, rows))
            kept = {user: reconcile(online[user], offline[user], self._length) for user in offline}
            taken = rows.filter(pc.invert(ahead))
            for some in (taken, as_rows(kept)):
                if some.num_rows:
                    self._write(some, as_of)
        return len(kept)

    def _held(self, user_ids: Sequence[str]) -> pa.RecordBatch:
        [found] = self._views.read([Asked((USER_HISTORY,), {USER_KEY: user_ids})], as_of=datetime.now(UTC))
        return pa.RecordBatch.from_arrays([column.combine_chunks() for column in found.columns], found.column_names)

    def _write(self, rows: pa.RecordBatch, as_of: datetime | None) -> None:
        self._views.write(USER_HISTORY, rows, as_of=as_of)


def as_rows(histories: Mapping[str, History]) -> pa.RecordBatch:
    """Histories, none empty, as rows: the same as the offline rows of user_history."""
    clicks = [list(zip(*history, strict=True)) for history in histories.values()]
    columns = {
        USER_KEY: pa.array(histories, pa.string()),
        EVENT_TIME: pa.array([valid_from(history) for history in histories.values()], TIME),
        ITEMS: pa.array([items for items, _ in clicks], KIND_TYPES["list[str]"]),
        MOMENTS: pa.array([moments for _, moments in clicks], KIND_TYPES["list[int]"]),
    }
    return pa.RecordBatch.from_pydict(columns)


def histories_of(rows: pa.RecordBatch) -> dict[str, History]:
    """The histories that rows of user_history hold, by user."""
    columns = (rows.column(name).to_pylist() for name in (USER_KEY, ITEMS, MOMENTS))
    found = zip(*columns, strict=True)
    return {user: tuple(zip(items or (), moments or (), strict=True)) for user, items, moments in found}


def _newest(rows: pa.RecordBatch) -> pa.Array:
    # Each user's newest click; null where there is none.
    moments = rows.column(MOMENTS)
    empty = pc.equal(pc.list_value_length(moments), 0)
    return pc.list_element(pc.if_else(empty, pa.scalar(None, moments.type), moments), 0)


def is_transient(error: BaseException) -> bool:
    """Whether a store's driver says so of a failure that may pass: busy, or away."""
    return any(kind.__name__ in TRANSIENT for kind in type(error).__mro__)


def _again(deed: Deed) -> Deed:
    again: Deed = tenacity.retry(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_exponential_jitter(initial=0.1, max=5),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        before_sleep=lambda state: log.warning("online_store_busy", attempt=state.attempt_number),
        reraise=True,
    )(deed)
    return again
