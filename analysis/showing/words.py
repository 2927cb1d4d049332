"""Text that came from files, made fit to be shown: names and settings are their authors'."""

from collections.abc import Sequence
from html import escape

NONE = "-"


def figure(value: float | None, digits: int = 2) -> str:
    """`1,234.50`; `-` for None."""
    return NONE if value is None else f"{value:,.{digits}f}"


def plain(value: object) -> str:
    """One printable line; `-` for None. Other characters as they are written in Python."""
    text = NONE if value is None else str(value)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(text: str, most: int = 28) -> str:
    """At most `most` characters, the middle left out."""
    tail = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - tail]}…{text[-tail:]}"


def markup(value: object) -> str:
    """Text for HTML and SVG, attributes too."""
    return escape(plain(value))


def label(value: object) -> str:
    """Text for plotly, which knows tags and links of its own, but not every entity: all of it stays letters."""
    return escape(plain(value), quote=False)


def listed(names: Sequence[str], most: int = 4) -> str:
    """`a, b and 3 more`."""
    if len(names) <= most:
        return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))
    return f"{', '.join(names[:most])} and {len(names) - most} more"
