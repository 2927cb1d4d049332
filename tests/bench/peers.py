"""The same requests to others: libCacheSim's LRU at its default table and at its best one, and an LRU as people write
it in Python. All of them count the hits of our run exactly, or nothing is compared.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core.plan import Plan
from sim.machines import compiled
from tests.bench.figures import cpu_s
from tests.bench.plans import first_steps

Ids = npt.NDArray[np.int64]
DEFAULT = 24  # libCacheSim's hashpower: a table of 2^24 places, which is cleared for every cache
POWERS = (4, 6, 8, 10, 12, 16, 20)
RECORD = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])  # of an oracleGeneral file


def touches(plan: Plan) -> list[Ids]:
    """By layer, the experts in the order in which an lru + fetch run touches them: first residents, then by visit its
    hits and then what it fetched. A run of the same rows over and over is looked at for two passes and goes on likewise
    (`agreed` would find it if not)."""
    layers, period = plan.experts.shape[1], len(np.unique(plan.step_row))
    steps = min(len(plan.step_prefill), 2 * period)
    done = compiled.run(first_steps(plan, steps), full=True).groups["executions"]
    visit, expert = np.asarray(done["visit"], np.int64), np.asarray(done["expert"], np.int64)
    first = plan.residents.reshape(layers, -1) % plan.n_experts
    out = []
    for layer in range(layers):
        here = visit % layers == layer
        out.append(np.concatenate([first[layer], _on(visit[here] // layers, expert[here], plan, period)]))
    return out


def _on(step: Ids, expert: Ids, plan: Plan, period: int) -> Ids:
    """One layer's touches, by step, of up to two passes; the second again and again to the end of the run."""
    passes, rest = divmod(len(plan.step_prefill), period)
    if passes < 2:
        return expert
    second = expert[step >= period]
    more = second[step[step >= period] < period + rest]
    return np.concatenate([expert[step < period], np.tile(second, passes - 1), more])


class LibCacheSim:
    """Its LRU, one cache per layer: files that its own C++ reader maps (what Python hands over is slower)."""

    def __init__(self, touched: Sequence[Ids], slots: int, folder: Path) -> None:
        """Raises ImportError where libcachesim is not installed."""
        import libcachesim

        self.lib, self.slots, self.sizes = libcachesim, slots, [len(ids) for ids in touched]
        self.paths = [folder / f"{layer}.bin" for layer in range(len(touched))]
        for path, ids in zip(self.paths, touched, strict=True):
            out = np.zeros(len(ids), RECORD)
            out["id"], out["size"], out["next"] = ids, 1, -1
            out.tofile(path)

    def hits(self, hashpower: int) -> int:
        """Of all layers."""
        return sum(self._hits(path, n, hashpower) for path, n in zip(self.paths, self.sizes, strict=True))

    def _hits(self, path: Path, n: int, hashpower: int) -> int:
        reader = self.lib.TraceReader(trace=str(path), trace_type=self.lib.TraceType.ORACLE_GENERAL_TRACE)
        missed, _ = self.lib.LRU(cache_size=self.slots, hashpower=hashpower).process_trace(reader)
        return n - round(missed * n)

    def best(self) -> tuple[int, dict[int, float]]:
        """(the hashpower that takes least, CPU seconds by hashpower: the least of two)."""
        took = {power: min(cpu_s(lambda p=power: self.hits(p)) for _ in range(2)) for power in POWERS}
        return min(took, key=lambda power: took[power]), took


def in_python(slots: int) -> Callable[[Sequence[list[int]]], int]:
    """An LRU as people write it: an OrderedDict per layer. Takes each layer's requests, gives the hits."""

    def hits(touched: Sequence[list[int]]) -> int:
        found = 0
        for ids in touched:
            cache: OrderedDict[int, None] = OrderedDict()
            for expert in ids:
                if expert in cache:
                    found += 1
                    cache.move_to_end(expert)
                else:
                    if len(cache) == slots:
                        cache.popitem(last=False)
                    cache[expert] = None
        return found

    return hits


def our_hits(plan: Plan) -> int:
    return int(compiled.run(plan).layer["hits"].sum())


def agreed(counts: dict[str, Any]) -> int:
    """The hits that all of them counted. Raises AssertionError where they did not do the same work."""
    assert len(set(counts.values())) == 1, f"they count different hits: {counts}"
    return int(next(iter(counts.values())))
