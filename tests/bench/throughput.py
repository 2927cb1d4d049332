"""Expert requests per second, beside libCacheSim and Python on the same requests; and what the full record costs."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from sim.core.plan import Plan
from sim.machines import compiled, discrete
from tests.bench import peers
from tests.bench.figures import Ask, Figure, Job, beside, ratio, rounds
from tests.bench.plans import first_steps, repeated, requests_of, with_buddies
from traces.format.trace import RoutingTrace

OURS = "compiled, lru + fetch"
SLOW = 40_000  # requests of the simpy machine
BEST, DEFAULT = "libCacheSim LRU, best table", "libCacheSim LRU, default table"
PYTHON = "OrderedDict LRU in Python"


def throughput(ask: Ask) -> Iterator[Figure]:
    """M requests/s of all machines and peers, and how we compare: the compiled run keeps time, the peers count hits."""
    for name, trace in ask.traces.items():
        plan = repeated(trace, ask.requests)
        with tempfile.TemporaryDirectory() as folder:
            yield from _of(f"throughput/{name}", trace, plan, ask.runs, Path(folder))


def _of(name: str, trace: RoutingTrace, plan: Plan, runs: int, folder: Path) -> Iterator[Figure]:
    jobs, notes = _ours(trace, plan), {}
    touched = peers.touches(plan)
    slots, lists = int(plan.slots[0]), [ids.tolist() for ids in touched]
    hits = {"ours": peers.our_hits(plan), PYTHON: peers.in_python(slots)(lists)}
    jobs[PYTHON] = (partial(peers.in_python(slots), lists), sum(map(len, lists)))
    try:
        theirs = peers.LibCacheSim(touched, slots, folder)
    except ImportError:
        notes[PYTHON] = "libcachesim is not installed: it is left out"
    else:
        power, took = theirs.best()
        hits |= {each: theirs.hits(power) for each, power in ((BEST, power), (DEFAULT, peers.DEFAULT))}
        jobs |= {BEST: (partial(theirs.hits, power), sum(map(len, lists)))}
        jobs |= {DEFAULT: (partial(theirs.hits, peers.DEFAULT), sum(map(len, lists)))}
        searched = ", ".join(f"2^{each}: {s:.3g} s" for each, s in took.items())
        notes[BEST] = f"hashpower {power} of {searched}"
    notes[OURS] = f"{requests_of(plan):,} requests, {slots} of {plan.n_experts} slots, {peers.agreed(hits):,} hits each"
    yield from _rates(name, jobs, notes, runs)


def _ours(trace: RoutingTrace, plan: Plan) -> dict[str, tuple[Job, int]]:
    """Jobs, with the requests of each."""
    n = requests_of(plan)
    ahead, small = repeated(trace, n, prefetch=True), repeated(trace, min(n, SLOW))
    return {
        OURS: (partial(compiled.run, plan), n),
        "compiled, full record": (partial(compiled.run, plan, True), n),
        "compiled, lru + gate-lookahead": (partial(compiled.run, ahead), n),
        "compiled, gate-lookahead + buddy": (partial(compiled.run, with_buddies(ahead, trace)), n),
        "simpy, lru + fetch": (partial(discrete.run, small), requests_of(small)),
    }


def _rates(name: str, jobs: dict[str, tuple[Job, int]], notes: dict[str, str], runs: int) -> Iterator[Figure]:
    took = rounds({each: job for each, (job, _) in jobs.items()}, runs)
    rates = {each: tuple(n / max(s, 1e-9) / 1e6 for s in took[each]) for each, (_, n) in jobs.items()}
    for each, found in rates.items():
        yield Figure(f"{name}/{each}", "M requests/s", found, note=notes.get(each, ""))
    asked = {BEST: ">= 1.2, time included", DEFAULT: "", PYTHON: ""}
    for each in (each for each in asked if each in rates):
        yield Figure(f"{name}/ours over {each}", "x", ratio(rates[OURS], rates[each]), asked[each])


def full(ask: Ask) -> Iterator[Figure]:
    """Time of a run with the full record over the same run's without."""
    for name, trace in ask.traces.items():
        plain = repeated(trace, ask.requests)
        ahead = repeated(trace, ask.requests, prefetch=True)
        for what, plan in {"lru + fetch": plain, "gate-lookahead + buddy": with_buddies(ahead, trace)}.items():
            base, job = partial(compiled.run, plan), partial(compiled.run, plan, True)
            yield Figure(f"full/{name}/{what}", "x the summary", beside(base, {what: job}, ask.runs)[what], "<= 2")
            yield Figure(f"full/{name}/{what}, bytes", "bytes/request", (_bytes(plan) / requests_of(plan),))


def _bytes(plan: Plan) -> int:
    """Of the columns of the full record, found on a short run of the same kind."""
    short = first_steps(plan, 1000)
    groups = compiled.run(short, full=True).groups
    held = sum(np.asarray(column).nbytes for group in groups.values() for column in group.values())
    return round(held / requests_of(short) * requests_of(plan))
