"""Releases: built, listed, promoted, rolled back."""
