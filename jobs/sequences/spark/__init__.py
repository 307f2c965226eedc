"""Spark's translation of the logic, in native columns."""
