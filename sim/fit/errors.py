"""The one error of this package."""


class FitError(ValueError):
    """What was asked cannot be fitted or predicted; one line says what is wrong and what would be right."""
