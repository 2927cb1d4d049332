"""JSON lines: one object per token and layer, for loggers of one's own.

    {"token": 0, "layer": 1, "experts": [5, 2], "weights": [0.7, 0.3], "phase": "prefill", "sequence": "a",
     "token_id": 9}                                                                       (all on one line)

layer (index in the model) and experts are required. Fields go by these names or by those that public logs use
(traces.foreign.columns), or `--columns` says which is which. experts: the slots of the token, -1 = none; fewer than
others have are padded with -1. token: position in its request; without it the order of the lines says it. weights: for
all objects or none. phase: prefill or decode, for all or none (then --phase or --prompt-tokens is needed). sequence:
any word or number per request; without it the file is one. Other keys are ignored; numbered lines may come in any
order; a (token, layer) that has none becomes -1.

Objects that are no cells (`{"type": "meta", ...}`) are left out, counted, once it was looked whether they say how many
experts and layers the model has and how many experts a token.
"""

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.cells import Cell, Cells
from traces.foreign.columns import KNOWN, TRACED, find, listed, normal
from traces.foreign.format import PASSES, Reader
from traces.foreign.formats.csv import phase
from traces.foreign.header import told
from traces.foreign.json_lines import begins_with_record, first_objects, integer, member, objects
from traces.foreign.long_rows import MOST
from traces.format.layout import is_int
from traces.format.trace import RoutingTrace

MOST_WEIGHT = float(np.finfo(np.float32).max)
LOOK = 4  # objects before the first cell, at most, for detection
KINDS = ("type", "record_type", "kind", "event", "record")  # keys that say what an object is


def detect(path: Path) -> bool:
    """Whether one of its first objects has a layer and a list of experts, and none before it names a format."""
    try:
        if not begins_with_record(path):
            return False
        for found in islice(first_objects(path), LOOK):
            if "format" in found:
                return False
            keys = {field: [key for key in found if normal(key) in KNOWN[field]] for field in ("layer", "experts")}
            if keys["layer"] and any(_ids(found[key]) for key in keys["experts"]):
                return True
    except (OSError, ValueError):
        pass
    return False


def _ids(value: object) -> bool:
    return isinstance(value, list) and all(map(is_int, value))


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of a file of such objects. Raises TraceError, one line that names the line at fault."""
    build: _Build | None = None
    dropped: Counter[str] = Counter()
    doubts: list[str] = []
    last: dict[str, Any] = {}
    for number, (where, found) in enumerate(objects(path), 1):
        if build is None and _is_header(found, ask):
            ask, more = told(path, ask, found, where)
            doubts += more
            dropped[_called(found)] += 1
            last = found
        elif build is not None and build.is_other(found):
            dropped[_called(found)] += 1
        else:
            build = build or _Build(path, ask, where, found)
            build.add(number, where, found)
    if build is None:
        there = f"no object of it has a layer or experts; the last has {listed(last)}" if last else "no objects in it"
        raise TraceError(f"{path}: {there}; required: layer and experts by a known name, or --columns")
    return build.cells.trace("object", doubts, dropped, tool="jsonl", slots_ordered_by_weight=False)


def _is_header(found: Mapping[str, Any], ask: Ask) -> bool:
    """Whether an object before the first cell is none: it has neither a layer nor experts, by whatever name."""
    told_names = {normal(theirs) for theirs in (ask.columns or {}).values()}
    return not any(normal(key) in KNOWN["layer"] | KNOWN["experts"] | told_names for key in found)


def _called(found: Mapping[str, Any]) -> str:
    """What is left out, for people."""
    kind = next((f" of {key} {ascii(found[key])[:30]}" for key in KINDS if key in found), "")
    return f"objects{kind} that are no routing"


class _Build:
    """Makes cells of objects; the first of them says which key is which field."""

    def __init__(self, path: Path, ask: Ask, where: str, first: dict[str, Any]) -> None:
        self.n_experts = ask.n_experts(path)
        self.at = find(first, ask.asked("columns"), where, TRACED)
        self.kind = next(((key, first[key]) for key in KINDS if key in first and key not in self.at.values()), None)
        for field in ("layer", "experts"):
            if field not in self.at:
                right = f"its names are {listed(first)}; required: {field} by a known name, or --columns {field}=NAME"
                raise TraceError(f"{where}: {field} is missing; {right}")
        if "token" in self.at and isinstance(first[self.at["token"]], str):
            del self.at["token"]  # its text
        self.cells = Cells(path, ask, self.at, isinstance(first[self.at["experts"]], int))

    def is_other(self, found: dict[str, Any]) -> bool:
        """Whether an object says of itself that it is another kind than the first cell, and is no cell."""
        if self.kind is None or self.at["experts"] in found:
            return False
        key, value = self.kind
        return bool(found.get(key) != value)

    def add(self, number: int, where: str, found: dict[str, Any]) -> None:
        value = {field: found[name] for field, name in self.at.items() if name in found}
        experts = self._experts(value, where)
        names = [name for name in ("token", "layer", "rank") if name in self.at and (name != "rank" or name in value)]
        place = {name: integer(value.get(name), self.at[name], where, 0, MOST[name]) for name in names}
        weights = self._weights(value, len(experts), where)
        cell = Cell(
            number, where, place["layer"], experts, weights, place.get("token"), place.get("rank"), phase(value, where),
            _sequence(value, where), _token_id(value, where),
        )  # fmt: skip
        self.cells.add(cell)

    def _experts(self, value: dict[str, Any], where: str) -> tuple[int, ...]:
        name = self.at["experts"]
        if self.cells.single:
            return (integer(value.get("experts"), name, where, -1, self.n_experts - 1),)
        experts = member({name: value["experts"]} if "experts" in value else {}, name, list, where)
        return tuple(integer(expert, name, where, -1, self.n_experts - 1) for expert in experts)

    def _weights(self, value: dict[str, Any], many: int, where: str) -> tuple[float, ...] | None:
        if ("weights" in value) != self.cells.weights:
            state = "missing" if self.cells.weights else "there"
            raise TraceError(f"{where}: weights are {state}, unlike in the first object")
        if not self.cells.weights:
            return None
        return weights_of([value["weights"]] if self.cells.single else value["weights"], many, where)


def weights_of(found: object, many: int, where: str) -> tuple[float, ...]:
    """Router weights of a record with so many experts. Raises TraceError for what is none."""
    if not isinstance(found, list) or len(found) != many:
        raise TraceError(f"{where}: weights is {ascii(found)[:40]}; {many} numbers are required")
    for weight in found:
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight <= MOST_WEIGHT:
            raise TraceError(f"{where}: weights holds {ascii(weight)[:40]}; finite numbers >= 0 are required")
    return tuple(float(weight) for weight in found)


def _sequence(value: dict[str, Any], where: str) -> str | None:
    sequence = value.get("sequence")
    if sequence is None:
        return None
    if not isinstance(sequence, str | int) or isinstance(sequence, bool):
        raise TraceError(f"{where}: sequence is {ascii(sequence)[:40]}; a word or a number is required")
    return str(sequence)


def _token_id(value: dict[str, Any], where: str) -> int:
    return integer(value["token_id"], "token_id", where) if value.get("token_id") is not None else -1


READER = Reader("jsonl", read, detect, "one JSON object per token and layer", (*PASSES, "columns"))
