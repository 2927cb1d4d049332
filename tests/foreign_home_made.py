"""Logs of home-made kinds, made from a trace by the layouts that are public, in the manner of tests.foreign."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from traces.format.trace import RoutingTrace

Flags = list[str]


def shape(trace: RoutingTrace) -> Flags:
    """As tests.foreign.shape_flags, which imports this module's builders."""
    layers = ",".join(map(str, trace.meta["moe_layers"]))
    flags = ["--model", "test-model", "--n-experts", str(trace.n_experts), "--top-k", str(trace.top_k)]
    return [*flags, "--n-layers", str(trace.n_layers), "--moe-layers", layers]


def rows_of(trace: RoutingTrace) -> list[slice]:
    starts, ends = trace.requests()
    return [slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]


def counts(trace: RoutingTrace) -> np.ndarray:
    out = np.zeros((trace.n_moe_layers, trace.n_experts), np.int64)
    for layer in range(trace.n_moe_layers):
        for expert in trace.experts[:, layer].reshape(-1).tolist():
            out[layer, expert] += expert >= 0
    return out


def lists_csv(path: Path, trace: RoutingTrace) -> Flags:
    """A cell with all experts of a token in a layer, names as loggers have them."""
    lines = ["Layer ID,req_id,token_pos,stage,Activated Expert IDs"]
    for t in range(trace.n_tokens):
        for i, layer in enumerate(trace.meta["moe_layers"]):
            stage = "prefill" if trace.prefill[t] else "decode"
            lines.append(f'{layer},{trace.sequence[t]},{trace.position[t]},{stage},"{trace.experts[t, i].tolist()}"')
    path.write_text("# by a logger\n" + "\n".join(lines) + "\n")
    return shape(trace)


def routes_jsonl(path: Path, trace: RoutingTrace) -> Flags:
    """As vLLM loggers write it: a meta line, then routes."""
    with path.open("w") as file:
        meta = {"type": "meta", "model_id": "x/y", "top_k": trace.top_k, "layers_logged": trace.meta["moe_layers"]}
        file.write(json.dumps(meta) + "\n")
        for t in range(trace.n_tokens):
            for i, layer in enumerate(trace.meta["moe_layers"]):
                line: dict[str, Any] = {"type": "route", "req_id": f"r{trace.sequence[t]}", "layer": layer}
                line |= {"token_idx": int(trace.position[t]), "topk_ids": trace.experts[t, i].tolist()}
                file.write(json.dumps(line | {"is_prefill": bool(trace.prefill[t])}) + "\n")
    return shape(trace)


def arrays(path: Path, trace: RoutingTrace) -> Flags:
    more = {"positions": trace.position, "seq_id": trace.sequence, "is_prefill": trace.prefill}
    more |= {} if trace.weights is None else {"topk_weights": trace.weights}
    more |= {} if trace.token_ids is None else {"token_ids": trace.token_ids}
    more["position"] = more.pop("positions")
    np.savez(path, topk_ids=trace.experts, **more)
    return [*shape(trace), "--columns", "layer=1"]


def nested(path: Path, trace: RoutingTrace) -> Flags:
    """Keys in alphabetical order: what was generated, its prompt's length, then the prompt, and facts after them."""
    prompts, first = {}, int(trace.position[0])
    for number, rows in enumerate(rows_of(trace)):
        prompt, experts = trace.prefill[rows], trace.experts[rows]
        lists = {"prefill": experts[prompt].tolist(), "decode": experts[~prompt].tolist()}
        prompts[f"p{number}"] = lists | {"prompt_len": first + int(prompt.sum()), "text": "some [words] {here}"}
    facts = {"model": "x", "num_experts": trace.n_experts, "num_layers": trace.n_layers, "top_k": trace.top_k}
    path.write_text(json.dumps(facts | {"prompts": prompts}, sort_keys=True))
    return [*shape(trace), "--prompt-start", str(first)]


