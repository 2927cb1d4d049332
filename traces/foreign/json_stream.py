"""One JSON value of any size, read piece by piece: an object's members and a list's elements, one after the other."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traces.errors import TraceError
from traces.format.members import refuse_constant, refuse_irregular, refusing

CHUNK, MOST_PIECE = 1 << 16, 1 << 24  # characters at a time, and of a piece that is taken whole
DEPTH = 4  # of lists whose elements are passed over one by one
GOES_ON = re.compile(r"[-+.0-9eE]*")  # of a number, at the end of a piece
WHITE = " \t\r\n"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Stream:
    """A cursor into the value of a file. Every method raises TraceError, one line, where the text is not JSON.

    A caller takes each value, by `value`, `skip`, `members` or `elements`, before it asks for the next.
    """

    def __init__(self, path: Path, most: int = MOST_PIECE) -> None:
        refuse_irregular(path, "JSON")
        self.path, self._most, self._text, self._at = path, most, "", 0
        with refusing(f"{path}: not readable"):
            self._file = path.open(encoding="utf-8-sig")
        self._decoder = json.JSONDecoder(parse_constant=refuse_constant)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _more(self, size: int = CHUNK) -> bool:
        with refusing(f"{self.path}: not JSON"):
            text = self._file.read(size)
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(text)

    def next(self) -> str:
        """The next character that is not white, not taken; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in WHITE:
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _take(self, mark: str) -> None:
        if self.next() != mark:
            found = ascii(self._text[self._at : self._at + 20])
            raise TraceError(f"{self.path}: not JSON: {mark!r} is required before {found}")
        self._at += 1

    def members(self) -> Iterator[str]:
        """The keys of an object."""
        self._take("{")
        first = True
        while self.next() != "}":
            if not first:
                self._take(",")
            first = False
            if self.next() != '"':
                self._take('"')
            key = str(self.value())
            self._take(":")
            yield key
        self._take("}")

    def elements(self) -> Iterator[int]:
        """The places of a list's elements, from 0."""
        self._take("[")
        place = 0
        while self.next() != "]":
            if place:
                self._take(",")
            yield place
            place += 1
        self._take("]")

    def value(self) -> Any:
        """The whole value that begins here. Raises TraceError for one of over `most` characters."""
        self.next()
        size = CHUNK
        while True:
            try:
                with refusing(f"{self.path}: not JSON"):
                    value, end = self._decoder.raw_decode(self._text, self._at)
                start = self._at
                if end < len(self._text) and not (is_number(value) and GOES_ON.fullmatch(self._text, end)):
                    self._at = end
                    return value
                if not self._more():  # a number could have gone on
                    self._at = end - start
                    return value
            except TraceError:
                size *= 2
                if len(self._text) - self._at > self._most:
                    wrong = f"a value of over {self._most} characters that is not JSON or longer than any that is known"
                    raise TraceError(f"{self.path}: {wrong}") from None
                if not self._more(size):
                    raise

    def skip(self, depth: int = 0) -> None:
        """Pass over a value of any size: lists of lists an element at a time, what lies deeper as a whole."""
        mark = self.next()
        if mark == "{" and depth < DEPTH:
            for _ in self.members():
                self.skip(depth + 1)
        elif mark == "[" and depth < DEPTH:
            for _ in self.elements():
                self.skip(depth + 1)
        else:
            self.value()

    def end(self) -> None:
        """Refuse what follows the value."""
        if self.next():
            rest = ascii(self._text[self._at : self._at + 20])
            raise TraceError(f"{self.path}: not JSON: {rest} after its value")
