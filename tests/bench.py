"""make bench: the figures of the README, interleaved in one run, median with the least and the most.

    python -m tests.bench [--requests 1e7] [--runs 5] [--most 1e8] [--scaling | --evictions]

Requests are the decode rows of a real capture where one lies beside the checkout, else of the shipped sample, repeated.
Machines are shared and noisy: read the ratios, which come from the same minutes.
"""

import argparse
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from sim.core.plan import Choice, Costs, Plan, Prefetch
from sim.fit.buddies import BuddyProfile
from sim.machines import compiled, discrete
from sim.outcome.bounds import bounds
from sim.policies.registry import EVICTION, MISS
from traces.format import npz
from traces.format.trace import RoutingTrace

ROOT = Path(__file__).parent.parent
CAPTURES = ROOT.parent / "shared" / "traces"


def captures() -> dict[str, RoutingTrace]:
    """Mixtral (k = 2) and OLMoE (k = 8) if they are there, else the sample."""
    found = [CAPTURES / name for name in ("mixtral-8x7b.npz", "olmoe-1b-7b.npz")]
    paths = [path for path in found if path.exists()] or [npz.find("mixtral.npz")]
    return {path.stem: npz.read(path) for path in paths}


def repeated(trace: RoutingTrace, requests: float, prefetch: bool = False) -> Plan:
    """Decode rows over and over until there are so many expert requests; half the experts have a slot; fixed costs."""
    rows = np.flatnonzero(~trace.prefill).astype(np.int32)
    per_row = (trace.experts[rows] >= 0).sum() / len(rows)
    steps = max(1, round(requests / per_row))
    row = np.resize(rows, steps)
    layers, experts = trace.n_moe_layers, trace.n_experts
    costs = Costs(
        dense_ns=np.full((1, layers + 1), 10_000),
        head_ns=np.zeros(1, np.int64),
        cost_class=np.zeros(steps, np.int32),
        decide_ns=0,
        group_ns=0,
        expert_ns=np.full(2, 5_000),
        cpu_expert_ns=np.full((2, 2), 50_000),
        transfer_ns=np.array([100_000, 100_000]),
    )
    residents = np.arange(layers)[:, None] * experts + np.arange(experts // 2)
    return Plan(
        experts=trace.experts.astype(np.int16),
        n_experts=experts,
        step_offset=np.arange(steps + 1),
        step_row=row,
        step_prefill=np.zeros(steps, bool),
        costs=costs,
        slots=np.full(layers, experts // 2),
        pooled=False,
        residents=residents.reshape(-1),
        expert_bytes=1,
        eviction=Choice("lru", 0),
        miss=Choice("fetch", 0),
        prefetch=_lookahead(trace, row) if prefetch else None,
    )


def _lookahead(trace: RoutingTrace, row: np.ndarray) -> Prefetch:
    """What gate-lookahead hands over for these rows: the trace's, else (captures have none) its experts with every
    third wrong."""
    if trace.lookahead is not None:
        lists = np.ascontiguousarray(trace.lookahead[:1])
    else:
        wrong = (np.arange(trace.experts.size).reshape(trace.experts.shape) % 3) == 0
        lists = np.where(wrong, (trace.experts + 1) % trace.n_experts, trace.experts)[None].astype(np.int16)
    return Prefetch(lists, row[None], budget=2)


def with_buddies(plan: Plan, trace: RoutingTrace) -> Plan:
    """The full buddy policy (all gates of preset `buddy`); a trace without router weights is given falling ones."""
    policy = MISS["buddy"]
    weights = trace.weights
    if weights is None:
        falling = 0.5 ** np.arange(trace.top_k)
        weights = np.broadcast_to((falling / falling.sum()).astype(np.float16), trace.experts.shape)
    lists = BuddyProfile().fit(replace(trace, weights=weights)).lists_
    tau = np.full(trace.n_moe_layers, 0.95)
    return replace(
        plan, miss=policy.choice({}), weights=weights, tau=tau, peers=lists.peers, peer_q=lists.q, lossy_prefill=False
    )


def requests_of(plan: Plan) -> int:
    return int((plan.experts[plan.step_row] >= 0).sum())


class LibCacheSim:
    """The same requests, layer by layer, to one LRU each: an oracleGeneral file per layer, read by its C++ reader."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        import libcachesim

        self.lib, self.slots, self.paths = libcachesim, int(plan.slots[0]), []
        record = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
        for layer in range(plan.experts.shape[1]):
            ids = plan.experts[plan.step_row, layer].reshape(-1)
            out = np.zeros(int((ids >= 0).sum()), record)
            out["id"], out["size"], out["next"] = ids[ids >= 0], 1, -1
            self.paths.append(folder / f"{layer}.bin")
            out.tofile(self.paths[-1])
        assert struct.calcsize("<IQIq") == record.itemsize

    def __call__(self) -> None:
        for path in self.paths:
            reader = self.lib.TraceReader(trace=str(path), trace_type=self.lib.TraceType.ORACLE_GENERAL_TRACE)
            self.lib.LRU(cache_size=self.slots).process_trace(reader)


def interleaved(jobs: dict[str, tuple[Callable[[], object], int]], runs: int) -> dict[str, np.ndarray]:
    """Requests per second of each job, run after run, all jobs in each round; the first round is not counted."""
    out: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(runs + 1):
        for name, (job, n) in jobs.items():
            start = time.perf_counter()
            job()
            if round_:
                out[name].append(n / (time.perf_counter() - start))
    return {name: np.array(rates) for name, rates in out.items()}


def show(name: str, rates: np.ndarray, base: np.ndarray | None = None) -> None:
    ratio = "" if base is None else f"  {np.median(rates / base):5.2f} x libCacheSim LRU"
    spread = f"({rates.min() / 1e6:.3f} .. {rates.max() / 1e6:.3f})"
    print(f"  {name:<34} {np.median(rates) / 1e6:8.3f} M requests/s  {spread}{ratio}")


def throughput(name: str, trace: RoutingTrace, requests: float, runs: int) -> None:
    plan, ahead = repeated(trace, requests), repeated(trace, requests, prefetch=True)
    buddy = with_buddies(ahead, trace)
    small, n = repeated(trace, min(requests, 40_000)), requests_of(plan)
    with tempfile.TemporaryDirectory() as folder:
        jobs: dict[str, tuple[Callable[[], object], int]] = {
            "compiled, lru + fetch": (lambda: compiled.run(plan), n),
            "compiled, full record": (lambda: compiled.run(plan, full=True), n),
            "compiled, lru + lookahead": (lambda: compiled.run(ahead), n),
            "compiled, lookahead + buddy": (lambda: compiled.run(buddy), n),
            "simpy, lru + fetch": (lambda: discrete.run(small), requests_of(small)),
        }
        try:
            jobs["libCacheSim LRU (hits alone)"] = (LibCacheSim(plan, Path(folder)), n)
        except ImportError:
            print("  libcachesim is not installed: no comparison")
        rates = interleaved(jobs, runs)
    print(f"{name}: {n:,} expert requests, {plan.slots[0]} of {plan.n_experts} slots")
    for job, figures in rates.items():
        show(job, figures, rates.get("libCacheSim LRU (hits alone)"))
    steps = len(plan.step_row)
    print(f"  {'simulated tokens/s, lru + fetch':<34} {np.median(rates['compiled, lru + fetch']) * steps / n:12,.0f}")


CAUSAL = ("fifo", "random", "lfu", "decayed", "lfru", "sieve", "clock", "s3-fifo", "arc", "lru-k", "w-tinylfu")


def evictions(name: str, trace: RoutingTrace, requests: float, runs: int) -> None:
    """How long each takes beside lru, in rounds of all of them."""
    plan = repeated(trace, requests)
    plans = {each: replace(plan, eviction=EVICTION[each].choice({})) for each in ("lru", *CAUSAL)}
    rates = interleaved({each: (partial(compiled.run, one), requests_of(plan)) for each, one in plans.items()}, runs)
    print(f"{name}: {requests_of(plan):,} expert requests, {plan.slots[0]} of {plan.n_experts} slots; times lru's")
    for each in CAUSAL:
        ratio = rates["lru"] / rates[each]
        print(f"  {each:<34} {np.median(ratio):8.2f}  ({ratio.min():.2f} .. {ratio.max():.2f})")


def start_up(runs: int) -> None:
    command = [sys.executable, "-m", "sim.run", "--trace", "mixtral.npz", "--json"]
    took = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        took.append(time.perf_counter() - start)
    spread = f"({min(took[1:]):.2f} .. {max(took[1:]):.2f})"
    print(f"python -m sim.run on the sample: {np.median(took[1:]):.2f} s wall {spread}, first {took[0]:.2f} s")


def scaling(most: float) -> None:
    print("scaling, lru + fetch, each size in a process of its own", flush=True)
    print("    requests    run s  bounds s  run M/s  peak MB  of which the trace", flush=True)
    for power in range(4, round(np.log10(most)) + 1):
        command = [sys.executable, "-m", "tests.bench", "--one-size", str(10**power)]
        subprocess.run(command, cwd=ROOT, check=True)


def one_size(requests: float) -> None:
    """The run and the bounds of one size, and the peak memory of this process. The trace is as long as the run."""
    trace = next(iter(captures().values()))
    for plan in (repeated(trace, 1e4), whole(repeated(trace, requests))):  # the first loads what is compiled
        start = time.perf_counter()
        compiled.run(plan)
        ran = time.perf_counter()
        bounds(plan)
        took, bound, peak = ran - start, time.perf_counter() - ran, peak_bytes() / 1e6
    n, size = requests_of(plan), plan.experts.nbytes / 1e6
    print(f"{n:12,} {took:8.3f}  {bound:8.3f}  {n / took / 1e6:7.1f}  {peak:7,.0f}  {size:18,.1f}")


def whole(plan: Plan) -> Plan:
    """The same run of a trace that holds every row in its place, instead of some rows over and over."""
    row = np.arange(len(plan.step_row), dtype=np.int32)
    return replace(plan, experts=plan.experts[plan.step_row], step_row=row)


def peak_bytes() -> int:
    """The most memory that this program has had, from Linux: ru_maxrss begins with that of the process it is from."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--requests", type=float, default=1e7)
    flags.add_argument("--runs", type=int, default=5)
    flags.add_argument("--most", type=float, default=1e8, help="largest size of the scaling")
    flags.add_argument("--scaling", action="store_true", help="the scaling alone: times and peak memory by size")
    flags.add_argument("--evictions", action="store_true", help="the evictions alone: time beside lru")
    flags.add_argument("--one-size", type=float, help=argparse.SUPPRESS)  # what the scaling starts
    args = flags.parse_args()
    if args.one_size:
        one_size(args.one_size)
        return
    if args.evictions:
        for name, trace in captures().items():
            evictions(name, trace, args.requests, args.runs)
        return
    if not args.scaling:
        for name, trace in captures().items():
            throughput(name, trace, args.requests, args.runs)
        start_up(args.runs)
    scaling(args.most)


if __name__ == "__main__":
    main()
