"""Alembic migrations of the database of releases (model/release_database.py); migrate.py runs them."""
