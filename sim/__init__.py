"""The simulator: choices in core, durations in machines, one record."""

__version__ = "0.1.0"
