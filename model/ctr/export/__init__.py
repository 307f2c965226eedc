"""Saved CTR models, as serving loads them."""
