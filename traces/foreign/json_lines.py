"""JSON objects of a file, one at a time: one per line, or a file that is one object or one list of them."""

import base64
import json
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from traces.errors import TraceError
from traces.foreign.json_stream import Stream
from traces.format.layout import is_int
from traces.format.limits import MOST_JSON_BYTES
from traces.format.members import refuse_constant, refuse_irregular, refusing

MOST_RECORD_BYTES = 1 << 20  # of a record of a log, or its header
BOM = b"\xef\xbb\xbf"
# A list of objects whose keys are numbers is passes by layer: one value of any size (formats.expert_selection).
BY_LAYER = re.compile(rb'\s*+\[\s*+\{\s*+"[0-9]{1,4}"\s*+:')
HEAD_BYTES = 256
LOOK_BYTES = 8 << 20  # of one JSON value, where a format is told by its content
MARKS = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[][{}]', re.DOTALL)
MARKS_AND_COMMAS = re.compile(f"{MARKS.pattern}|,", re.DOTALL)


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object): where names file and line (or place in the list). Raises TraceError, one line."""
    found = (each for where, text in texts(path) for each in values(text, where))
    for here, value in each_of_long(path) if is_long_list(path) else found:
        if not isinstance(value, dict):
            raise TraceError(f"{here}: {_kind(value)}; a JSON object is required")
        yield here, value


def texts(path: Path) -> Iterator[tuple[str, bytes]]:
    """(where, text) of each line that is not blank, or of the one value that a file is over several lines."""
    refuse_irregular(path, "JSON")
    with refusing(f"{path}: not readable"), path.open("rb") as file:
        first = True
        for number, line in enumerate(iter(lambda: file.readline(MOST_JSON_BYTES + 1), b""), 1):
            where = f"{path}: line {number}"
            if len(line) > MOST_JSON_BYTES:
                raise TraceError(f"{where}: more than {MOST_JSON_BYTES} bytes; no response is that long")
            if line.strip():
                if first and _begins_json(line) and not _is_json(line):  # one value over several lines
                    where, line = str(path), line + file.read(MOST_JSON_BYTES + 1 - len(line))
                if len(line) > MOST_JSON_BYTES:
                    wrong = f"one JSON value of over {MOST_JSON_BYTES} bytes"
                    raise TraceError(f"{path}: {wrong}; one object a line has no limit")
                yield where, line
                first = False
        if first:
            yield str(path), b""


def _begins_json(line: bytes) -> bool:
    return line.removeprefix(BOM).lstrip()[:1] in (b"{", b"[")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.removeprefix(BOM))
    except (ValueError, RecursionError):
        return False
    return True


def values(text: bytes, where: str) -> Iterator[tuple[str, Any]]:
    """(where, value): the value that a text is, or those of the list that it is. Raises TraceError for no JSON."""
    with refusing(f"{where}: not JSON"):
        value = json.loads(text.removeprefix(BOM), parse_constant=refuse_constant)
    yield from [(f"{where}: [{i}]", v) for i, v in enumerate(value)] if isinstance(value, list) else [(where, value)]


def small_json(path: Path, most_bytes: int, why: str = "") -> Any:
    """The value of a JSON file of at most so many bytes; why: ends the message where it has more."""
    with refusing(f"{path}: not JSON"):
        if path.stat().st_size > most_bytes:
            raise TraceError(f"{path}: more than {most_bytes} bytes{why}")
        return json.loads(path.read_bytes())


def from_base64(text: str, where: str) -> bytes:
    """The bytes that a string of a JSON file spells. Raises TraceError that begins with `where`."""
    with refusing(f"{where}: not base64"):
        return base64.b64decode(text, validate=True)


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def integer(value: object, what: str, where: str, least: int = 0, most: int = 2**31 - 1) -> int:
    """`value` if it is an integer in range. Raises TraceError that names it."""
    if not is_int(value) or not least <= value <= most:
        found = ascii(value)[:40] if not isinstance(value, int) or abs(value) < 10**30 else "a longer integer"
        raise TraceError(f"{where}: {what} = {found}; an integer from {least} to {most} is required")
    return value


def member(value: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """value[key] of that type. Raises TraceError where it is missing or something else."""
    if not isinstance(value.get(key), kind):
        found = "is missing" if key not in value else f"is {_kind(value[key])}"
        names: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
        raise TraceError(f"{where}: {key} {found}; {names.get(kind, kind.__name__)} is required")
    return value[key]


def by_layer(path: Path) -> bool:
    """Whether a file begins as a list of passes by layer: the look before it is read."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return bool(BY_LAYER.match(file.read(HEAD_BYTES).removeprefix(BOM)))


