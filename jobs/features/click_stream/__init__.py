"""Clicks merged into the online histories as they come."""
