"""What courier refuses, under the name by which all but the feature repository know it; and rows that a stage lost."""

from feature_repo.errors import CourierError as CourierError


class RowsLost(RuntimeError):
    """A stage has a fault: rows that it read are in none of its counts."""
