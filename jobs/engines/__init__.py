"""Beam's translation of the logic, as named PTransforms."""

import logging

# Importing Beam without Google's clients tells the root logger so; nobody here asked for BigQuery.
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools not found"))
