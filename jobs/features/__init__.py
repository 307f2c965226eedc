"""The feature store's offline tables, its online rows, and the training rows joined from it."""
