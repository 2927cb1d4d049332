"""The words that outputs, flags and pages use, one line each: `glossary.toml`, for `sim.run --describe WORD`, and
docs/glossary.md, which is `page()` (`make glossary`)."""

import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sim.catalog.files import normal

HEAD = """# Glossary

The words that outputs, flags and pages here use, one line each. `python -m sim.run --describe WORD` says the same,
and of a policy (`--describe buddy`) all that is known of it. Units: GB = 1e9 bytes, GiB = 2^30; times are simulated
unless a page says measured.

| word | what it means | more in |
|---|---|---|
"""


class Word(NamedTuple):
    """means: one line; read: a page or file; also: other spellings."""

    means: str
    read: str
    also: tuple[str, ...] = ()


def _read() -> dict[str, Word]:
    entries = tomllib.loads((Path(__file__).parent / "glossary.toml").read_text())
    return {name: Word(entry["means"], entry["read"], tuple(entry.get("also", ()))) for name, entry in entries.items()}


WORDS: Mapping[str, Word] = _read()
_BY = {normal(spelling): name for name, word in WORDS.items() for spelling in (name, *word.also)}


def named(text: str) -> dict[str, dict[str, object]]:
    """The entry that a word names, whatever its case, hyphens, or one of its other spellings; nothing of any other."""
    found = _BY.get(normal(text))
    return {} if found is None else {found: WORDS[found]._asdict()}


def lines(found: Mapping[str, Mapping[str, object]]) -> list[str]:
    """`named`'s entries for people."""
    return [textwrap.fill(f"{name}: {word['means']} ({word['read']})", 99) for name, word in found.items()]


def page() -> str:
    """docs/glossary.md."""
    return HEAD + "".join(f"| {name} | {word.means} | {_shown(word.read)} |\n" for name, word in WORDS.items())


def _shown(read: str) -> str:
    return f"[{read.removeprefix('docs/')}]({read.removeprefix('docs/')})" if read.startswith("docs/") else f"`{read}`"
