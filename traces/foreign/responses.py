"""Responses of a server in a log: JSON lines, a list, or streams of server-sent events (`data: {...}` lines).

A log of real use holds more than whole responses, and none of it stops the reading:

- What failed (an error object, a body in words or HTML, null, a response without routed experts) is counted, and the
  first of them is said. So is a last line that is cut short: the logger was ended while it wrote. Any other line that
  is no JSON is refused: something else has written into the file.
- Chunks of a stream of completions are put together by their id: a field is what the last chunk says of it, token ids
  follow each other, and of what holds routed experts all pieces are kept (`Parts`), because only who knows the lengths
  can tell pieces that begin anew each time from pieces that follow each other. A stream ends with the chunk that has
  `usage` alone, with `[DONE]`, or with the file.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from traces.errors import TraceError
from traces.foreign.json_lines import BOM, begin_of_long, each_of_long, first_object, is_long_list, texts, values
from traces.foreign.whole_rows import Rows
from traces.format.layout import is_int
from traces.format.limits import MOST_JSON_BYTES

CHOICES, EXPERTS, PROMPT_EXPERTS = "choices", "routed_experts", "prompt_routed_experts"
META, USAGE, IDS, FINISH = "meta_info", "usage", "token_ids", "finish_reason"
EXTENSIONS = ("sgl_ext", "sglext")
BULKY = ("delta", "text", "logprobs", "message")  # of a chunk; nothing in them is read
DONE = "[DONE]"
FAILED = "responses that failed or have no routed experts"
CUT = "lines cut short at the end of the file"
UPSTREAM = (b"upstream ", b"no healthy upstream")  # a proxy's
MOST_LOOKED_AT = 1000  # responses, where a format is told by content
PHRASES = {status.phrase.lower().encode() for status in HTTPStatus if status >= 400}


class Parts(list[Any]):
    """What several chunks of a stream have said of one field."""


class Response(NamedTuple):
    """where: file and line. value: the JSON object. streamed: it is a piece of a stream, or one put together."""

    where: str
    value: dict[str, Any]
    streamed: bool


@dataclass
class _Stream:
    """What the chunks of one id have said. where: of the first; rows_at: of the first with routed experts. held:
    characters and token ids that are kept."""

    where: str
    rows_at: str = ""
    finished: bool = False
    held: int = 0
    known: dict[str, Any] = field(default_factory=dict)
    choices: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, where: str, chunk: dict[str, Any]) -> None:
        self._take(where, self.known, {key: found for key, found in chunk.items() if key != CHOICES})
        for choice in chunk[CHOICES]:
            if isinstance(choice, dict):
                index = choice.get("index")
                self._take(where, self.choices.setdefault(index if is_int(index) else 0, {}), choice)
                self.finished = self.finished or choice.get(FINISH) is not None

    def _take(self, where: str, known: dict[str, Any], said: dict[str, Any], deep: bool = True) -> None:
        for key, found in said.items():
            if found is None or key in BULKY:
                continue
            if key in (EXPERTS, PROMPT_EXPERTS):
                known.setdefault(key, Parts()).append(found)
                self.rows_at = self.rows_at or where
                self.held += len(found) if isinstance(found, str) else len(str(found))
            elif key == IDS and isinstance(found, list) and isinstance(known.get(key, []), list):
                known.setdefault(key, []).extend(found)
                self.held += len(found)
            elif deep and key in (*EXTENSIONS, META) and isinstance(found, dict):
                self._take(where, known.setdefault(key, {}), found, deep=False)
            else:
                known[key] = found

    def response(self) -> Response:
        """The whole: what stood in one chunk alone stands as it stood there."""
        whole = _single(self.known) | {CHOICES: [_single(self.choices[i]) for i in sorted(self.choices)]}
        if isinstance(whole.get("object"), str):
            whole["object"] = whole["object"].removesuffix(".chunk")
        return Response(self.rows_at or self.where, whole, True)


def _single(known: dict[str, Any]) -> dict[str, Any]:
    def of(key: str, found: Any) -> Any:
        if key in (*EXTENSIONS, META) and isinstance(found, dict):
            return {name: of(name, inside) for name, inside in found.items() if name not in (*EXTENSIONS, META)}
        return found[0] if isinstance(found, Parts) and len(found) == 1 else found

    return {key: of(key, found) for key, found in known.items()}


class Responses:
    """The responses of a log, one at a time, and the account of what failed.

    failed: how many did. first: where the first one was, and what it says. model: whom the responses name. notes: what
    else is to be said of responses -> how often, and where first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed, self.cut = 0, 0
        self.first = ""
        self.model = ""
        self.notes: dict[str, tuple[int, str]] = {}
        self._open: dict[str, _Stream] = {}  # by id
        self._held = 0  # of all of them

    def __iter__(self) -> Iterator[Response]:
        for where, value, streamed in self._values():
            if value == DONE:
                yield from self._ended()
            elif not isinstance(value, dict) or _error(value):
                self._broke(where, value, streamed)
            elif self._is_chunk(value, streamed):
                yield from self._chunk(where, value)
            else:
                yield Response(where, value, streamed)
        yield from self._close(list(self._open))

    def fail(self, where: str, why: str) -> None:
        """Count a response that cannot be used."""
        self.failed += 1
        self.first = self.first or f"{where}: {why}"

    def note(self, where: str, what: str) -> None:
        """Say something of a response that is used."""
        count, first = self.notes.get(what, (0, where))
        self.notes[what] = (count + 1, first)

    def take(self, where: str, response: dict[str, Any]) -> None:
        """A response that is used. Raises TraceError where it names another model than those before."""
        name = response.get("model")
        if not isinstance(name, str) or name == (self.model or name):
            self.model = self.model or (name if isinstance(name, str) else "")
            return
        raise TraceError(f"{where}: model {name[:60]!r}; the responses before have {self.model[:60]!r}: a log of each")

    def tell(self, rows: Rows) -> None:
        """Put the account into `rows`. Raises TraceError where nothing but failures was read."""
        if not len(rows) and self.first:
            raise TraceError(f"{self.first}; no response has rows, {self.failed + self.cut} failed")
        for count, what in ((self.failed, FAILED), (self.cut, CUT)):
            if count:
                rows.dropped[what] += count
        said = {f"{FAILED}; they are left out": (self.failed + self.cut, self.first)} if self.first else {}
        for what, (count, first) in (said | self.notes).items():
            rows.doubts.append(f"{count} {what} (the first: {first.removeprefix(f'{self.path}: ')})")

    # --- lines ---

    def _values(self) -> Iterator[tuple[str, Any, bool]]:
        """(where, JSON value, whether an event of a stream); DONE at the end of a stream."""
        if is_long_list(self.path):
            yield from ((where, value, False) for where, value in each_of_long(self.path))
            return
        broken: TraceError | None = None
        markup = False
        for where, text in texts(self.path):
            if broken:
                raise broken
            text, streamed = _event(text)
            page, markup = markup, text.startswith(b"<")
            if _is_body(text):
                if not (page and markup):  # the lines of one page count once
                    self.fail(where, ascii(text[:60].decode(errors="replace")))
            elif text == DONE.encode():
                yield where, DONE, True
            elif text or not streamed:
                try:
                    found = list(values(text, where))
                except TraceError as error:
                    broken = error
                    if not _cut(text):
                        raise
                    continue
                for here, value in found:
                    yield here, value, streamed
        if broken:
            self.cut += 1
            self.first = self.first or f"{broken}".partition(": not JSON")[0] + ": the last line is cut short"

    # --- streams ---

    def _is_chunk(self, value: dict[str, Any], streamed: bool) -> bool:
        """Whether a response is a piece of a stream of completions."""
        choices = value.get(CHOICES)
        if not isinstance(choices, list):
            return False
        if streamed or str(value.get("object", "")).endswith(".chunk"):
            return True
        unfinished = any(isinstance(c, dict) and c.get(FINISH, "") is None for c in choices)
        begun = not value.get(USAGE) and (unfinished or _id(value) in self._open)
        return bool(_id(value)) and (not choices or begun)

    def _chunk(self, where: str, value: dict[str, Any]) -> Iterator[Response]:
        name = _id(value)
        stream = self._open.setdefault(name, _Stream(where))
        before = stream.held
        stream.add(where, value)
        self._held += stream.held - before
        if self._held > MOST_JSON_BYTES:
            wrong = f"more than {MOST_JSON_BYTES} bytes of streams that have not ended"
            raise TraceError(f"{where}: {wrong}; data: {DONE}, or a chunk with usage alone, ends one")
        if not value[CHOICES] and value.get(USAGE):
            yield from self._close([name])

    def _ended(self) -> Iterator[Response]:
        """At [DONE]: the one stream that is open, or, of several side by side, those that have finished."""
        finished = [name for name, stream in self._open.items() if stream.finished]
        yield from self._close(list(self._open) if len(self._open) == 1 else finished)

    def _close(self, names: list[str]) -> Iterator[Response]:
        for name in names:
            stream = self._open.pop(name)
            self._held -= stream.held
            yield stream.response()

    def _broke(self, where: str, value: object, streamed: bool) -> None:
        """An error; in a stream it ends the stream that it came in, which is not counted once more."""
        if isinstance(value, bool | int | float):
            raise TraceError(f"{where}: a {type(value).__name__}; a JSON object is required")
        if streamed and len(self._open) == 1:
            self._open.clear()
            self._held = 0
        self.fail(where, _words(value))


