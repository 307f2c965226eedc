"""The reports as pages: their frame, and a module for each."""
