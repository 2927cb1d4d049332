"""SGLang's returned routed experts: meta_info.routed_experts of a response, base64 of raw int32.

[tokens - 1 - start, hidden layers, top_k], dense layers zeros; how many layers and slots is not in it, so the model has
to say. start: routed_experts_start_len of the request, 0 by default. Rows of the prefix cache are there too, counted by
cached_tokens. The OpenAI-compatible routes put it under `sgl_ext` of each choice, or under `sglext` of the response.

A prompt without generation (max_new_tokens 0) has a row for each of its tokens, or, in releases that cut the last row
always (issue 20964), for all but the last. Chunks of a stream of /generate have the same id and ever more tokens: each
has all rows so far, and the last counts, or only new ones, which follow the ones before.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.completions import (
    CACHED,
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    UNSHARED,
    Layers,
    Lengths,
    by_index,
    cached_tokens,
    lengths,
    shared_out,
    unshared,
    whole,
)
from traces.foreign.format import PROMPTS, Reader
from traces.foreign.json_lines import from_base64, integer
from traces.foreign.responses import CHOICES, EXPERTS, EXTENSIONS, META, Parts, Response, Responses, looks
from traces.foreign.whole_rows import Rows
from traces.format.layout import Array, is_int
from traces.format.trace import RoutingTrace

ID = np.dtype("<i4")
LENGTHS = (PROMPT_TOKENS, COMPLETION_TOKENS)
START = "routed_experts_start_len"
WITHOUT_LAST = "prompts without generation lack the row of their last token (SGLang's issue 20964)"
FLAG = "the server writes it with --enable-return-routed-experts, for return_routed_experts: true"


class Found(NamedTuple):
    """name: of the object that has `routed_experts`, and its value. choice: what else is known of the completion."""

    name: str
    value: object
    choice: dict[str, Any]


def detect(path: Path) -> bool:
    """Whether one of the first responses of the file has routed experts as SGLang puts them."""
    return looks(path, lambda response: bool(_found(response)))


def _found(response: dict[str, Any]) -> list[Found]:
    """Where routed experts stand: once for the response, or once for each of its choices."""
    at_top = _in(response)
    if at_top is not None:
        return [Found(at_top[0], at_top[1], {})]
    there = [(choice, _in(choice)) for choice in _choices(response)]
    return [
        Found(f"{CHOICES}[{i}].{part[0]}", part[1], choice)
        for i, (choice, part) in enumerate(there)
        if part is not None
    ]


def _in(holder: dict[str, Any]) -> tuple[str, object] | None:
    """(key, value) of the first object in `holder` that has routed experts."""
    parts = [(key, holder.get(key)) for key in (META, *EXTENSIONS)]
    there = [(key, p[EXPERTS]) for key, p in parts if isinstance(p, dict) and p.get(EXPERTS) not in (None, "")]
    return there[0] if there else None


def _choices(response: dict[str, Any]) -> list[dict[str, Any]]:
    choices = response.get(CHOICES)
    return by_index(choices) if isinstance(choices, list) else []


def read(path: Path, ask: Ask) -> RoutingTrace:
    """A request per response or choice. Raises TraceError where the bytes are not whole rows of the model.

    Which chunks of a stream count is known when the last one has been seen: then the file is read once more, without
    the others.
    """
    skip: set[int] = set()
    while True:
        build = _Build(path, ask)
        for number, response in enumerate(build.log):
            if number not in skip:
                build.response(number, response)
        if not build.superseded:
            return build.trace()
        skip |= build.superseded


class _Piece(NamedTuple):
    """A response, as what may come later with the same id and more tokens has to know it. start, end: positions of
    its rows; None: it has none."""

    number: int
    length: Lengths
    start: int | None
    end: int
    sequence: int


class _Build:
    def __init__(self, path: Path, ask: Ask) -> None:
        self.path, self.ask = path, ask
        self.n_layers, self.top_k = ask.n_layers(path), ask.top_k(path)
        self.layers, self.rows, self.log = Layers(path, ask), Rows(path, ask), Responses(path)
        self.pieces: dict[tuple[str, int], _Piece] = {}
        self.superseded: set[int] = set()  # numbers of responses that are the begin of a later one
        self.sequence = 0

    def response(self, number: int, response: Response) -> None:
        """The requests of a response: one, or one of each choice."""
        where, value, _ = response
        found = _found(value)
        if not found:
            self._without(number, response)
            return
        self.log.take(where, value)
        told = self._lengths(value, found, where)
        parts = [self._rows(f, length, f"{where}: {f.name}.{EXPERTS}") for f, length in zip(found, told, strict=True)]
        if len(found) > 1 and len(found) == len(_choices(value)):
            told = shared_out(value, told, [len(rows) for rows in parts])
        if len(found) < len(_choices(value)):
            self.log.fail(where, f"{len(found)} of {len(_choices(value))} choices have {EXPERTS}")
        for one, rows, length in zip(found, parts, told, strict=True):
            self._add(number, response, one, rows, length)

    def _lengths(self, value: dict[str, Any], found: list[Found], where: str) -> list[Lengths]:
        choices = _choices(value) or [{}]
        if unshared(value, choices, where):
            self.log.note(where, UNSHARED)
        held = [f.choice.get(META, value.get(META)) for f in found]
        return [
            _of_meta(meta if isinstance(meta, dict) else {}, where, lengths(value, choices, f.choice, where))
            for meta, f in zip(held, found, strict=True)
        ]

    def _rows(self, found: Found, length: Lengths, where: str) -> Array:
        parts = found.value if isinstance(found.value, Parts) else [found.value]
        return whole([self.layers.of(self._ids(part, where), where) for part in parts], (length.forwarded,), where)

    def _ids(self, text: object, where: str) -> Array:
        if not isinstance(text, str):
            raise TraceError(f"{where} is a {type(text).__name__}; a string is required")
        data, width = from_base64(text, where), self.n_layers * self.top_k
        if len(data) % (width * ID.itemsize):
            row = f"{width} ids of {ID.itemsize} bytes"
            raise TraceError(f"{where}: {len(data)} bytes are not whole rows of {row} (all layers x top_k)")
        return np.frombuffer(data, ID).reshape(-1, self.n_layers, self.top_k)

    def _add(self, number: int, response: Response, found: Found, rows: Array, length: Lengths) -> None:
        where = response.where
        start = self._start(rows, length, _said_start(response.value, found, where), where)
        sequence = self._sequence(number, response, length, start, start + len(rows))
        cached = min(max(0, length.cached - start), len(rows))
        if cached:
            self.rows.dropped[CACHED] += cached
        position = np.arange(start + cached, start + len(rows))
        kept = self.layers.recorded(rows[cached:], where, cached)
        self.rows.add(kept, sequence, position, self.ask.prefill(self.path, position, prompt=length.prompt))

    def _start(self, rows: Array, length: Lengths, said: int | None, where: str) -> int:
        """Position of the first row: they end with the last token but one."""
        forwarded = length.forwarded
        if forwarded is None:
            start = said if said is not None else self.ask.asked("prompt_start")
            if start is None:
                lacking = "no prompt_tokens and completion_tokens of this completion"
                raise TraceError(
                    f"{where}: {lacking}; required: --prompt-start N ({START} of the request, 0 by default)"
                )
            return int(start)
        if length.generated == 0:
            if len(rows) == forwarded + 1 - (said or 0):
                return said or 0
            self.log.note(where, WITHOUT_LAST)
        start = forwarded - len(rows)
        if start < 0:
            raise TraceError(
                f"{where}: {len(rows)} rows; {forwarded} tokens are forwarded by the lengths that it gives"
            )
        if said not in (None, start):
            raise TraceError(f"{where}: {START} = {said}; by its lengths the {len(rows)} rows begin at {start}")
        return start

    # --- chunks of a stream of /generate ---

    def _sequence(self, number: int, response: Response, length: Lengths, start: int, end: int) -> int:
        """The number of the request: a new one, or that of the chunk which these rows follow."""
        key = _key(response.value)
        before, sequence = self._before(key, response, length), self.sequence
        if before is not None:
            if before.start in (None, start):
                self.superseded.add(before.number)
            elif before.end == start:
                sequence = before.sequence
            elif response.streamed:
                rows = f"rows {start} to {end - 1}, after {before.start} to {before.end - 1} of the chunk before"
                raise TraceError(f"{response.where}: {rows}: neither all so far nor the next ones")
        if key is not None:
            self.pieces[key] = _Piece(number, length, start, end, sequence)
        self.sequence += sequence == self.sequence
        return sequence

    def _before(self, key: tuple[str, int] | None, response: Response, length: Lengths) -> _Piece | None:
        """The chunk that this one goes on from: of the same id and prompt, with fewer tokens (as many, at the end of a
        stream that says it is one)."""
        before = None if key is None else self.pieces.get(key)
        if before is None or None in (length.generated, before.length.generated):
            return None
        more = (length.generated or 0) - (before.length.generated or 0)
        goes_on = before.length.prompt == length.prompt and (more > 0 or (response.streamed and more == 0))
        return before if goes_on else None

    def _without(self, number: int, response: Response) -> None:
        """A failure, or a chunk before the one that has the rows."""
        where, value, streamed = response
        key, meta = _key(value), value.get(META)
        length = _of_meta(meta if isinstance(meta, dict) else {}, where, Lengths(None, None))
        before = self._before(key, response, length)
        if before is not None and before.start is not None and streamed:
            return
        if before is not None and before.start is None:
            self.superseded.add(before.number)
        if key is not None:
            self.pieces[key] = _Piece(number, length, None, 0, -1)
        self.log.fail(where, f"no {META}.{EXPERTS}; {FLAG}")

    def trace(self) -> RoutingTrace:
        self.log.tell(self.rows)
        self.layers.tell(self.rows)
        kept = {"tool": "sglang", "layout": "routed_experts", "id_space": "logical", "slots_ordered_by_weight": False}
        return self.rows.trace(self.layers.axis.layers, "no responses in it", **kept)


def _of_meta(meta: dict[str, Any], where: str, other: Lengths) -> Lengths:
    """Lengths as meta_info says them, and where it does not, as something else says them."""
    said = [integer(meta[key], key, where) if meta.get(key) is not None else None for key in LENGTHS]
    prompt, generated = [own if own is not None else told for own, told in zip(said, other[:2], strict=True)]
    return Lengths(prompt, generated, cached_tokens(where, prompt, meta) or other.cached)


def _key(value: dict[str, Any]) -> tuple[str, int] | None:
    """What chunks of one completion share."""
    meta, index = value.get(META), value.get("index")
    name = meta.get("id") if isinstance(meta, dict) else None
    return (name, index if is_int(index) else 0) if isinstance(name, str) else None


def _said_start(value: dict[str, Any], found: Found, where: str) -> int | None:
    """routed_experts_start_len, where the log repeats it."""
    holders = [found.choice, found.choice.get(META), value.get(META), value]
    said = next((h[START] for h in holders if isinstance(h, dict) and h.get(START) is not None), None)
    return None if said is None else integer(said, START, where)


READER = Reader("sglang-routed", read, detect, "SGLang responses with routed_experts (JSON)", PROMPTS)
