"""Feast's online store with one packed row an entity and view, in SQLite, PostgreSQL or Redis.

In feature_store.yaml:

    online_store:
      type: feature_repo.online_store.PackedOnlineStore
      connection_string: sqlite:////absolute/path.db   # or postgresql://..., redis://...

A row of an earlier (event time, created time) never replaces a later one. A row that is older than its view's ttl is
not there. A row is written whole: a feature that a write leaves out becomes null.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal

from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel
from pydantic import StrictStr

from feature_repo.contract import Feature
from feature_repo.errors import CourierError
from feature_repo.packed.database import Asked, Batch, Database, open_database, table_name
from feature_repo.packed.reader import EPOCH, PackedView, times
from feature_repo.packed.rows import NO_TIME, Layout, Rows, cells_of

KEY_VERSION: Final = 3  # of Feast's serialization of entity keys

_SCALARS: Final = {
    "STRING": ("str", "string"),
    "BYTES": ("bytes", "bytes"),
    "INT64": ("int", "int64"),
    "INT32": ("int32", "int32"),
    "DOUBLE": ("float", "double"),
    "FLOAT": ("float32", "float"),
    "BOOL": ("bool", "bool"),
    "UNIX_TIMESTAMP": ("int", "unix_timestamp"),  # whole seconds, as Feast has them
}
# Feast's type of a value -> the kind of its column, and the field of Feast's message that holds it.
_KINDS: Final = {name: (kind, f"{field}_val") for name, (kind, field) in _SCALARS.items()} | {
    f"{name}_LIST": (f"list[{kind}]", f"{field}_list_val") for name, (kind, field) in _SCALARS.items()
}
_MESSAGE: Final = ("bytes", "")  # of any other type: Feast's message as it is

Row = tuple[Any, dict[str, Any], datetime, datetime | None]
FoundRow = tuple[datetime | None, dict[str, Any] | None]


class PackedOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """What feature_store.yaml says of the store."""

    type: Literal["feature_repo.online_store.PackedOnlineStore"] = "feature_repo.online_store.PackedOnlineStore"
    connection_string: StrictStr  # sqlite:///relative.db, sqlite:////absolute.db, postgresql://..., redis://...


class PackedOnlineStore(OnlineStore):  # type: ignore[misc]
    """Feast's interface to a Database of packed rows."""

    def __init__(self) -> None:
        self._opened: dict[str, Database] = {}
        self._opening = Lock()

    def online_write_batch(
        self, config: Any, table: Any, data: list[Row], progress: Callable[[int], Any] | None
    ) -> None:
        """Write rows of a view, all or none (Redis: row by row). See OnlineStore."""
        view = packed_view(config.project, table)
        event = times([moment for _, _, moment, _ in data], NO_TIME)
        created = times([moment for _, _, _, moment in data], NO_TIME)
        cells = {
            name: cells_of(kind, [_content(values.get(name), field, table.name, name) for _, values, _, _ in data])
            for (name, kind), field in zip(view.layout.kinds.items(), _fields(table), strict=True)
        }
        rows = view.layout.pack(event, created, cells)
        self.database(config).write(view.table, Batch([_key(config, key) for key, *_ in data], event, created, rows))
        if progress:
            progress(len(data))

    def online_read(
        self, config: Any, table: Any, entity_keys: list[Any], requested_features: list[str] | None = None
    ) -> list[FoundRow]:
        """The entities' rows, in their order. See OnlineStore."""
        view = packed_view(config.project, table)
        [rows] = self.database(config).read([Asked(view.table, [_key(config, key) for key in entity_keys])])
        unpacked = view.unpack(rows, datetime.now(UTC))
        fields = dict(zip(view.layout.kinds, _fields(table), strict=True))
        asked = [name for name in fields if requested_features is None or name in requested_features]
        columns = [_messages(unpacked, name, fields[name]) for name in asked]
        moments = [EPOCH + timedelta(microseconds=time) for time in unpacked.event_time.tolist() if time != NO_TIME]
        there = iter(moments)
        values = zip(*columns, strict=True) if columns else ((),) * len(rows)
        return [
            (next(there), dict(zip(asked, row, strict=True))) if found else (None, None)
            for found, row in zip(unpacked.found.tolist(), values, strict=True)
        ]

    def update(
        self,
        config: Any,
        tables_to_delete: Sequence[Any],
        tables_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Any],  # noqa: ARG002 (Feast's interface)
        entities_to_keep: Sequence[Any],  # noqa: ARG002
        partial: bool,  # noqa: ARG002
    ) -> None:
        """Make and drop tables with their views. See OnlineStore."""
        for table in tables_to_keep:
            self.database(config).create(table_name(config.project, table.name))
        self._drop(config, tables_to_delete)

    def teardown(self, config: Any, tables: Sequence[Any], entities: Sequence[Any]) -> None:  # noqa: ARG002
        """Drop the views' tables. See OnlineStore."""
        self._drop(config, tables)
        self.database(config).close()

    async def close(self) -> None:
        """Give back the connections of this thread. See OnlineStore."""
        for database in self._opened.values():
            database.close()

    def database(self, config: Any) -> Database:
        """The database that Feast's configuration names."""
        if config.entity_key_serialization_version != KEY_VERSION:
            raise CourierError(f"entity_key_serialization_version is not {KEY_VERSION}: set it in feature_store.yaml")
        connection = config.online_store.connection_string
        with self._opening:
            if connection not in self._opened:
                self._opened[connection] = open_database(connection, Path(config.repo_path or ""))
            return self._opened[connection]

    def _drop(self, config: Any, tables: Sequence[Any]) -> None:
        for table in tables:
            self.database(config).drop(table_name(config.project, table.name))


def packed_view(project: str, view: Any) -> PackedView:
    """A Feast feature view as the store holds it; of a view of the contract the same as PackedView.of."""
    features = [Feature(field.name, _KINDS.get(_type(field), _MESSAGE)[0]) for field in view.features]
    return PackedView(table_name(project, view.name), Layout(features), getattr(view, "ttl", None) or timedelta(0))


def _fields(view: Any) -> list[str]:
    return [_KINDS.get(_type(field), _MESSAGE)[1] for field in view.features]


def _type(field: Any) -> str:
    return str(field.dtype.to_value_type().name)


def _key(config: Any, key: Any) -> bytes:
    return bytes(serialize_entity_key(key, config.entity_key_serialization_version))


def _content(value: Any, field: str, view: str, feature: str) -> Any:
    # What a message holds, as Python's value; None of a null.
    held = value.WhichOneof("val") if value is not None else None
    if held in (None, "null_val"):
        return None
    if not field:
        return value.SerializeToString()
    if held != field:
        raise CourierError(f"a row of {view} brings {held} for {feature}, whose type in the view takes {field}")
    content = getattr(value, field)
    return content.val if field.endswith("_list_val") else content


def _messages(rows: Rows, name: str, field: str) -> list[Any]:
    # A column as Feast's messages; an empty one of a null.
    cells = zip(rows.values[name].tolist(), rows.valid[name].tolist(), strict=True)
    if not field:
        return [Value.FromString(cell) if valid else Value() for cell, valid in cells]
    if field.endswith("_list_val"):
        return [_list_message(cell, field) if valid else Value() for cell, valid in cells]
    return [Value(**{field: cell}) if valid else Value() for cell, valid in cells]


def _list_message(cell: Any, field: str) -> Any:
    message = Value()
    held = getattr(message, field)
    held.SetInParent()  # an empty list is no null
    held.val.extend(cell.tolist() if hasattr(cell, "tolist") else cell)
    return message
