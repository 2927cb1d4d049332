"""Logs of llama.cpp's `ffn_moe_topk` tensors. There is no standard file; these are read, told apart by themselves:

    phase,token,layer,rank,expert[,weight][,sequence]   one line per slot: the long CSV of traces.foreign.formats.csv
    layer,expert                                        one line per slot, in the order in which layers ran (moe-trace)
    pos,layer,e0,e1,...                                 one line per token and layer; pos < 0 = prompt token
    int32 records: layer, n_tokens, k, ids ...          one per layer and pass, little endian

Slots are in descending router weight (the tensor comes from an argsort). llama.cpp computes the last layer only for
tokens whose output is wanted; which they are is in none of these files, so in passes where the last layer has fewer
tokens its rows are left out (-1) and counted. A pass that verifies drafts (speculative decoding, MTP) has several
tokens and is no prompt: --verify N; which of them were rejected is in none of these files either.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask, place_layers
from traces.foreign.format import PASSES, Reader
from traces.foreign.formats import csv
from traces.foreign.json_lines import BOM
from traces.foreign.passes import Passes
from traces.foreign.whole_rows import Rows
from traces.format.layout import Array, give_back
from traces.format.limits import MOST_IDS, MOST_LAYERS, MOST_LINE_BYTES
from traces.format.members import refuse_irregular, refusing
from traces.format.trace import RoutingTrace

PAIR, BY_POSITION = "layer,expert", "pos,layer,"
CHUNK_BYTES = 1 << 20
RECORD = np.dtype("<i4")
KEPT: dict[str, Any] = {"tool": "llama.cpp", "id_space": "logical", "slots_ordered_by_weight": True}


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline(MOST_LINE_BYTES).removeprefix(BOM).replace(b" ", b"").strip().lower()


def detect(path: Path) -> bool:
    """Whether its first line names the columns of one of the two short CSV layouts."""
    if not path.is_file():
        return False
    head = _head(path)
    return head == PAIR.encode() or head.startswith(f"{BY_POSITION}e0".encode())


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of any of the four layouts. Raises TraceError, one line."""
    refuse_irregular(path, "a log of llama.cpp")
    with refusing(f"{path}: not readable"):
        head = _head(path)
    columns = head.split(b",")
    if set(csv.REQUIRED) <= {c.decode("latin-1") for c in columns}:
        return csv.read(path, ask, layout="csv", tool="llama.cpp", id_space="logical")
    if head.startswith(BY_POSITION.encode()):
        return _by_position(path, ask, len(columns) - 2)
    if head == PAIR.encode() or re.fullmatch(rb"-?[0-9]{1,9}(,-?[0-9]{1,9})*", head):
        return _pairs(path, ask)
    if b"," in head and head.isascii() and head.decode("ascii").isprintable():
        raise TraceError(f"{path}: line 1 is {head[:40].decode('ascii')!a}; no layout of a llama.cpp log begins so")
    return _records(path, ask)


# --- layer,expert ---


def _pairs(path: Path, ask: Ask) -> RoutingTrace:
    passes, k = Passes(path, ask, short_last=True), ask.top_k(path)
    for where, layer, ids in _runs(path):
        if len(ids) % k:
            raise TraceError(f"{where}: {len(ids)} lines of layer {layer}; top-{k} makes a multiple of {k}")
        passes.add(layer, ids.reshape(-1, k), where)
    return passes.trace(layout=PAIR, **KEPT)


def _runs(path: Path) -> Iterator[tuple[str, int, Array]]:
    """(where, layer, experts) of each run of lines of one layer."""
    held: list[Array] = []
    current, begin, length = -1, 0, 0
    for first, numbers in _numbers(path, 2, PAIR.encode()):
        if not len(numbers):  # the header alone
            continue
        cuts = np.concatenate([[0], np.flatnonzero(np.diff(numbers[:, 0])) + 1, [len(numbers)]])
        for lo, hi in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            layer = int(numbers[lo, 0])
            if layer != current and held:
                yield f"{path}: line {begin}", current, np.concatenate(held)
                held = []
            if not held:
                current, begin = layer, first + lo
                length = 0
            held.append(numbers[lo:hi, 1].astype(np.int32))
            length += hi - lo
            if length > MOST_IDS:
                raise TraceError(f"{path}: line {begin}: over {MOST_IDS} lines of layer {layer} in a row")
    if held:
        yield f"{path}: line {begin}", current, np.concatenate(held)


