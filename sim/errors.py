"""What a user gets wrong: one line, exit status 2."""

from collections.abc import Iterable

from traces.errors import UserError
from traces.slips import did_you_mean


class SpecError(UserError):
    """A run that cannot be set up, or what it needs cannot be fitted: the message names the field, its value and what
    would be right."""


class CatalogError(UserError):
    """A name or a file that does not describe what it should. Apart: a name that the catalog does not know may be a
    file's, or be no matter (a model beside fixed durations)."""


def unknown(field: str, value: str, known: Iterable[str]) -> SpecError:
    """An unknown name, with the nearest known one and the list."""
    names = sorted(known)
    return SpecError(f"{field}: {value!r} is unknown{did_you_mean(value, names)}; known: {', '.join(names)}")
