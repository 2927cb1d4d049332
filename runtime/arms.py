"""What calibration and validation run: links, arms, and the traces they are run on.

An *arm* is one run specification on one link. Arms that calibrate run on other requests than arms that are judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.plan import Setting, prepare
from sim.policies import find
from sim.spec import RunSpec
from traces import npz
from traces.synthetic import Preset, generate
from traces.trace import RoutingTrace, split

BATCHES = (1, 4)


@dataclass(frozen=True)
class Link:
    """One link. gbps None: the device's own; else a CPU's paced one. regime: where its arms should fall."""

    name: str
    gbps: float | None = None
    latency_us: float = 0.0
    regime: str | None = None


@dataclass(frozen=True, eq=False)
class Arm:
    """fields: of RunSpec, without trace and hardware; policy: what it is called by in tables."""

    link: Link
    policy: str
    fields: dict[str, Any]
    calibrates: bool = False

    @property
    def name(self) -> str:
        """One line for tables, unlike any other arm's of the run."""
        kind = "calibrating " if self.calibrates else ""
        return f"{self.link.name}: {kind}{self.policy}, cache {self.fields['cache']}, batch {self.fields['batch']}"


def policy_fields(policy: str) -> dict[str, Any]:
    """What `EVICTION`, `EVICTION+PREFETCH` or `EVICTION+cpu` chooses. Raises SpecError for an unknown part."""
    eviction, _, other = policy.partition("+")
    find("eviction", eviction)
    out: dict[str, Any] = {"eviction": eviction}
    if other == "cpu":
        return out | {"miss": "cpu"}
    if other:
        find("prefetch", other)
        out |= {"prefetch": other, "prefetch_budget": 2}
    return out


def grid(link: Link, policies: Sequence[str], caches: Sequence[int | float], batches: Sequence[int]) -> list[Arm]:
    """Every policy at every capacity and batch on one link."""
    return [
        Arm(link, policy, {**policy_fields(policy), "cache": cache, "batch": batch})
        for batch in batches
        for cache in caches
        for policy in policies
    ]


def calibrating(link: Link, caches: Sequence[int | float], batches: Sequence[int], host: bool = False) -> list[Arm]:
    """Arms that a calibration is fitted on: at each batch the smallest capacity with lru, and the largest with
    prefetches of an oracle with errors, which every trace can have; one with experts on the host where asked for."""
    small, large = min(caches), max(caches)
    arms = []
    for batch in batches:
        arms += grid(link, ["lru"], [small], [batch]) + grid(link, ["lru+noisy-oracle"], [large], [batch])
    arms += grid(link, ["lru+cpu"], [small], batches[:1]) if host else []
    return [Arm(a.link, a.policy, a.fields, True) for a in arms]


@dataclass(frozen=True)
class Traces:
    """The file that is judged, with the share of its requests that calibrates, and a file of those requests alone."""

    judged: str
    fraction: float
    calibration: str

    @staticmethod
    def of(trace: str, fraction: float, seed: int, folder: Path, batch: int) -> "Traces":
        """Cut the calibration's requests into a file in `folder`, enough of them to run `batch` together. Raises
        TraceError for a trace of one request."""
        path = folder / "calibration.npz"
        npz.write(path, enough_requests(split(npz.read(npz.find(trace)), fraction, seed)[0], batch))
        return Traces(trace, fraction, str(path))

    def setting(self, arm: Arm, common: dict[str, Any], hardware: str) -> Setting:
        """The arm's setting on its requests, with the durations of a piece of hardware."""
        fields = {**common, **arm.fields, "hardware": hardware}
        if arm.calibrates:
            return prepare(RunSpec.of({**fields, "trace": self.calibration}))
        return prepare(RunSpec.of({**fields, "trace": self.judged, "calibration": self.fraction}))


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
    rows, plain = np.concatenate(index), np.tile(np.arange(trace.n_tokens), times)
    arrays = {name: a[:, rows] if name == "lookahead" else a[rows] for name, a in trace.arrays().items()}
    kept = {"position": trace.position[plain], "prefill": trace.prefill[plain], "sequence": np.concatenate(sequence)}
    return RoutingTrace(meta=trace.meta, **{**arrays, **kept})


def synthetic(model: str, seed: int) -> RoutingTrace:
    """A trace in the shape of a catalog model, to calibrate on without a capture. Raises CatalogError."""
    from sim import catalog

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