def _numbers(path: Path, columns: int, header: bytes) -> Iterator[tuple[int, Array]]:
    """(number of the first line, int64 [lines, columns]) of a CSV of integers, about a megabyte at a time."""
    with refusing(f"{path}: not readable"), path.open("rb") as file:
        number, rest = 1, b""
        while data := file.read(CHUNK_BYTES):
            lines = rest + data
            cut = lines.rfind(b"\n") + 1
            if not cut and len(lines) > MOST_LINE_BYTES:
                raise TraceError(f"{path}: line {number}: more than {MOST_LINE_BYTES} bytes")
            whole, rest = lines[:cut], lines[cut:]
            yield number, _parsed(path, whole, columns, number, header)
            number += whole.count(b"\n")
        if rest.strip():
            yield number, _parsed(path, rest, columns, number, header)


def _parsed(path: Path, text: bytes, columns: int, number: int, header: bytes) -> Array:
    """int64 [lines, columns] of lines, empty ones left out, the first of which is the file's line `number`."""
    text = text.replace(b"\r\n", b"\n").replace(b" ", b"").removesuffix(b"\n") + b"\n"
    if number == 1 and text.removeprefix(BOM).lower().startswith(header):
        text = b"\n" + text.partition(b"\n")[2]
    row = b",".join([rb"-?[0-9]{1,9}+"] * columns)
    regular = re.match(rb"(?:%s\n|\n)*+" % row, text)
    if regular and regular.end() < len(text):
        line = text[regular.end() :].partition(b"\n")[0]
        at = number + text.count(b"\n", 0, regular.end())
        right = f"{columns} integers with commas between them are required"
        raise TraceError(f"{path}: line {at} is {line[:40].decode('latin-1')!a}; {right}")
    while b"\n\n" in text:
        text = text.replace(b"\n\n", b"\n")
    cells = text.strip(b"\n").replace(b"\n", b",").decode()
    numbers = (np.fromstring(cells, np.int64, sep=",") if cells else np.zeros(0, np.int64)).reshape(-1, columns)
    if (numbers[:, 0 if columns == 2 else 1] < 0).any():  # -1 is a position of a prompt, and no layer
        raise TraceError(f"{path}: line {number} and after: a layer below 0")
    return numbers


# --- pos,layer,e0,e1,... ---


def _by_position(path: Path, ask: Ask, k: int) -> RoutingTrace:
    """Blocks of one layer, as `Passes`; here the file says phase and position, and so where a request begins."""
    if k < 1:
        raise TraceError(f"{path}: line 1 names no experts; {BY_POSITION}e0,e1,... is required")
    build = _Positions(path, ask, k)
    for first, numbers in _numbers(path, k + 2, BY_POSITION.encode()):
        for i, row in enumerate(numbers.tolist()):
            build.line(first + i, row[0], row[1], row[2:])
    return build.trace()


