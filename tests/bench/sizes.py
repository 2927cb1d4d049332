"""Time and memory by size: each size in a process of its own; and how long one request takes as one thing grows."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sim.machines import compiled
from sim.machines.clock import begin_run
from sim.outcome.bounds import bounds
from tests.bench.figures import Ask, Figure, caches, cpu_s, ratio, rounds
from tests.bench.plans import ROOT, Shape, captures, repeated, requests_of, whole
from traces.format import npz

AXES: dict[str, tuple[float, ...]] = {
    "requests": (1e4, 1e5, 1e6, 1e7, 1e8),
    "experts": (8, 16, 32, 64, 128, 256, 512),
    "layers": (4, 8, 16, 32, 64, 128),
    "batch": (1, 4, 16, 64, 256),
    "slots": (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0),
}

WHY = {  # where time is not proportional: found by varying two at once (512 experts in 2 layers take what 64 in 16 do)
    "requests": "flat, but for the fixed part of a run (half a millisecond of arrays), which few requests share",
    "experts": "flat while the state lies in the core's L2; from some MB on what a visit asks for comes from L3",
    "layers": "flat while the state lies in L2, as by experts: it grows with both",
    "batch": "an expert that several rows of a step want is decided and executed once: time goes by distinct experts",
    "slots": "by the share that misses: a miss (victim, transfer, landing) takes about three times as long as a hit",
}


def scaling(ask: Ask) -> Iterator[Figure]:
    """lru + fetch and its bounds, 10^4 requests and up, on the first trace written out as long as the run."""
    name = next(iter(ask.traces))
    for power in range(4, round(np.log10(ask.most)) + 1):
        found, about = alone(name, 10**power, 1), f"scaling/{name}/10^{power} requests"
        yield Figure(f"{about}: run", "s", tuple(found["run_s"]), note=f"{found['visits']:,} visits")
        yield Figure(f"{about}: bounds", "s", tuple(found["bounds_s"]))
        beside = f"{found['trace_mb']:,.1f} of them the trace, {found['empty_mb']:,.0f} before it"
        yield Figure(f"{about}: peak memory", "MB", (found["peak_mb"],), note=beside)
        yield Figure(f"{about}: bounds' arrays", "MB", (found["bounds_mb"],), "<= 200 MB")


def bounded(ask: Ask) -> Iterator[Figure]:
    """Time of the bounds over the run's, and what they hold meanwhile, in a process of its own for each trace."""
    for name in ask.traces:
        found = alone(name, ask.requests, ask.runs)
        values = ratio(found["bounds_s"], found["run_s"])
        yield Figure(f"bounds/{name}/bounds over the run", "x the run", values, "<= 1", f"{found['visits']:,} visits")
        each = found["bounds_mb"] * 1e6 / found["visits"]
        yield Figure(f"bounds/{name}/bounds' arrays", "bytes/visit", (each,), "<= 8")
        yield Figure(f"bounds/{name}/bounds' arrays, all", "MB", (found["bounds_mb"],), "<= 200 MB")


def alone(name: str, requests: float, runs: int) -> dict[str, Any]:
    """What `measured` finds in a process of its own; name: of a capture, or a sample."""
    command = [sys.executable, "-m", "tests.bench.sizes", name, repr(float(requests)), str(runs)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(name: str, requests: float, runs: int) -> dict[str, Any]:
    """CPU seconds of the run and of its bounds, this process's peak memory, and that of the bounds' arrays alone."""
    trace = captures().get(name) or npz.read(npz.find(f"{name}.npz"))
    small = repeated(trace, 1e4)
    compiled.run(small), bounds(small)  # what is compiled is loaded
    empty = peak_bytes()
    plan = whole(repeated(trace, requests))
    took = {"run_s": partial(compiled.run, plan), "bounds_s": partial(bounds, plan)}
    found = rounds(took, runs) if runs > 1 else {each: (cpu_s(job),) for each, job in took.items()}
    peak = peak_bytes()
    tracemalloc.start()
    bounds(plan)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sizes = {"peak_mb": peak, "empty_mb": empty, "bounds_mb": held, "trace_mb": plan.experts.nbytes}
    visits = len(plan.step_prefill) * plan.experts.shape[1]
    return found | {each: size / 1e6 for each, size in sizes.items()} | {"visits": visits}


def peak_bytes() -> int:
    """The most memory that this program has had, from Linux: ru_maxrss begins with that of the process it is from."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def growth(ask: Ask) -> Iterator[Figure]:
    """ns of one request of lru + fetch, routing drawn, as one thing grows and the others stay: 10^6 requests, 64
    experts, 16 layers, top-4, one row a step, slots for half the experts."""
    for axis, values in AXES.items():
        most = ask.most if axis == "requests" else max(values)
        shapes = {value: Shape.varied(axis, value if axis == "slots" else round(value)) for value in values}
        plans = {value: shape.plan() for value, shape in shapes.items() if value <= most}
        print(f"  {axis}: {WHY[axis]}")
        took = rounds({f"{value:g}": partial(compiled.run, plan) for value, plan in plans.items()}, ask.runs)
        for value, plan in plans.items():
            n = requests_of(plan)
            each = tuple(s / n * 1e9 for s in took[f"{value:g}"])
            yield Figure(f"growth/{axis}/{axis} {value:g}", "ns/request", each, note=_about(plan, n))


def _about(plan: Any, n: int) -> str:
    """What the time of one request hangs on: how many miss, how many share an execution, where what is asked lies."""
    record = compiled.run(plan)
    there = {name: int(record.layer[name].sum()) for name in ("hits", "misses")}
    distinct = sum(there.values())
    state = sum(array.nbytes for array in begin_run(plan, False)[0].arrays.values())
    fits = next((level for level, size in caches().items() if state <= size), "memory")
    share = f"{distinct / n:.2f} distinct a request, {there['misses'] / max(distinct, 1):.0%} of them miss"
    return f"{share}; state {state / 1e3:,.0f} kB ({fits}), trace rows {plan.experts.nbytes / 1e3:,.0f} kB"


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))))
