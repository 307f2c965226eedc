"""The daily log: sequences a UTC day at a time."""
