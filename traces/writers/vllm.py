"""vLLM's routed experts, layout of 0.33: all layers, zeros for the dense ones, uint8 or uint16 (see the reader)."""

import json
from pathlib import Path
from typing import IO

import numpy as np

from traces.command import replace
from traces.errors import TraceError
from traces.foreign.formats.vllm import (
    CHOICES,
    COMPLETION_TOKENS,
    EXPERTS,
    IDS,
    PROMPT_IDS,
    PROMPT_TOKENS,
    USAGE,
    dtype_for,
    spelled,
)
from traces.foreign.spill import Array
from traces.format.check import chunks
from traces.format.trace import RoutingTrace


def write(source: RoutingTrace, out: Path) -> str:
    """`.npy`: the array of the one request; `.jsonl`: a chat completion per request. Returns what was written.

    vLLM has no row for the last sampled token, so a request is said to have one token more than it has rows.
    """
    starts, _ = source.requests()
    if out.suffix == ".npy":
        if len(starts) > 1:
            raise TraceError(f"{out}: a .npy holds one request; the trace has {len(starts)}: a .jsonl holds them all")
        replace(out, lambda file: _npy(source, file))
    elif out.suffix == ".jsonl":
        replace(out, lambda file: _responses(source, file))
    else:
        raise TraceError(f"{out}: routed experts of one request are a .npy, responses of several a .jsonl")
    return f"{source.n_tokens:,} rows of {len(starts):,} requests, {source.n_layers} layers x top-{source.top_k}"


def _rows(trace: RoutingTrace, lo: int, hi: int) -> Array:
    """[n, layers, K] of some rows. Raises TraceError for a slot without an expert, which the layout cannot say."""
    ids = np.asarray(trace.experts[lo:hi])
    if (ids < 0).any():
        row = lo + int(np.argwhere(ids < 0)[0][0])
        raise TraceError(f"experts[{row}] has a slot without an expert (-1), which vLLM's layout cannot say")
    out = np.zeros((len(ids), trace.n_layers, trace.top_k), dtype_for(trace.n_experts))
    out[:, trace.meta["moe_layers"]] = ids
    return out


def _npy(trace: RoutingTrace, file: IO[bytes]) -> None:
    dtype, shape = dtype_for(trace.n_experts), (trace.n_tokens, trace.n_layers, trace.top_k)
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)
    for lo, part in chunks(trace.experts):
        file.write(_rows(trace, lo, lo + len(part)).tobytes())


def _responses(trace: RoutingTrace, file: IO[bytes]) -> None:
    starts, ends = trace.requests()
    for lo, hi in zip(starts.tolist(), ends.tolist(), strict=True):
        prompt = int(trace.prefill[lo:hi].sum())
        first = int(trace.position[lo])
        choice = {"index": 0, EXPERTS: spelled(_rows(trace, lo, hi))}
        usage = {PROMPT_TOKENS: first + prompt, COMPLETION_TOKENS: hi - lo - prompt + 1}
        response = {"object": "chat.completion", "model": trace.model, CHOICES: [choice], USAGE: usage}
        if trace.token_ids is not None and first == 0:
            response[PROMPT_IDS] = trace.token_ids[lo : lo + prompt].tolist()
            choice[IDS] = [*trace.token_ids[lo + prompt : hi].tolist(), 0]  # the last one has no row
        file.write(json.dumps(response).encode() + b"\n")
