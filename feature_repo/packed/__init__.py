"""Packed rows of the online store: their bytes, their keys, the databases that hold them, reading and loading them."""
