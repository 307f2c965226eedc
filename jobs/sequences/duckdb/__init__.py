"""DuckDB's translation of the logic, in its own SQL: what one machine runs."""
