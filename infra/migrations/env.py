"""What Alembic runs: the migrations, over the connection of migrate.py or over `-x url=...` by hand."""

from alembic import context
from sqlalchemy import Connection

from model import release_database


def migrate(connection: Connection) -> None:
    """Run the migrations in one transaction."""
    # SQLite cannot alter a table in place: batch mode copies it.
    context.configure(connection=connection, target_metadata=release_database.Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


def migrate_url(url: str) -> None:
    """Run the migrations over a database of one's own choosing."""
    engine = release_database.connect(url, writes=True)
    with engine.connect() as connection:
        migrate(connection)
    engine.dispose()


handed_in = context.config.attributes.get("connection")
if handed_in is not None:
    migrate(handed_in)
else:
    migrate_url(context.get_x_argument(as_dictionary=True)["url"])
