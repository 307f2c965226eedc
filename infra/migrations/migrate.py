"""Bring the tables of the database of releases to a migration, up or down."""

from importlib.resources import files
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from model.errors import CourierError
from model.release_database import connect, unreadable

NEWEST: Final = "head"


class NoMigration(CourierError):
    """There is no such migration; the message names those there are."""


def migrate(url: str, to: str = NEWEST) -> str:
    """Bring the database at `url` to a migration, all of the way or no step; returns the migration.

    A database that does not exist is made.
    Raises NoMigration for an unknown one, or a database that a newer courier has moved; CatalogueUnreadable.
    """
    config = Config()
    # Found as a package, so that it is the same in a checkout and in an installed wheel.
    config.set_main_option("script_location", str(files("infra.migrations")).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    order = [one.revision for one in reversed(list(script.walk_revisions()))]
    target = order[-1] if to == NEWEST else to
    if target not in order:
        raise NoMigration(f"there is no migration {target!r}: choose among {', '.join(order)}")
    engine = connect(url, writes=True)
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            found = _found(connection)
            if found is not None and found not in order:
                raise NoMigration(
                    f"the database of releases is at migration {found}, which a newer courier made: install that one"
                )
            up = found is None or order.index(found) <= order.index(target)
            (command.upgrade if up else command.downgrade)(config, target)
    except sa.exc.DBAPIError as error:
        raise unreadable(url, error) from None
    finally:
        engine.dispose()
    return target


def _found(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found
