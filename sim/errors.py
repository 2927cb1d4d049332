"""What a user gets wrong: one line, exit status 2."""

import difflib
from collections.abc import Iterable


class SpecError(ValueError):
    """A run that cannot be set up: the message names the field, its value and what would be right."""


def unknown(field: str, value: str, known: Iterable[str]) -> SpecError:
    """An unknown name, with the nearest known one and the list."""
    names = sorted(known)
    near = difflib.get_close_matches(value, names, 1, 0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return SpecError(f"{field}: {value!r} is unknown; {hint}known: {', '.join(names)}")