def looks(path: Path, like: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether a log holds a response like that among the first ones: what detection looks at."""
    try:
        with path.open("rb") as file:
            head = file.read(64).removeprefix(BOM).lstrip()
        line = (head.splitlines() or [b""])[0]
        if not (head.startswith((b"{", b"[", b'"', b"null")) or _is_body(line) or _event(line)[1]):
            return False
        begun = begin_of_long(path)
        if begun is not None:
            return any(map(like, begun))
        if head.startswith(b"[") and not first_object(path):  # a list of something else
            return False
        for n, (_, value, _) in enumerate(Responses(path)):
            if like(value):
                return True
            if n >= MOST_LOOKED_AT or not (CHOICES in value or META in value):
                return False
    except (OSError, ValueError):
        pass
    return False


def _event(text: bytes) -> tuple[bytes, bool]:
    """(what a line says, whether it is one of a stream of events: its comments and other fields say nothing)."""
    text = text.strip()
    if text.startswith(b"data:"):
        return text[5:].strip(), True
    return (b"", True) if re.match(rb":|(event|id|retry):", text) else (text, False)


def _is_body(text: bytes) -> bool:
    """Whether a line is what a server or a proxy says in words where a response should be."""
    if text.startswith((b"{", b"[")):  # the usual case, and long
        return False
    said = text.lower().rstrip(b".")
    status = re.fullmatch(rb"(http/[\d.]+ )?[45]\d\d( [a-z ]+)?", said)
    return text.startswith(b"<") or said in PHRASES or said.startswith(UPSTREAM) or bool(status)


def _cut(text: bytes) -> bool:
    """Whether a text is the begin of a JSON object or list: the parser came to its end, or into its last word."""
    text = text.removeprefix(BOM)
    if text[:1] not in (b"{", b"["):
        return False
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated") or error.pos >= len(error.doc.rstrip()) - len("\\u0000")
    except UnicodeDecodeError as error:
        return error.end == len(text)
    except (ValueError, RecursionError):
        pass
    return False


def _error(value: dict[str, Any]) -> bool:
    """Whether an object is an error, as OpenAI's interface, vLLM (`object`) and FastAPI (`detail`) write them."""
    said = bool(value.get("error")) or value.get("object") == "error" or bool(value.get("detail"))
    return said and not (value.get(CHOICES) or value.get(META))


def _words(value: object) -> str:
    """What an error says, short and without line breaks."""
    if isinstance(value, dict):
        error = value.get("error")
        inside = error if isinstance(error, dict) else value
        value = next((inside[key] for key in ("message", "error", "detail", "type") if inside.get(key)), "error")
    return "null" if value is None else f"error {str(value)[:80]!a}"


def _id(value: dict[str, Any]) -> str:
    return str(value.get("id") or value.get("request_id") or "")
