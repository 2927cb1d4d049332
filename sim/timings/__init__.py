"""Measured speeds of real engines: as data, as runs, and what an engine's few constants must be to give them."""
