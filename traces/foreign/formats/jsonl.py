"""JSON lines: one object per token and layer, for loggers of one's own.

    {"token": 0, "layer": 1, "experts": [5, 2], "weights": [0.7, 0.3], "phase": "prefill", "sequence": "a",
     "token_id": 9}                                                                       (all on one line)

token (position in its request), layer (index in the model) and experts are required. experts: all slots of the token,
the same number in every object, -1 = none. weights: for all objects or none. phase: prefill or decode, for all or none
(then --phase or --prompt-tokens is needed). sequence: any word or number per request; without it the file is one.
Other keys are ignored; lines may come in any order; a (token, layer) that has none becomes -1.
"""

from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.format import SHAPE, Reader
from traces.foreign.formats.csv import PHASES
from traces.foreign.json_lines import first_object, integer, member, objects
from traces.foreign.long_rows import MOST, NOT_SAID, Long
from traces.format.trace import RoutingTrace

REQUIRED = ("token", "layer", "experts")
MOST_WEIGHT = float(np.finfo(np.float32).max)


def detect(path: Path) -> bool:
    """Whether its first object has the required keys."""
    return set(REQUIRED) <= set(first_object(path))


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of a file of such objects. Raises TraceError, one line that names the line at fault."""
    cells: Long | None = None
    n_experts, width = ask.n_experts(path), 0
    for number, (where, found) in enumerate(objects(path), 1):
        experts = member(found, "experts", list, where)
        if cells is None:
            width = len(experts)
            if not 1 <= width <= MOST["rank"]:
                raise TraceError(f"{where}: experts has {width} slots; 1 to {MOST['rank']} are read")
            cells = Long(path, ask, width, "weights" in found)
        if len(experts) != width:
            raise TraceError(f"{where}: experts has {len(experts)} slots; the first object has {width}")
        for expert in experts:
            integer(expert, "experts", where, -1, n_experts - 1)
        _add(cells, number, where, found, experts)
    if cells is None:
        raise TraceError(f"{path}: no objects in it; a trace needs at least one")
    return cells.build("object", tool="jsonl", slots_ordered_by_weight=False)


def _add(cells: Long, number: int, where: str, found: dict[str, Any], experts: list[int]) -> None:
    token, layer = (integer(found.get(name), name, where, 0, MOST[name]) for name in ("token", "layer"))
    phase = found.get("phase")
    if phase is not None and phase not in PHASES:
        raise TraceError(f"{where}: phase = {ascii(phase)[:40]}; one of {', '.join(PHASES)} is required")
    if ("weights" in found) != cells.weights:
        state = "missing" if cells.weights else "there"
        raise TraceError(f"{where}: weights are {state}, unlike in the first object")
    weights = _weights(found["weights"], len(experts), where) if cells.weights else None
    token_id = integer(found["token_id"], "token_id", where) if found.get("token_id") is not None else -1
    sequence = found.get("sequence", "0")
    if not isinstance(sequence, str | int) or isinstance(sequence, bool):
        raise TraceError(f"{where}: sequence is {ascii(sequence)[:40]}; a word or a number is required")
    prefill = NOT_SAID if phase is None else PHASES[phase]
    cells.add(number, str(sequence), token, layer, 0, prefill, tuple(experts), weights, token_id)


def _weights(value: object, width: int, where: str) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != width:
        raise TraceError(f"{where}: weights is {ascii(value)[:40]}; {width} numbers are required")
    for weight in value:
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight <= MOST_WEIGHT:
            raise TraceError(f"{where}: weights holds {ascii(weight)[:40]}; finite numbers >= 0 are required")
    return tuple(float(weight) for weight in value)


READER = Reader("jsonl", read, detect, "one JSON object per token and layer", (*SHAPE, "phase", "prompt_tokens"))
