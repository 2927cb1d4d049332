"""MoEArc's captures (`moearc-trace-v1`), newline-delimited JSON: a header, then a line per token of one request.

    {"format": "moearc-trace-v1", "phase": "decode", "n_layer": 40, "n_layers_routed": 40, "n_expert_used": 8,
     "n_expert": 256, "n_prompt_tokens": 114, "n_prefill_steps": 114, "n_decode_steps": 1024, ...}
    {"step": 0, "phase": "decode", "pos": 114, "e": [0, 181, 0, 14, ..., 39, 7]}

`e` is flat: a layer and an expert, again and again. Prompt and generated tokens are in files of their own; one after
the other in one file (header included) they are one request. Read from the project's bench/traces/README.md.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.cells import Cell, Cells
from traces.foreign.format import Reader
from traces.foreign.formats.csv import phase
from traces.foreign.header import told
from traces.foreign.json_lines import begins_with_record, first_object, integer, member, objects
from traces.foreign.long_rows import MOST
from traces.format.trace import RoutingTrace

FORMAT = "moearc-trace-v1"
STEPS = {"prefill": ("n_prefill_steps", "n_prompt_tokens"), "decode": ("n_decode_steps",)}


def detect(path: Path) -> bool:
    """Whether its first object says so."""
    return begins_with_record(path) and first_object(path).get("format") == FORMAT


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of a file. Raises TraceError, one line that names the line at fault."""
    cells: Cells | None = None
    doubts: list[str] = []
    declared: dict[str, int] = {}
    steps: Counter[str] = Counter()
    for number, (where, found) in enumerate(objects(path), 1):
        if "format" in found or cells is None:
            if found.get("format") != FORMAT:
                raise TraceError(f"{where}: format = {ascii(found.get('format'))[:40]}; {FORMAT} is required")
            more, said = told(path, ask, found, where)
            if cells is None:
                ask, doubts = more, said
                ask.n_experts(path)
                cells = Cells(path, ask, {"token": ""}, single=False)
            elif more.model != ask.model:
                raise TraceError(f"{where}: a header of another model than the first one's")
            declared |= _declared(found, where)
            continue
        steps[str(found.get("phase"))] += 1
        _add(cells, number, where, found, ask.n_experts(path))
    if cells is None:
        raise TraceError(f"{path}: nothing in it; a header of {FORMAT} is required")
    for name, many in declared.items():
        if steps[name] != many:
            doubts.append(f"the header says {many} {name} steps; {steps[name]} are there: cut short")
    return cells.trace("line", doubts, {}, tool="moearc", layout=FORMAT, slots_ordered_by_weight=True)


def _declared(head: dict[str, Any], where: str) -> dict[str, int]:
    """How many lines a header announces, by the phase that it is of."""
    keys = STEPS.get(str(head.get("phase")), ())
    said = next((integer(head[key], key, where) for key in keys if head.get(key) is not None), None)
    return {} if said is None else {str(head["phase"]): said}


def _add(cells: Cells, number: int, where: str, found: dict[str, Any], n_experts: int) -> None:
    """The cells of a line's token."""
    flat = member(found, "e", list, where)
    if len(flat) % 2 or not flat:
        raise TraceError(f"{where}: e has {len(flat)} numbers; pairs of layer and expert are required")
    layers: dict[int, list[int]] = {}
    for layer, expert in zip(flat[::2], flat[1::2], strict=True):
        of = layers.setdefault(integer(layer, "a layer of e", where, 0, MOST["layer"]), [])
        of.append(integer(expert, "an expert of e", where, 0, n_experts - 1))
    token, prefill = integer(found.get("pos"), "pos", where, 0, MOST["token"]), phase(found, where)
    for layer, experts in layers.items():
        cells.add(Cell(number, where, layer, tuple(experts), None, token, 0, prefill, None, -1))


READER = Reader("moearc", read, detect, f"MoEArc's {FORMAT}: a header, then a line per token")
