"""The one error of this package."""

from traces.errors import UserError


class FitError(UserError):
    """What was asked cannot be fitted or predicted; one line says what is wrong and what would be right."""
