"""Names of runs as labels of an axis: cut, told apart, on a phone in two lines."""

import re
from collections.abc import Sequence

from analysis.showing.words import label, shortened

NARROW = 16  # letters of a line of a name at an axis, on a phone


def short_labels(names: Sequence[str], most: int = 40) -> list[str]:
    """The names as axis labels: cut, told apart, escaped. What all begin with is left out where some must be cut."""
    same = _shared(names) if max(map(len, names), default=0) > most else 0
    cut = [shortened("…" * (same > 0) + name[same:], most) for name in names]
    return [label(f"{text} #{i}" if cut.count(text) > 1 else text) for i, text in enumerate(cut)]


def _shared(names: Sequence[str]) -> int:
    """How many letters all names begin with, up to the end of a word in them; 0 where that tells little."""
    low, high = min(names), max(names)  # what these two share all do
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), 0)
    words = re.match(r".*[-_/ ]", low[:same])
    return words.end() if words and words.end() > 3 else 0


def two_lines(names: Sequence[str], most: int = NARROW) -> list[str]:
    """The same in at most two lines of so many letters; in one where there are entities, which must not be broken."""
    every = zip(short_labels(names, 2 * most), short_labels(names, most), strict=True)
    return [one if "&" in text else _wrapped(text, most) for text, one in every]


def _wrapped(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    ends = (found.end() for found in re.finditer(r"[-_/ ]", text[: most + 1]))
    at = max((end for end in ends if end >= len(text) - most), default=most)
    return f"{text[:at].rstrip()}<br>{text[at:]}"
