"""The online store as Arrow tables of the contract's views: packed rows without Feast, or one of Feast's own stores."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import pyarrow as pa

from feature_repo.arrow_types import KIND_TYPES, TIME
from feature_repo.contract import EVENT_TIME, ITEM_PROFILE, SERVICES, View
from feature_repo.errors import CourierError
from feature_repo.packed.arrow_rows import columns_of, packed
from feature_repo.packed.reader import Lookup, microseconds, read_rows
from feature_repo.store_settings import OnlineSettings, read_settings

if TYPE_CHECKING:
    from feast import FeatureStore

_SERVICES: Final = {views: name for name, views in SERVICES.items()}


class StoreNotLoaded(CourierError):
    """The online store holds nothing to answer by."""


class Asked(NamedTuple):
    """Views of the same keys, and join key -> its value for each entity."""

    views: tuple[View, ...]
    keys: Mapping[str, Sequence[str]]


class OnlineViews(Protocol):
    """The online store of a workspace. Any thread may call; errors are those of the store's driver."""

    def read(self, asked: Sequence[Asked], *, as_of: datetime) -> list[pa.Table]:
        """Of each lookup the keys, in their order, and the views' features; null where the store holds nothing.

        as_of: aware; what expires does so at this moment (in Feast's own stores now).
        """

    def read_timed(self, view: View, keys: Mapping[str, Sequence[str]], *, as_of: datetime) -> pa.Table:
        """As `read` of one view, with the rows' event times, null where there is none (Feast's own stores: seconds)."""

    def write(self, view: View, rows: pa.RecordBatch, *, as_of: datetime | None = None) -> None:
        """Write rows: the view's keys, `event_timestamp` and its features.

        as_of: of Database.write; one of Feast's own stores takes whatever is written last.
        """

    def count(self, view: View) -> int | None:
        """How many entities the store holds of a view; None where it cannot tell."""

    def check(self) -> None:
        """Raise StoreNotLoaded where there is nothing to answer by, RowUnreadable where rows are of a stale layout."""


def open_views(workspace: Path) -> OnlineViews:
    """The online store that the workspace's feature_store.yaml names; Feast is imported only for one of its own.

    Raises StoreSettingsUnreadable, ConnectionUnknown.
    """
    settings = read_settings(workspace)
    if settings.is_packed:
        return PackedViews(settings)
    from feature_repo.definitions import open_store

    return FeastViews(open_store(workspace))


class PackedViews:
    """OnlineViews of packed rows."""

    def __init__(self, settings: OnlineSettings) -> None:
        self.database = settings.database()
        self.views = settings.packed_views()

    def read(self, asked: Sequence[Asked], *, as_of: datetime) -> list[pa.Table]:
        """See OnlineViews: one round trip. Raises RowUnreadable where a row is of another layout, or damaged."""
        lookups = [Lookup(self.views[view.name], keys) for views, keys in asked for view in views]
        found = iter(read_rows(self.database, lookups, as_of=as_of))
        tables = []
        for views, keys in asked:
            columns = _keys(keys)
            for view in views:
                columns |= columns_of(self.views[view.name].layout, next(found))
            tables.append(pa.table(columns))
        return tables

    def read_timed(self, view: View, keys: Mapping[str, Sequence[str]], *, as_of: datetime) -> pa.Table:
        """See OnlineViews."""
        packed_view = self.views[view.name]
        [rows] = read_rows(self.database, [Lookup(packed_view, keys)], as_of=as_of)
        times = pa.array(rows.event_time, pa.int64(), mask=~rows.found).cast(TIME)
        return pa.table({**_keys(keys), EVENT_TIME: times, **columns_of(packed_view.layout, rows)})

    def write(self, view: View, rows: pa.RecordBatch, *, as_of: datetime | None = None) -> None:
        """See OnlineViews."""
        packed_view = self.views[view.name]
        batch = packed(packed_view.layout, view.keys, rows, None)
        self.database.write(packed_view.table, batch, as_of=None if as_of is None else microseconds(as_of))

    def count(self, view: View) -> int | None:
        """See OnlineViews."""
        return self.database.count(self.views[view.name].table)

    def check(self) -> None:
        """See OnlineViews: a row of each view is looked at."""
        for name, view in self.views.items():
            row = self.database.some_row(view.table)
            if row is None and name == ITEM_PROFILE.name:
                raise StoreNotLoaded(f"the online store holds no row of {name}: run `courier materialize`")
            view.layout.unpack([row])


class FeastViews:
    """OnlineViews of a store of Feast's, by its own lookups and writes."""

    def __init__(self, store: "FeatureStore") -> None:
        self._store = store
        if hasattr(store.config.online_store, "skip_dedup"):
            # Feast's Redis would drop another row of a moment that it holds, as a late click or a new price makes one.
            store.config.online_store.skip_dedup = True

    def read(self, asked: Sequence[Asked], *, as_of: datetime) -> list[pa.Table]:  # noqa: ARG002 (Feast has no clock)
        """See OnlineViews: a lookup each, by the service of these views where there is one."""
        return [pa.table(_keys(keys) | self._look_up(views, keys)) for views, keys in asked]

    def read_timed(self, view: View, keys: Mapping[str, Sequence[str]], *, as_of: datetime) -> pa.Table:  # noqa: ARG002
        """See OnlineViews."""
        return pa.table(_keys(keys) | self._look_up((view,), keys, timed=True))

    def write(self, view: View, rows: pa.RecordBatch, *, as_of: datetime | None = None) -> None:  # noqa: ARG002
        """See OnlineViews."""
        from pandas import ArrowDtype

        # A column of numpy's with a null in it would be floating.
        self._store.write_to_online_store(view.name, rows.to_pandas(types_mapper=ArrowDtype))

    def count(self, view: View) -> int | None:  # noqa: ARG002 (Feast's stores do not count)
        """See OnlineViews."""
        return None

    def check(self) -> None:
        """See OnlineViews: whether Feast knows the services."""
        unknown = set(SERVICES) - {service.name for service in self._store.list_feature_services()}
        if unknown:
            raise StoreNotLoaded(f"Feast's registry knows no service {min(unknown)}: run `courier materialize`")

    def _look_up(
        self, views: tuple[View, ...], keys: Mapping[str, Sequence[str]], *, timed: bool = False
    ) -> dict[str, pa.Array]:
        features = [feature for view in views for feature in view.features]
        found: dict[str, list[Any]] = {feature.name: [] for feature in features}
        times = f"{features[0].name}__ts"
        if len(next(iter(keys.values()))):  # Feast cannot look up nothing
            service = _SERVICES.get(views)
            refs = [f"{view.name}:{feature.name}" for view in views for feature in view.features]
            asked = self._store.get_feature_service(service, allow_cache=True) if service else refs
            answer = self._store.get_online_features(asked, {key: list(values) for key, values in keys.items()})
            found = answer.to_dict(include_event_timestamps=timed)
        columns = {}
        if timed:
            seconds = pa.array(found.get(times, []), pa.int64())
            columns[EVENT_TIME] = seconds.cast(pa.timestamp("s", "UTC")).cast(TIME)
        return columns | {feature.name: pa.array(found[feature.name], KIND_TYPES[feature.kind]) for feature in features}


def _keys(keys: Mapping[str, Sequence[str]]) -> dict[str, pa.Array]:
    return {key: pa.array(values, pa.string()) for key, values in keys.items()}