class _Positions:
    """Lines of (pos, layer, ids), made into rows pass by pass."""

    def __init__(self, path: Path, ask: Ask, k: int) -> None:
        self.path, self.ask, self.k = path, ask, k
        self.pass_: dict[int, list[tuple[int, list[int]]]] = {}
        self.layers: list[int] = []
        self.rows = Rows(path, ask)
        self.layer = -1
        self.prompt: int | None = None  # first row of the prompt that runs
        self.shifts: list[tuple[int, int, int]] = []
        self.request, self.following = -1, 0
        self.start = ask.asked("prompt_start") or 0  # of a prompt with nothing generated after it

    def line(self, number: int, position: int, layer: int, ids: list[int]) -> None:
        if layer < self.layer or (layer == self.layer and position >= 0):
            self._flush(number)
        if len(self.pass_.get(layer, ())) * self.k >= MOST_IDS:
            raise TraceError(f"{self.path}: line {number}: over {MOST_IDS} ids in one pass of layer {layer}")
        self.layer = layer
        self.pass_.setdefault(layer, []).append((position, ids))

    def _flush(self, number: int) -> None:
        """Take the pass that ends before this line."""
        found = sorted(self.pass_)
        where = f"{self.path}: the pass before line {number}"
        self.layers = self.layers or found
        if found != self.layers:
            layer = min(set(found) ^ set(self.layers))
            raise TraceError(f"{where} has not the layers of the first pass; layer {layer} differs")
        first = [position for position, _ in self.pass_[found[0]]]
        experts = np.full((len(first), len(found), self.k), -1, np.int64)
        for place, layer in enumerate(found):
            here = self.pass_[layer]
            if [position for position, _ in here] == first:
                experts[:, place] = [ids for _, ids in here]
            elif layer == found[-1] and len(here) < len(first):
                self.rows.dropped[f"tokens of layer {layer}, which has fewer than the pass"] += len(here)
            else:
                raise TraceError(f"{where}: layer {layer} has other tokens than layer {found[0]}")
        if any(position < 0 for position in first) and max(first) >= 0:
            raise TraceError(f"{where} has prompt tokens (pos < 0) and generated ones")
        self._place(experts, first, where)
        self.pass_, self.layer = {}, -1

    def _place(self, experts: Array, positions: list[int], where: str) -> None:
        """Prompt rows count from 0 at first; the generated row after them says where they stood."""
        if positions[0] < 0:
            if self.prompt is None:
                self.request, self.following = self.request + 1, self.start
                self.prompt = len(self.rows)
            self.rows.add(experts, self.request, self.following + np.arange(len(experts)), True)
            self.following += len(experts)
            return
        if (np.diff(positions) != 1).any():
            raise TraceError(f"{where}: positions {positions[:5]} do not rise by one")
        if self.prompt is not None:
            shift = positions[0] - self.following
            if self.start + shift < 0:
                raise TraceError(f"{where}: position {positions[0]} after {self.following - self.start} prompt tokens")
            self.shifts.append((self.prompt, len(self.rows), shift))
            self.prompt = None
        elif positions[0] != self.following or self.request < 0:
            self.request += 1
        self.rows.add(experts, self.request, np.array(positions), False)
        self.following = positions[-1] + 1

    def trace(self) -> RoutingTrace:
        if self.pass_:
            self._flush(0)
        if not self.layers:
            raise TraceError(f"{self.path}: no rows after line 1; a trace needs at least one")
        facts = self.rows.facts.array()
        for lo, hi, shift in self.shifts:
            facts["position"][lo:hi] += shift
        layers = place_layers(self.path, self.layers, self.ask)
        return self.rows.trace(layers, layout=f"{BY_POSITION}e0,...", **KEPT)


# --- int32 records ---


def _records(path: Path, ask: Ask) -> RoutingTrace:
    passes = Passes(path, ask, short_last=True)
    with refusing(f"{path}: not int32 records"):
        size = path.stat().st_size
        if size < 4 * RECORD.itemsize or size % RECORD.itemsize:
            raise TraceError(f"{path}: {size} bytes; CSV with a known header or int32 records are required")
        words = np.memmap(path, RECORD, "r")
    at = back = 0
    while at < len(words):
        where = f"{path}: byte {at * RECORD.itemsize}"
        if at + 3 > len(words):
            raise TraceError(f"{where}: cut short; a record begins with layer, n_tokens and k")
        layer, n, k = (int(word) for word in words[at : at + 3])
        if not 0 <= layer < MOST_LAYERS or n < 1 or k < 1 or n * k > len(words) - at - 3:
            raise TraceError(f"{where}: layer {layer}, {n} tokens, k {k}; the file has {len(words) - at - 3} ids more")
        passes.add(layer, np.array(words[at + 3 : at + 3 + n * k]).reshape(n, k), where)
        at += 3 + n * k
        if at - back > CHUNK_BYTES:
            back = at
            give_back(words)
    return passes.trace(layout="int32 records", **KEPT)


READER = Reader("llamacpp", read, detect, "llama.cpp logs: four CSV and binary layouts", (*PASSES, "verify"))
