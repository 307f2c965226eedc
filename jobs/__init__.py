"""The offline wing: every stage from raw tables to a release."""
