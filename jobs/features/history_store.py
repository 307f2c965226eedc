"""The users' histories in the online store: merge clicks into them, and load a batch without moving a user back.

Each change reads what the store holds, merges, and writes only what differs. Why the rule is ours and not the store's
(Feast 0.67): SQLite and Postgres let an older row overwrite a newer one, and SQLite keeps whole seconds; Redis refuses
an older row, but also another row of the same moment, which is what a late click makes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pandas as pd
import pyarrow as pa
import structlog
import tenacity
from filelock import FileLock

from feature_repo.contract import CTR_HISTORY, EVENT_TIME, PUSH_SOURCES, USER_HISTORY, USER_KEY
from jobs.features.value_checks import check_table
from jobs.rules.online_histories import Click, History, merge, reconcile, valid_from
from model.errors import CourierError

if TYPE_CHECKING:
    from feast import FeatureStore

log = structlog.get_logger()

ITEMS, MOMENTS = (feature.name for feature in USER_HISTORY.features)
REFS: Final = [f"{USER_HISTORY.name}:{name}" for name in (ITEMS, MOMENTS)]
PUSH_SOURCE: Final = PUSH_SOURCES[USER_HISTORY.name]
LOCK: Final = Path("feast") / "histories.lock"  # in the workspace
ATTEMPTS: Final = 6
# Named, not imported: sqlite3, redis and psycopg each have their own, and not every machine has every driver.
TRANSIENT: Final = frozenset({"OperationalError", "InterfaceError", "ConnectionError", "TimeoutError"})

# A row for an online store, as Feast hands it over: entity key, feature -> value, valid from, created at.
StoreRow = tuple[Any, Mapping[str, Any], Any, Any]


class StoreNotReady(CourierError):
    """The workspace's feature store cannot take pushed histories yet."""


class Written(NamedTuple):
    """How many users' histories were pushed, and how many were already as the clicks would have made them."""

    pushed: int
    unchanged: int


class HistoryStore:
    """The online histories of one workspace.

    Who changes them on one machine takes turns: a lock in the workspace is held from reading to writing, so two streams
    and a batch load at once lose nothing. Machines that share no file system have no such lock: there one key's clicks
    must be processed in one place, and a stream that ran during a batch load should replay those minutes.
    """

    def __init__(self, workspace: Path, length: int = CTR_HISTORY) -> None:
        """Raises StoreNotReady where the registry does not know the push source."""
        refusal = f"{workspace} has no feature store that takes clicks: run courier materialize first"
        if not (workspace / "feast").is_dir():
            raise StoreNotReady(refusal)
        from feature_repo.definitions import open_store  # Feast's import costs seconds

        self._store, self._length, self._lock = open_store(workspace), length, turns(workspace)
        if PUSH_SOURCE not in {source.name for source in self._store.list_data_sources()}:
            raise StoreNotReady(refusal)
        _write_what_is_merged(self._store)

    def read(self, user_ids: Sequence[str]) -> dict[str, History]:
        """Each user's history in the store; empty where it holds none."""
        if not user_ids:  # Feast cannot look up nothing
            return {}
        found = self._store.get_online_features(REFS, {USER_KEY: list(user_ids)}).to_dict()
        rows = zip(found[USER_KEY], found[ITEMS], found[MOMENTS], strict=True)
        return {user: tuple(zip(items or (), moments or (), strict=True)) for user, items, moments in rows}

    def add(self, clicks: Mapping[str, Iterable[Click]]) -> Written:
        """Merge clicks into their users' histories. Tries again where the store is busy or away for a moment."""
        return _again(self._add)(clicks)

    def _add(self, clicks: Mapping[str, Iterable[Click]]) -> Written:
        with self._lock:
            held = self.read(list(clicks))
            merged = {user: merge(held[user], new, self._length) for user, new in clicks.items()}
            changed = {user: history for user, history in merged.items() if history != held[user]}
            if changed:
                self._push(changed)
        return Written(len(changed), len(merged) - len(changed))

    def _push(self, histories: Mapping[str, History]) -> None:
        from feast.data_source import PushMode

        rows = as_rows(histories)
        table = pa.Table.from_pandas(rows, preserve_index=False)
        check_table(USER_HISTORY, table, cure="mend the clicks that were sent, and send them again")
        self._store.push(PUSH_SOURCE, rows, to=PushMode.ONLINE)


