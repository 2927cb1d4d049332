"""Recordings of offloading engines, and expert selection traces, written from a trace as tests.foreign writes others.

Nothing here uses the readers' code; what these functions write is the tests' own reading of the layouts.
"""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np

from traces.format.trace import RoutingTrace

COLUMNS = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes,dropped"


def head(trace: RoutingTrace, model: str = "/models/test-model.gguf") -> list[str]:
    """The lines above the columns: an expert of layer n has 1000 + n bytes, of a dense one 0."""
    n = f"n_layer={trace.n_layers} n_expert={trace.n_experts} n_expert_used={trace.top_k}"
    layers = trace.meta["moe_layers"]
    sizes = [1000 + layer if layer in layers else 0 for layer in range(trace.n_layers)]
    lines = [f"# layer={layer} expert_bytes={size} dense_bytes={7 * size + 1}" for layer, size in enumerate(sizes)]
    return ["# route_trace v1", f"# model={model} arch=test {n}", *lines]


def bigmoeonedge(path: Path, trace: RoutingTrace) -> list[str]:
    """The writer's own columns; nan for a trace without weights, a column of misses for one without `resident`."""
    lines = [*head(trace), COLUMNS]
    for t, i, j in np.argwhere(trace.experts >= 0).tolist():
        weight = "nan" if trace.weights is None else repr(float(trace.weights[t, i, j]))
        there = 0 if trace.resident is None else int(trace.resident[t, i, j])
        where = f"{trace.sequence[t]},{int(not trace.prefill[t])},{trace.position[t]},{trace.meta['moe_layers'][i]}"
        lines.append(f"{where},{j},{trace.experts[t, i, j]},{weight},{there},{0 if there else 1000},0")
    path.write_text("\n".join(lines) + "\n")
    return ["--model", "test-model"]


def lru_pool(trace: RoutingTrace, slots: int) -> np.ndarray:
    """bool [T, L, K]: what an engine with one pool finds there, LRU, empty at first, a prompt in one pass.

    In each layer of a pass every expert is looked up once, in the router's order, and is the most recent from then on;
    those over the size of the pool go when the layer is done, the least recent first.
    """
    pool: OrderedDict[tuple[int, int], None] = OrderedDict()
    resident = np.zeros(trace.experts.shape, np.bool_)
    for rows in _passes(trace):
        for layer in range(trace.n_moe_layers):
            before = set(pool)
            for t in rows:
                for slot, expert in enumerate(trace.experts[t, layer].tolist()):
                    if expert >= 0:
                        resident[t, layer, slot] = (layer, expert) in before
            for expert in dict.fromkeys(trace.experts[rows, layer].reshape(-1).tolist()):
                if expert >= 0:
                    pool[layer, expert] = None
                    pool.move_to_end((layer, expert))
            while len(pool) > slots:
                pool.popitem(last=False)
    return resident


def _passes(trace: RoutingTrace) -> list[list[int]]:
    """Rows of each pass: a request's prompt, then a token at a time."""
    out: list[list[int]] = []
    for first, last in zip(*trace.requests(), strict=True):
        prompt = int(trace.prefill[first:last].sum())
        out += [list(range(first, first + prompt))] if prompt else []
        out += [[row] for row in range(first + prompt, last)]
    return out


def expert_selection(path: Path, trace: RoutingTrace) -> list[str]:
    """One request: pass 0 is the prompt; null in dense layers."""
    found = []
    for rows in _passes(trace):
        places = {layer: i for i, layer in enumerate(trace.meta["moe_layers"])}
        ids = {str(n): trace.experts[rows, places[n]].tolist() if n in places else None for n in range(trace.n_layers)}
        found.append(ids)
    path.write_text(json.dumps(found))
    return ["--model", "test-model", "--n-experts", str(trace.n_experts)]
