"""How long LRU's curve of misses takes, per layer and in one pool, beside one run of the machine."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from analysis.curves.curve import curve, setting_of
from sim.machines import compiled
from tests.bench.figures import Ask, Figure, rounds
from tests.bench.plans import requests_of
from tests.bench.sweeps import longer
from traces.format import npz
from traces.generic import synthesise


def curves(ask: Ask, pool: str = "deepseek-v3") -> Iterator[Figure]:
    """Seconds of the pass that finds LRU's misses at every capacity at once, its visits included: per layer and in one
    pool, of the traces over and over, and of a pool of thousands of experts (a SYNTHETIC trace)."""
    traces = {name: longer(trace, ask.each) for name, trace in ask.traces.items()}
    for name, trace in (traces | ({pool: synthesise(pool, 0)} if pool else {})).items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.npz"
            npz.write(path, trace)
            for scope in ("layer", "global"):
                setting = setting_of({"trace": str(path), "cache_scope": scope})
                jobs = {"curve": partial(curve, setting), "run": partial(compiled.run, setting.plan)}
                took = rounds(jobs, ask.runs)
                pools = setting.plan.experts.shape[1] * setting.plan.n_experts // len(setting.plan.slots)
                about = f"{requests_of(setting.plan):,} requests, scopes of {pools:,} experts"
                yield Figure(f"curve/{name}/cache scope {scope}", "CPU-s", took["curve"], note=about)
                yield Figure(f"curve/{name}/one run, cache scope {scope}", "CPU-s", took["run"])
