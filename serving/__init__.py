"""The online wing: feature lookups, ranking and visual search."""
