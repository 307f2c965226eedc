"""Alembic migrations of the catalogue's tables (model/releases.py); jobs/releases/build.py runs them."""
