"""What calibration and validation run: links, cases, and the traces they are run on.

A *case* is one run specification on one link (records and tables of a validation say *arm*). Cases
that calibrate run on other requests than cases that are judged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.measuring.durations import TimedRun
from sim import catalog
from sim.policies.registry import find
from sim.prepare import Setting, prepare
from sim.spec import RunSpec, slots_of
from traces.format import npz
from traces.format.layout import Array
from traces.format.trace import RoutingTrace, split
from traces.synthetic import Preset, generate

BATCHES = (1, 4)
# tokens of a chained request: what is judged lies inside of what was calibrated, by rows of a prefill step (512 and 256
# between 512 and 64, in chunks of 512) and by context
JUDGED_PROMPT, CALIBRATING_PROMPT, GENERATED = 1280, 1600, 8


@dataclass(frozen=True)
class BenchLink:
    """One link. gbps None: the device's own; else a CPU's paced one. regime: where its cases should fall."""

    name: str
    gbps: float | None = None
    latency_us: float = 0.0
    regime: str | None = None

    def pace(self, bench: Any) -> None:
        """Have a bench (runtime.measuring.bench) keep the pace, where there is one."""
        if self.gbps is not None:
            bench.pace(self.gbps, self.latency_us)


@dataclass(frozen=True, eq=False)
class Case:
    """fields: of RunSpec, without trace and hardware, before those that all cases have; policy: what it is called by in
    tables; chained: runs one long request, chained of the others (see `chain`)."""

    link: BenchLink
    policy: str
    fields: dict[str, Any]
    calibrates: bool = False
    chained: bool = False

    @property
    def name(self) -> str:
        """One line for tables, unlike any other case's of the run."""
        kind = "calibrating " if self.calibrates else ""
        named = f"{self.link.name}: {kind}{self.policy}, cache {self.fields['cache']}, batch {self.fields['batch']}"
        return named + (", chained prompt" if self.chained else "")


def replaying(bench: Any, settings: Mapping[Case, Setting]) -> Callable[[Case], TimedRun]:
    """How a case is replayed: its link at its pace."""

    def replay(case: Case) -> TimedRun:
        case.link.pace(bench)
        return TimedRun(settings[case], bench.replay(settings[case]))

    return replay


def policy_fields(policy: str) -> dict[str, Any]:
    """What `EVICTION`, `EVICTION+PREFETCH` or `EVICTION+cpu` chooses. Raises SpecError for an unknown part."""
    eviction, _, other = policy.partition("+")
    find("eviction", eviction)
    out: dict[str, Any] = {"eviction": eviction}
    if other == "cpu":
        return out | {"miss": "cpu"}
    if other and other != "none":
        find("prefetch", other)
        out |= {"prefetch": other, "prefetch_budget": 2}
    return out


def grid(link: BenchLink, policies: Sequence[str], caches: Sequence[int | float], batches: Sequence[int]) -> list[Case]:
    """Every policy at every capacity and batch on one link."""
    return [
        Case(link, policy, {**policy_fields(policy), "cache": cache, "batch": batch})
        for batch in batches
        for cache in caches
        for policy in policies
    ]


def long_prompts(link: BenchLink, caches: Sequence[int | float], calibrates: bool = False) -> list[Case]:
    """At each capacity, with lru, one chained request: its prompt in prefill steps, whatever others do with theirs,
    then decode steps at long contexts; all of its steps."""
    own = {"as_decode": False, "max_steps": None}
    return [Case(link, a.policy, {**a.fields, **own}, calibrates, True) for a in grid(link, ["lru"], caches, [1])]


def apart(judged: Sequence[int | float], experts: int) -> tuple[int, int]:
    """Two capacities to calibrate at, in slots of a layer of so many experts, smaller first: nearest to the middle of
    the two smallest judged ones and of the two largest. Both are below `experts`, where nothing would cross the link;
    they differ where there are two such, and are judged only where too few others are free."""
    taken = sorted({slots_of(cache, experts) for cache in judged})
    few, many = sum(taken[:2]) / len(taken[:2]), sum(taken[-2:]) / len(taken[-2:])
    counts = list(range(1, max(2, experts)))
    first = min(counts, key=lambda c: (c in taken, abs(c - few), c))
    second = min(counts, key=lambda c: (c == first, c in taken, abs(c - many), -c))
    return min(first, second), max(first, second)


