"""moe-cache-lab's routing JSONL (format `moe-cache-lab.routing-jsonl`, versions 1 and 2): a metadata record, then one
record per token and layer, of one request.

    {"record_type": "metadata", "format": ..., "format_version": 2, "model_id": ..., "routing_stages":
     [{"routing_stage": "decoder", "num_experts": 8, "assigned_experts_per_token": 2, "allows_unassigned": false}]}
    {"record_type": "routing_selection", "routing_stage": "decoder", "phase": "decoder_prompt", "token_position": 0,
     "layer": 0, "assignment_state": "assigned", "selected_experts": [5, 1], "selected_probabilities": [0.8, 0.1]}

Version 1 has num_experts and experts_per_token in its metadata, phases prompt and generated, no stages. Read from the
project's TRACE_FORMAT.md. A trace here is of one stack of layers: a file of two stages is refused. A record that is
`unassigned` (dropped for capacity) has no experts: -1.
"""

import json
from pathlib import Path
from typing import IO, Any

import numpy as np

from traces.command import replace
from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.cells import Cell, Cells
from traces.foreign.format import Reader, Writer
from traces.foreign.formats.jsonl import weights_of
from traces.foreign.header import told
from traces.foreign.json_lines import begins_with_record, first_object, integer, member, objects
from traces.foreign.long_rows import MOST
from traces.foreign.spill import check_full
from traces.format.trace import RoutingTrace

FORMAT, METADATA, EVENT = "moe-cache-lab.routing-jsonl", "metadata", "routing_selection"
PHASES = {"prompt": 1, "generated": 0, "source": 1, "decoder_prompt": 1, "decoder_generated": 0}
STAGE = "routing_stage"


