"""Nested lists: one JSON value with the ids of a request as lists [tokens][layers][k], its prompt and what it generated
apart, and facts of the model beside them.

    {"model": ..., "num_layers": 24, "num_experts": 32, "top_k": 8,
     "prompts": {"code": {"prompt_len": 2, "prefill": [[[7, 28, ...], ...], ...], "decode": [...]}, ...}}

`prompts` is an object by name or a list; a file of one request may have its lists at the top. Facts go by any of the
names of traces.foreign.header. Keys may stand in any order; the value is read piece by piece, whatever its size. A
layer that is null or [] has no experts (-1); fewer ids than others have are padded with -1.
"""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask, pick_layers
from traces.foreign.columns import normal
from traces.foreign.format import SHAPE, Reader
from traces.foreign.formats.csv import ALSO, PHASES
from traces.foreign.header import facts, told
from traces.foreign.json_lines import BOM, integer
from traces.foreign.json_stream import Stream
from traces.foreign.long_rows import MOST
from traces.foreign.spill import Spill
from traces.foreign.whole_rows import Rows
from traces.format.layout import Array, give_back
from traces.format.limits import MOST_LAYERS
from traces.format.members import refusing
from traces.format.trace import RoutingTrace

WORDS = PHASES | ALSO
REQUESTS = frozenset(("prompts", "requests", "sequences", "samples", "examples", "runs"))
LENGTH = frozenset(
    map(normal, ("prompt_len", "prompt_length", "prompt_tokens", "n_prompt_tokens", "num_prompt_tokens"))
)
HEAD_BYTES = 1 << 20
FLAGS = (*SHAPE, "prompt_start")
ROWS = 1 << 12  # at a time
LISTS = re.compile(rb'"(%s)"\s*:\s*\[\s*\[\s*\[' % "|".join(WORDS).encode())


def detect(path: Path) -> bool:
    """Whether it begins as an object in which a phase's name stands before lists of lists of lists."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).removeprefix(BOM).lstrip()
    return head.startswith(b"{") and LISTS.search(head) is not None


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of such a file, a request per prompt, names in meta.groups. Raises TraceError, one line."""
    lists = _Lists(path, ask)
    with Stream(path) as stream:
        lists.top(stream)
        stream.end()
    return lists.trace()


class _Part(NamedTuple):
    """Rows lo to hi of the spill: the prompt (prefill 1) or the generated tokens (0) of a request."""

    request: int
    prefill: int
    lo: int
    hi: int