def cache_lab(path: Path, trace: RoutingTrace, version: int = 2) -> Flags:
    head: dict[str, Any] = {"record_type": "metadata", "format": "moe-cache-lab.routing-jsonl", "model_id": "x"}
    head["format_version"] = version
    facts = {"num_experts": trace.n_experts}
    if version == 1:
        head |= facts | {"experts_per_token": trace.top_k}
    else:
        stage = {"routing_stage": "decoder", "assigned_experts_per_token": trace.top_k, "allows_unassigned": False}
        head["routing_stages"] = [stage | facts]
    lines = [head]
    prompt = int(trace.prefill.sum())
    places = [(t, i) for i in range(trace.n_moe_layers) for t in range(prompt)]
    places += [(t, i) for t in range(prompt, trace.n_tokens) for i in range(trace.n_moe_layers)]
    for t, i in places:
        word = "prompt" if trace.prefill[t] else "generated"
        event: dict[str, Any] = {"record_type": "routing_selection", "phase": word}
        event |= {"token_position": int(trace.position[t]), "layer": trace.meta["moe_layers"][i]}
        event |= {"selected_experts": trace.experts[t, i].tolist(), "selected_probabilities": []}
        event |= {} if version == 1 else {"routing_stage": "decoder", "assignment_state": "assigned"}
        event["phase"] = word if version == 1 else f"decoder_{word}"
        lines.append(event)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return shape(trace)


def moearc(path: Path, trace: RoutingTrace) -> Flags:
    text = ""
    for phase, steps in (("prefill", np.flatnonzero(trace.prefill)), ("decode", np.flatnonzero(~trace.prefill))):
        head = {"format": "moearc-trace-v1", "phase": phase, "n_layer": trace.n_layers, "n_expert": trace.n_experts}
        head |= {"n_layers_routed": trace.n_moe_layers, "n_expert_used": trace.top_k}
        text += json.dumps(head | {f"n_{phase}_steps": len(steps)}) + "\n"
        for step, t in enumerate(steps.tolist()):
            layers = enumerate(trace.meta["moe_layers"])
            flat = [x for i, layer in layers for e in trace.experts[t, i].tolist() for x in (layer, e)]
            line = {"step": step, "phase": phase, "pos": int(trace.position[t]), "e": flat}
            text += json.dumps(line) + "\n"
    path.write_text(text)
    return shape(trace)


def counts_csv(path: Path, trace: RoutingTrace) -> Flags:
    found = counts(trace)
    lines = ["# by a tool", "layer,expert,count"]
    for i, layer in enumerate(trace.meta["moe_layers"]):
        lines += [f"{layer},{expert},{n}" for expert, n in enumerate(found[i].tolist()) if n]
    path.write_text("\n".join([*lines, f"# total,{found.sum()}"]) + "\n")
    return shape(trace)


def counts_wide(path: Path, trace: RoutingTrace) -> Flags:
    lines = ["layer_id," + ",".join(f"expert_{e}" for e in range(trace.n_experts))]
    rows = zip(trace.meta["moe_layers"], counts(trace).tolist(), strict=True)
    path.write_text("\n".join([*lines, *(",".join(map(str, [layer, *row])) for layer, row in rows)]) + "\n")
    return shape(trace)


def counts_json(path: Path, trace: RoutingTrace) -> Flags:
    rows = zip(trace.meta["moe_layers"], counts(trace).tolist(), strict=True)
    path.write_text(json.dumps({layer: {e: n for e, n in enumerate(row) if n} for layer, row in rows}))
    return shape(trace)


def counts_json_lists(path: Path, trace: RoutingTrace) -> Flags:
    rows = zip(trace.meta["moe_layers"], counts(trace).tolist(), strict=True)
    path.write_text(json.dumps({"model": "x", "counts": {f"layer_{layer}": row for layer, row in rows}}, indent=1))
    return shape(trace)


# format, file, builder, whether it holds one request only
PER_TOKEN = {
    "csv-lists": ("csv", "lists.csv", lists_csv, False),
    "jsonl-routes": ("jsonl", "routes.jsonl", routes_jsonl, False),
    "npz": ("npz", "arrays.npz", arrays, False),
    "nested-json": ("nested-json", "nested.json", nested, True),
    "moe-cache-lab": ("moe-cache-lab", "routing.jsonl", cache_lab, True),
    "moearc": ("moearc", "capture.ndjson", moearc, True),
}
COUNTED = {
    "counts-csv": ("counts-csv", "counts.csv", counts_csv),
    "counts-wide": ("counts-csv", "wide.csv", counts_wide),
    "counts-json": ("counts-json", "counts.json", counts_json),
    "counts-json-lists": ("counts-json", "lists.json", counts_json_lists),
}
WRITTEN: dict[str, dict[str, str | None]] = {
    "counts-csv": {"counts.csv": "counts-csv"},
    "moe-cache-lab": {"routing.jsonl": "moe-cache-lab"},
}