def as_rows(histories: Mapping[str, History]) -> pd.DataFrame:
    """Histories, none empty, in the columns that Feast pushes: the same as the offline rows of user_history."""
    moments = pd.DatetimeIndex([valid_from(history) for history in histories.values()])
    return pd.DataFrame(
        {
            USER_KEY: list(histories),
            EVENT_TIME: moments.as_unit("us"),
            ITEMS: [[item for item, _ in history] for history in histories.values()],
            MOMENTS: [[at for _, at in history] for history in histories.values()],
        }
    )


def turns(workspace: Path) -> FileLock:
    """The lock to hold from reading histories to writing them."""
    path = workspace / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


@contextmanager
def reconciled(store: "FeatureStore", workspace: Path) -> Iterator[None]:
    """Whatever Feast loads into user_history in this block is reconciled with what a stream has pushed there.

    The rows are changed on their way into the online store, batch by batch: no moment shows a user moved back.
    """
    online, lock = store._get_provider().online_store, turns(workspace)
    write = online.online_write_batch

    def write_reconciled(config: Any, table: Any, data: Sequence[StoreRow], progress: Any) -> None:
        if table.name != USER_HISTORY.name:
            write(config, table, data, progress)
            return
        with lock, _written_as_merged(config):
            write(config, table, list(_reconcile(online, config, table, data)), progress)

    online.online_write_batch = write_reconciled  # of this one object: the class and every other store stay as they are
    try:
        yield
    finally:
        del online.online_write_batch


def _reconcile(online: Any, config: Any, table: Any, data: Sequence[StoreRow]) -> Iterator[StoreRow]:
    held = online.online_read(config, table, [key for key, *_ in data], [ITEMS, MOMENTS])
    for row, (_, known) in zip(data, held, strict=True):
        key, values, _, created = row
        offline = _history(values)
        history = reconcile(_history(known or {}), offline, CTR_HISTORY)
        yield row if history == offline else (key, _values(history, values), valid_from(history), created)


def _history(values: Mapping[str, Any]) -> History:
    if ITEMS not in values or MOMENTS not in values:
        return ()
    return tuple(zip(values[ITEMS].string_list_val.val, values[MOMENTS].int64_list_val.val, strict=True))


def _values(history: History, like: Mapping[str, Any]) -> dict[str, Any]:
    items, moments = type(like[ITEMS])(), type(like[MOMENTS])()
    items.string_list_val.val.extend(item for item, _ in history)
    moments.int64_list_val.val.extend(at for _, at in history)
    return {ITEMS: items, MOMENTS: moments}


def _write_what_is_merged(store: "FeatureStore") -> None:
    if hasattr(store.config.online_store, "skip_dedup"):  # Redis would drop a row of the same moment; ours are merged
        store.config.online_store.skip_dedup = True


@contextmanager
def _written_as_merged(config: Any) -> Iterator[None]:
    before = getattr(config.online_store, "skip_dedup", None)
    if before is not None:
        config.online_store.skip_dedup = True
    try:
        yield
    finally:
        if before is not None:
            config.online_store.skip_dedup = before


def _is_transient(error: BaseException) -> bool:
    return any(kind.__name__ in TRANSIENT for kind in type(error).__mro__)


def _again(deed: Callable[..., Written]) -> Callable[..., Written]:
    return tenacity.retry(
        retry=tenacity.retry_if_exception(_is_transient),
        wait=tenacity.wait_exponential_jitter(initial=0.1, max=5),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        before_sleep=lambda state: log.warning("online_store_busy", attempt=state.attempt_number),
        reraise=True,
    )(deed)
