"""Runs for tests of analysis: made by hand from a few step times, or simulated small and written to folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.reading.run import Run
from sim import __version__, run
from sim.machines.record import CLOCK, COUNTERS, LAYER, QUALITY, RunRecord
from sim.outcome.marks import marks_without
from sim.outcome.summary import summarise
from tests.gen import random_trace
from traces.format import npz

FIXED = """[fixed]
dense_ns = 10
expert_ns = 5
transfer_ns = 100
decide_ns = 1
cpu_expert_ns = 7
"""
SPEC: dict[str, Any] = {
    "trace": "t.npz", "hardware": "h.toml", "engine": "ideal", "precision": "bf16", "cache": 0.5,
    "cache_scope": "layer", "eviction": "lru", "prefetch": "none", "miss": "fetch", "rerank": "none",
    "batch": 1, "seed": 0, "set": {},
}  # fmt: skip
TRACE: dict[str, Any] = {
    "hash": "a" * 64, "model": "m", "real": True, "tokens": 9, "moe_layers": 2, "n_experts": 4, "top_k": 1,
    "source": None,
}  # fmt: skip


def record(decode_ns: Sequence[Sequence[int]], prefill_ns: Sequence[int] | None = None, warmup: int = 0) -> RunRecord:
    """Requests one after another, batch 1: each a prefill step (where prefill_ns says how long), then its decode steps.

    Counters, layers and groups are zero or empty; all of the time is counted as stall.
    """
    begin, end, prefill, rows = [], [], [], []
    now = decoded = 0
    for i, steps in enumerate(decode_ns):
        prompt = -1
        admitted, row_first = len(end), decoded
        first_ns = -1
        for kind, spent in [(1, x) for x in (prefill_ns or [])[i : i + 1]] + [(0, x) for x in steps]:
            begin.append(now)
            now += spent
            end.append(now)
            prefill.append(kind)
            prompt = len(end) - 1 if kind else prompt
            first_ns = now if first_ns < 0 else first_ns
        decoded += len(steps)
        tokens = len(steps) + (prompt >= 0)
        rows.append((i, begin[admitted], first_ns, now, tokens, admitted, prompt, row_first, len(steps)))
    names = ("request", "admitted_ns", "first_ns", "last_ns", "tokens", "admitted_step", "last_prefill_step")
    columns = (*names, "first_decode", "generated")
    counters: dict[str, Any] = dict.fromkeys([*COUNTERS, *CLOCK], 0)
    counters |= dict.fromkeys(QUALITY, 0.0)
    counters["stall_ns"] = now - begin[warmup]
    layer = {name: np.zeros(2, np.int64) for name in LAYER}
    layer["stall_demand_ns"][0] = counters["stall_ns"]
    return RunRecord(
        steps={
            "prefill": np.array(prefill),
            "begin_ns": np.array(begin),
            "end_ns": np.array(end),
            "rows": np.ones(len(end), np.int64),
        },
        requests=dict(zip(columns, np.array(rows, np.int64).T, strict=True)),
        counters=counters,
        layer=layer,
        groups={},
        warmup_steps=warmup,
        expert_bytes=3,
    )


def summary(of: RunRecord | None = None, **changes: Any) -> dict[str, Any]:
    """A summary as sim.run writes it, from a record; `changes` replace keys, those of spec, trace and quality one by
    one."""
    out = summarise(of if of is not None else record([[100, 100]]))
    out |= {"memory": {"slots": 12, "fits": True}, "start": {"residents": 0, "bytes": 0, "load_ns": 0}}
    out |= {"slots": {"total": 4, "scopes": 2, "least": 2, "most": 2, "low": 0}}
    out |= {"bounds": {}, "verdict": "-", "notes": [], "machine": "compiled"}
    out |= {"spec": dict(SPEC), "trace": dict(TRACE), "version": __version__}
    out["quality"] = {"substituted_weight": 0.0, "dropped_weight": 0.0}
    for key, value in changes.items():
        out[key] = out[key] | value if key in ("spec", "trace", "quality", "bounds") else value
    return {"marks": marks_without(out)} | out


def made(name: str, of: RunRecord | None = None, **changes: Any) -> Run:
    return Run(name, name, summary(of, **changes), of)


def written(folder: Path, value: dict[str, Any]) -> Path:
    """A folder with the summary alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(value))
    return folder


ARGUMENTS = {
    "lru": ["--record", "full"],
    "fifo": ["--eviction", "fifo", "--record", "full"],
    "drop": ["--miss", "drop"],
    "belady": ["--eviction", "belady"],
    "wide": ["--cache", "6"],
}


def simulated(folder: Path, *names: str, **more: list[str]) -> dict[str, Path]:
    """Small real runs, by name (default: all of ARGUMENTS) and more: a random trace of 12 requests, fixed durations."""
    trace = random_trace(np.random.default_rng(5), 240, 4, 8, 2, requests=12, prompt=0.3, lookahead=3)
    npz.write(folder / "t.npz", trace)
    (folder / "h.toml").write_text(FIXED)
    out = {}
    for name, arguments in ({name: ARGUMENTS[name] for name in names or ARGUMENTS} | more).items():
        out[name] = folder / name
        given = ["--trace", folder / "t.npz", "--hardware", folder / "h.toml", "--cache", 4, *arguments]
        assert run.main([*map(str, given), "--out", str(out[name])]) == 0
    return out