def detect(path: Path) -> bool:
    """Whether its first object says so."""
    return begins_with_record(path) and first_object(path).get("format") == FORMAT


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of a file. Raises TraceError, one line that names the line at fault."""
    records = objects(path)
    where, head = next(records, (str(path), {}))
    if head.get("format") != FORMAT or head.get("format_version") not in (1, 2):
        said = f"format {ascii(head.get('format'))[:40]}, version {ascii(head.get('format_version'))[:10]}"
        raise TraceError(f"{where}: {said}; metadata of {FORMAT} 1 or 2 is required")
    stage = _stage(head, where)
    ask, doubts = told(path, ask, stage, where)
    ask.n_experts(path)
    cells = Cells(path, ask, {"token": "", "weights": ""}, single=False)
    with_weights = 0
    for number, (here, found) in enumerate(records, 2):
        if found.get("record_type") != EVENT or found.get(STAGE) != stage.get(STAGE):
            said = f"{ascii(found.get('record_type'))[:30]} of stage {ascii(found.get(STAGE))[:20]}"
            raise TraceError(f"{here}: a record {said}; {EVENT} of stage {stage.get(STAGE)} is required")
        cell = _cell(found, number, here, ask.n_experts(path))
        with_weights += bool(cell.experts) and cell.weights is not None
        cells.add(cell._replace(weights=cell.weights or (0.0,) * len(cell.experts)))
    if with_weights < cells.records:
        cells.drop_weights()
    kept = {"tool": "moe-cache-lab", "layout": f"routing-jsonl {head['format_version']}"}
    return cells.trace("record", doubts, {}, **kept, slots_ordered_by_weight=False)


def _stage(head: dict[str, Any], where: str) -> dict[str, Any]:
    """What metadata says of the layers: version 1 in itself, version 2 in the profile of its one stage."""
    if head["format_version"] == 1:
        return head
    stages = member(head, "routing_stages", list, where)
    if len(stages) != 1 or not isinstance(stages[0], dict):
        named = ", ".join(str(s.get(STAGE)) for s in stages if isinstance(s, dict))[:40]
        wrong = f"{len(stages)} routing stages ({named}), whose layers are numbered apart; a trace has one"
        raise TraceError(f"{where}: {wrong}: a file with the records and the profile of one of them is required")
    return dict(stages[0])


def _cell(found: dict[str, Any], number: int, where: str, n_experts: int) -> Cell:
    phase = found.get("phase")
    if not isinstance(phase, str) or phase not in PHASES:
        raise TraceError(f"{where}: phase = {ascii(phase)[:40]}; one of {', '.join(PHASES)} is required")
    state = found.get("assignment_state", "assigned")
    experts = tuple(integer(e, "selected_experts", where, 0, n_experts - 1) for e in
                    member(found, "selected_experts", list, where))  # fmt: skip
    if state not in ("assigned", "unassigned") or (state == "assigned") != bool(experts):
        wrong = f"assignment_state = {ascii(state)[:20]} with {len(experts)} experts"
        raise TraceError(f"{where}: {wrong}; assigned with experts or unassigned without is required")
    given = found.get("selected_probabilities") or None
    weights = None if given is None else weights_of(given, len(experts), where)
    token = integer(found.get("token_position"), "token_position", where, 0, MOST["token"])
    layer = integer(found.get("layer"), "layer", where, 0, MOST["layer"])
    token_id = -1 if found.get("token_id") is None else integer(found["token_id"], "token_id", where)
    return Cell(number, where, layer, experts, weights, token, 0, PHASES[phase], None, token_id)


def write(trace: RoutingTrace, out: Path) -> str:
    """One request as version 2, stage decoder: prompt records layer by layer, then generated ones token by token.

    Returns what was written. Raises TraceError for several requests and for slots without an expert, which that format
    cannot say."""
    if out.suffix != ".jsonl":
        raise TraceError(f"{out}: {FORMAT} is a .jsonl")
    requests = len(trace.requests()[0])
    if requests > 1:
        raise TraceError(
            f"{out}: {FORMAT} holds one request, the trace has {requests}; required: traces split --by request"
        )
    check_full(np.asarray(trace.experts), 0, FORMAT)
    prompt, layers = int(trace.prefill.sum()), range(trace.n_moe_layers)

    def fill(file: IO[bytes]) -> None:
        file.write(_line(_metadata(trace)))
        for i in layers:
            for t in range(prompt):
                file.write(_line(_event(trace, t, i)))
        for t in range(prompt, trace.n_tokens):
            for i in layers:
                file.write(_line(_event(trace, t, i)))

    replace(out, fill)
    return f"{trace.n_tokens * len(layers):,} records of {FORMAT} 2"


def _metadata(trace: RoutingTrace) -> dict[str, Any]:
    stage = {STAGE: "decoder", "num_experts": trace.n_experts, "assigned_experts_per_token": trace.top_k}
    head = {"record_type": METADATA, "format": FORMAT, "format_version": 2, "model_id": trace.model}
    return head | {"routing_stages": [stage | {"allows_unassigned": False}]}


def _event(trace: RoutingTrace, t: int, i: int) -> dict[str, Any]:
    event = {"record_type": EVENT, STAGE: "decoder", "assignment_state": "assigned"}
    event["phase"] = "decoder_prompt" if trace.prefill[t] else "decoder_generated"
    weights = [] if trace.weights is None else np.asarray(trace.weights[t, i], np.float64).tolist()
    more: dict[str, Any] = {"token_position": int(trace.position[t]), "layer": int(trace.meta["moe_layers"][i])}
    more["selected_experts"] = np.asarray(trace.experts[t, i]).tolist()
    more["selected_probabilities"] = weights if all(weight <= 1 for weight in weights) else []
    if trace.token_ids is not None and trace.token_ids[t] >= 0:
        more["token_id"] = int(trace.token_ids[t])
    return event | more


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), sort_keys=True).encode("ascii") + b"\n"


READER = Reader("moe-cache-lab", read, detect, "moe-cache-lab's routing JSONL, versions 1 and 2")
WRITER = Writer("moe-cache-lab", write, "moe-cache-lab's routing JSONL, version 2, of one request")