class _Lists:
    """Collects rows as they stand; the facts may come after them, so ids are checked in the end."""

    def __init__(self, path: Path, ask: Ask) -> None:
        self.path, self.ask = path, ask
        self.said: dict[str, Any] = {}
        self.rows: Spill | None = None
        self.parts: list[_Part] = []
        self.names: list[str] = []
        self.requests = 0
        self.lengths: dict[int, int] = {}

    def top(self, stream: Stream) -> None:
        """The members of the file's value: facts, requests, or the lists of its one request."""
        for key in stream.members():
            if normal(key) in REQUESTS and stream.next() == "{":
                for name in stream.members():
                    self.names.append(name or f"{self.requests}")
                    self._request(stream)
            elif normal(key) in REQUESTS and stream.next() == "[":
                for _ in stream.elements():
                    self._request(stream)
            elif not self._member(key, stream):
                self._fact(key, stream)
        self.requests += any(part.request == self.requests for part in self.parts)

    def _fact(self, key: str, stream: Stream) -> None:
        if stream.next() in ("[", "{"):
            stream.skip()
        elif len(self.said) < 1000:
            self.said[key] = stream.value()
        else:
            stream.skip()

    def _request(self, stream: Stream) -> None:
        for key in stream.members():
            if not self._member(key, stream):
                stream.skip()
        self.requests += 1

    def _member(self, key: str, stream: Stream) -> bool:
        """Take a member of a request, if it is one."""
        where = f"{self.path}: {self._name()}.{ascii(key)[1:-1][:40]}"
        if key.lower() in WORDS and stream.next() == "[":
            lo = 0 if self.rows is None else self.rows.rows
            for place in stream.elements():
                self._row(stream.value(), f"{where}[{place}")
            hi = 0 if self.rows is None else self.rows.rows
            if hi > lo:
                self.parts.append(_Part(self.requests, WORDS[key.lower()], lo, hi))
        elif normal(key) in LENGTH:
            self.lengths[self.requests] = integer(stream.value(), key, where, 0, MOST["token"])
        else:
            return False
        return True

    def _name(self) -> str:
        return ascii(self.names[-1])[1:-1][:40] if self.names else f"request {self.requests}"

    def _row(self, value: Any, where: str) -> None:
        """One token: a list per layer of ids."""
        where = where + "]"
        if not isinstance(value, list) or not 1 <= len(value) <= MOST_LAYERS:
            raise TraceError(
                f"{where} is {ascii(value)[:40]}; a list of layers, each a list of expert ids, is required"
            )
        widest = max((len(layer) for layer in value if isinstance(layer, list)), default=0)
        if self.rows is None:
            width = max(widest, self.ask.model.top_k or 1)
            self.rows = Spill(np.int32, (len(value), width), self.ask.scratch)
        layers, width = self.rows.tail
        if len(value) != layers or widest > width:
            right = f"{layers} layers of at most {width} ids are required"
            hint = "" if self.ask.model.top_k else " (--top-k N says the most)"
            raise TraceError(f"{where} has {len(value)} layers of up to {widest} ids; {right}{hint}")
        self.rows.append(_ids(value, width, where)[None])

    def trace(self) -> RoutingTrace:
        if self.rows is None:
            raise TraceError(f"{self.path}: no lists of rows in it; a trace needs at least one")
        ask, doubts = told(self.path, self.ask, self.said, str(self.path))
        layers, width = self.rows.tail
        if ask.model.moe_layers is None and facts(self.said, str(self.path)).get("n_layers") == layers:
            ask = _with_every_layer(ask, layers)
        axis, k = pick_layers(self.path, layers, ask, "a token"), ask.model.top_k or width
        ids, out = self.rows.array(), Rows(self.path, ask)
        out.doubts += doubts
        start = ask.asked("prompt_start") or 0
        prompts = Counter({part.request: part.hi - part.lo for part in self.parts if part.prefill})
        self._check_lengths(prompts, start)
        for part in sorted(self.parts, key=lambda part: (part.request, 1 - part.prefill)):
            first = start + (0 if part.prefill else prompts[part.request])
            self._add(out, ids, part, first, axis.take, k)
        groups: dict[str, Any] = {"groups": {"prompt": self._kept_names()}} if self.names else {}
        return out.trace(axis.layers, tool="nested-json", slots_ordered_by_weight=False, **groups)

    def _check_lengths(self, prompts: Counter[int], start: int) -> None:
        for request, said in self.lengths.items():
            if said != start + prompts[request] and any(part.request == request for part in self.parts):
                name = self.names[request] if self.names else f"request {request}"
                found = f"{ascii(name)[:40]} has {prompts[request]} prompt rows"
                raise TraceError(f"{self.path}: {found}; its length says {said} (--prompt-start N: of the first)")

    def _add(self, out: Rows, ids: Array, part: _Part, first: int, take: list[int], k: int) -> None:
        """The rows of a part, the first of them at position `first`."""
        for lo in range(part.lo, part.hi, ROWS):
            block = np.asarray(ids[lo : min(lo + ROWS, part.hi)])[:, take]
            if (block[:, :, k:] >= 0).any():
                raise TraceError(f"{self.path}: a token has more than {k} experts, which is the top-k")
            position = first + lo - part.lo + np.arange(len(block))
            out.add(block[:, :, :k], part.request, position, bool(part.prefill))
            give_back(ids)

    def _kept_names(self) -> list[str]:
        """Names of the requests that have rows."""
        there = {part.request for part in self.parts}
        return [name for number, name in enumerate(self.names) if number in there]


def _with_every_layer(ask: Ask, layers: int) -> Ask:
    """A file with a list for each layer of the model: every layer is a MoE layer."""
    return replace(ask, model=replace(ask.model, moe_layers=tuple(range(layers))))


def _ids(value: list[Any], width: int, where: str) -> Array:
    """int32 [layers, width], padded with -1."""
    rows = [[] if layer is None else layer for layer in value]
    if any(not isinstance(layer, list) for layer in rows):
        raise TraceError(f"{where} has a layer that is no list of expert ids")
    padded = [layer + [-1] * (width - len(layer)) for layer in rows]
    with refusing(f"{where}: a list of expert ids per layer is required"):
        ids = np.array(padded)
    if ids.dtype.kind not in "iu" or ids.ndim != 2 or int(ids.min()) < -1 or int(ids.max()) >= 2**31:
        raise TraceError(f"{where} holds something else than expert ids (integers from 0, -1 = none)")
    return ids.astype(np.int32)


READER = Reader(
    "nested-json", read, detect, "one JSON value with lists [tokens][layers][k] per request and phase", FLAGS
)