def begins_with_record(path: Path) -> bool:
    """Whether a file begins as JSON with a line that a record could be: what detection of records looks at, so that it
    never parses a value of hundreds of megabytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.readline(MOST_RECORD_BYTES + 1).removeprefix(BOM).lstrip()
    return head[:1] == b"[" or (head[:1] == b"{" and len(head) <= MOST_RECORD_BYTES)


def first_object(path: Path) -> dict[str, Any]:
    """The first object of a JSON file, {} where there is none, or only passes by layer: what detection looks at."""
    return next(first_objects(path), {})


def first_objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON file, as far as detection looks, up to what is none: of one value that is longer than
    LOOK_BYTES, no more than is in its begin."""
    try:
        if by_layer(path):
            return
        begun = begin_of_long(path)
        if begun is not None:
            yield from begun
            return
        with path.open("rb") as file:
            if file.read(64).removeprefix(BOM).lstrip()[:1] not in (b"{", b"["):
                return
        yield from (found for _, found in objects(path))
    except (OSError, ValueError):
        return


def _head_of_long(path: Path) -> bytes:
    """The begin of a file whose first line with anything on it begins a JSON value that is longer than LOOK_BYTES; b"":
    it does not."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if not _begins_json(head):
            return b""
        head += file.read(LOOK_BYTES + 1 - len(head))
    if len(head) <= LOOK_BYTES:
        return b""
    head = head.removeprefix(BOM).lstrip()
    line, newline, _ = head.partition(b"\n")
    return b"" if newline and _is_json(line) else head


def is_long_list(path: Path) -> bool:
    """Whether a file is a list that is longer than LOOK_BYTES, so that `each_of_long` reads it."""
    return _head_of_long(path).startswith(b"[")


def each_of_long(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, value) of each element of a list of any size, which is never there as a whole."""
    with Stream(path, MOST_JSON_BYTES) as stream:
        while mark := stream.next():
            if mark == "[":
                yield from ((f"{path}: [{i}]", stream.value()) for i in stream.elements())
            else:  # a line more, of a log of lists
                yield str(path), stream.value()


def begin_of_long(path: Path) -> list[dict[str, Any]] | None:
    """The objects that a file begins with, the last of them cut, where its first value is longer than LOOK_BYTES; None:
    it is not."""
    head = _head_of_long(path)
    if not head:
        return None
    try:
        value = json.loads(_closed(head.decode("utf-8", "ignore")))
    except (ValueError, RecursionError):
        return []
    found = value if isinstance(value, list) else [value]
    return list(takewhile(lambda each: isinstance(each, dict), found))


def _closed(text: str) -> str:
    """A JSON text that was cut, made whole: what was begun last is left out, but for a string that is a value, which
    becomes empty; what is open is closed."""
    closing: list[str] = []
    cut = at = 0  # the text up to `cut`, with all that is open closed, is whole; up to `at` it was looked at
    for found in MARKS.finditer(text):
        mark, end = found[0][0], found.end()
        if mark in "[{":
            closing.append("]" if mark == "[" else "}")
        elif mark in "]}" and closing:
            closing.pop()
        if mark != '"':
            cut = end
        elif end == len(text) and text[at : found.start()].rstrip().endswith(":"):
            return text[: found.start()] + '""' + "".join(reversed(closing))
        at = end
    comma = text.rfind(",", cut) if '"' not in text[cut:] else _last_comma(text, cut)
    return text[: max(comma, cut)] + "".join(reversed(closing))


def _last_comma(text: str, start: int) -> int:
    """Where the last comma outside of a string is, from `start` on; -1: there is none."""
    return max((m.start() for m in MARKS_AND_COMMAS.finditer(text, start) if m[0] == ","), default=-1)
