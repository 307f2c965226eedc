"""Page views, histories and statistics, in each engine's own way."""