def calibrating(
    link: BenchLink, caches: Sequence[int | float], batches: Sequence[int], host: bool = False
) -> list[Case]:
    """Cases that a calibration is fitted on: at each batch the smallest capacity with lru, and the largest with
    prefetches of an oracle with errors, which every trace can have; one with experts on the host where asked for."""
    small, large = min(caches), max(caches)
    cases = []
    for batch in batches:
        cases += grid(link, ["lru"], [small], [batch]) + grid(link, ["lru+noisy-oracle"], [large], [batch])
    cases += grid(link, ["lru+cpu"], [small], batches[:1]) if host else []
    return [Case(a.link, a.policy, a.fields, True) for a in cases]


@dataclass(frozen=True)
class Traces:
    """The file that is judged, with the share of its requests that calibrates, and a file of those requests alone.
    chained: of the judged requests chained to one, and of those that calibrate; only where a case runs them."""

    judged: str
    fraction: float
    calibration: str
    chained: tuple[str, str] = ("", "")

    @staticmethod
    def of(trace: str, fraction: float, seed: int, folder: Path, batch: int) -> "Traces":
        """Cut the calibration's requests into a file in `folder`, enough of them to run `batch` together, and chain
        both parts into files there. Raises TraceError for a trace of one request."""
        aside, judged = split(npz.read(npz.find(trace)), fraction, seed)
        named = {
            "calibration.npz": enough_requests(aside, batch),
            "chained.npz": chain(judged, JUDGED_PROMPT, GENERATED),
            "chained-calibration.npz": chain(aside, CALIBRATING_PROMPT, GENERATED),
        }
        for name, part in named.items():
            npz.write(folder / name, part)
        calibration, *chained = (str(folder / name) for name in named)
        return Traces(trace, fraction, calibration, (chained[0], chained[1]))

    def setting(self, case: Case, common: dict[str, Any], hardware: str) -> Setting:
        """The case's setting on its requests, with the durations of a piece of hardware."""
        own: dict[str, Any] = {"trace": self.judged, "calibration": self.fraction}
        if case.chained or case.calibrates:
            own = {"trace": self.chained[case.calibrates] if case.chained else self.calibration}
        return prepare(RunSpec.of({**common, **case.fields, "hardware": hardware, **own}))


def enough_requests(trace: RoutingTrace, batch: int) -> RoutingTrace:
    """The trace with at least `batch` requests: where there are fewer, all again, each time begun at another token (and
    wrapped round), so that those that run together do not route alike."""
    first, end = trace.requests()
    times = -(-batch // len(first))
    if times == 1:
        return trace
    index, sequence = [], []
    for again in range(times):
        for number, (a, b) in enumerate(zip(first.tolist(), end.tolist(), strict=True)):
            index.append(np.roll(np.arange(a, b), -(again * (b - a) // times)))
            sequence.append(np.full(b - a, again * len(first) + number, np.int32))
    position, prefill = np.tile(trace.position, times), np.tile(trace.prefill, times)
    return _of_rows(trace, np.concatenate(index), position, prefill, np.concatenate(sequence))


def chain(trace: RoutingTrace, prompt: int, generated: int) -> RoutingTrace:
    """One request of so many tokens: what the rows of the trace routed, one after another and again from the first
    where they end, at positions that run on. Recordings are short, and what a long prompt costs is no matter of words.
    """
    n = prompt + generated
    at = np.arange(n, dtype=np.int32)
    return _of_rows(trace, at % trace.n_tokens, at, at < prompt, np.zeros(n, np.int32))


def _of_rows(trace: RoutingTrace, rows: Array, position: Array, prefill: Array, sequence: Array) -> RoutingTrace:
    """What those rows routed, as rows of other requests."""
    arrays = {name: a[:, rows] if name == "lookahead" else a[rows] for name, a in trace.arrays().items()}
    own = {"position": position, "prefill": prefill, "sequence": sequence}
    return RoutingTrace(meta=trace.meta, **{**arrays, **own})


def synthetic(model: str, seed: int) -> RoutingTrace:
    """A trace in the shape of a catalog model, to calibrate on without a capture. Raises CatalogError."""
    m = catalog.model(model)
    preset = Preset(
        model=m.name,
        n_experts=m.n_experts,
        top_k=m.top_k,
        n_layers=m.n_layers,
        moe_layers=m.moe_layers,
        memory=((0, 0.3, 0.0),),
        requests=8,
    )
    return generate(preset, seed)
