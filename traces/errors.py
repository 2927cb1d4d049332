"""The one error of this package."""


class TraceError(ValueError):
    """Bad input: one line that names the file, the array, the index and the value, and what would be right."""
