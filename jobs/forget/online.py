"""The online store without a user or an item."""

from pathlib import Path

from feature_repo.contract import ITEM_KEY, USER_HISTORY, USER_KEY, VIEWS
from feature_repo.packed.database import Database
from feature_repo.packed.keys import entity_keys, entity_of, key_part
from feature_repo.store_settings import OnlineSettings, read_settings
from jobs.features.history_store import HistoryStore
from jobs.forget.rows import Entity
from model.errors import CourierError


class StoreCannotDelete(CourierError):
    """The online store is one of Feast's own, which deletes no single entity."""


def packed_settings(workspace: Path) -> OnlineSettings:
    """The settings of a store of packed rows. Raises StoreCannotDelete for another one."""
    settings = read_settings(workspace)
    if not settings.is_packed:
        raise StoreCannotDelete(
            f"the online store of {workspace} is Feast's {settings.section.get('type')}, from which no single entity "
            "can be deleted: name feature_repo.online_store.PackedOnlineStore in feature_store.yaml"
        )
    return settings


def rows_online(workspace: Path, entity: Entity) -> dict[str, list[bytes]]:
    """The keys of the rows that hold the entity, by view; views without one are left out. Raises StoreCannotDelete."""
    settings = packed_settings(workspace)
    database, tables = settings.database(), {name: view.table for name, view in settings.packed_views().items()}
    found = {view.name: _own(database, tables[view.name], entity) for view in VIEWS if entity.key in view.keys}
    if entity.key == ITEM_KEY:
        found[USER_HISTORY.name] = _with_click(workspace, database, tables[USER_HISTORY.name], entity.ids[0])
    return {view: keys for view, keys in found.items() if keys}


def _own(database: Database, table: str, entity: Entity) -> list[bytes]:
    keys = database.find(table, in_key=key_part(entity.ids[0]))
    return [key for key in keys if entity_of(key).get(entity.key) == entity.ids[0]]


def _with_click(workspace: Path, database: Database, table: str, item_id: str) -> list[bytes]:
    # The bytes of an id may stand in a row by chance: what the history says decides.
    users = [entity_of(key)[USER_KEY] for key in database.find(table, in_row=item_id.encode())]
    if not users:
        return []
    histories = HistoryStore(workspace).read(users)
    clicked = [user for user in users if any(item == item_id for item, _ in histories[user])]
    return entity_keys({USER_KEY: clicked})


def remove_online(workspace: Path, found: dict[str, list[bytes]], entity: Entity) -> None:
    """Delete these rows; of a user who clicked on the item, the history keeps the other clicks."""
    settings = packed_settings(workspace)
    database, tables = settings.database(), {name: view.table for name, view in settings.packed_views().items()}
    for view, keys in found.items():
        doomed = keys
        if entity.key == ITEM_KEY and view == USER_HISTORY.name:
            users = [entity_of(key)[USER_KEY] for key in keys]
            emptied = HistoryStore(workspace).take_out(users, entity.ids[0])
            doomed = entity_keys({USER_KEY: emptied})
        database.delete(tables[view], doomed)
