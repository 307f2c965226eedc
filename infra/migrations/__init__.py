"""Alembic migrations of the catalogue's tables (model/catalogue.py); jobs/release.py runs them."""
