"""The one error of this package."""


class TraceError(ValueError):
    """Bad input: one line that names file, array, index and value, and what would be right."""
