"""The policies by name: what a spec may ask for, with parameters, needs and sources.

Adding an eviction or a miss policy touches two places: its function in sim/core, and its line here. Prefetchers are
classes of sim.fit.predictors; they register themselves there and need no line here.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.core import eviction, miss
from sim.core.plan import Choice
from sim.errors import SpecError, unknown

Value = float | int | str | bool


@dataclass(frozen=True)
class Policy:
    """One named policy. `kind`: its code in the core. params: name -> default, in the order the core takes them. needs:
    arrays of the trace. fitted: needs --calibration. oracle: reads the future. lossy: may leave a wanted expert out."""

    name: str
    kind: int
    doc: str
    source: str
    params: Mapping[str, float] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    fitted: bool = False
    oracle: bool = False
    lossy: bool = False

    def choice(self, given: Mapping[str, Value]) -> Choice:
        """As the core takes it. Raises SpecError for a parameter that it does not have or that is no number."""
        for key, value in given.items():
            if key not in self.params:
                raise unknown(f"set: parameter of {self.name}", key, self.params)
            if isinstance(value, str):
                raise SpecError(f"set: {self.name}.{key}={value}: must be a number")
        values = [float(given.get(key, default)) for key, default in self.params.items()]
        return Choice(self.name, self.kind, np.array(values, np.float64))


def _table(*policies: Policy) -> dict[str, Policy]:
    return {policy.name: policy for policy in policies}


EVICTION = _table(
    Policy("lru", eviction.LRU, "the least recent touch or landing goes", "Mattson et al. 1970"),
    Policy("lfu", eviction.LFU, "the fewest executions over the whole run go", "Mattson et al. 1970"),
    Policy("fifo", eviction.FIFO, "the earliest landing goes", "Belady 1966"),
    Policy("random", eviction.RANDOM, "any evictable resident, by a hash of seed, visit and draw", "Belady 1966"),
    Policy(
        "decayed",
        eviction.DECAYED,
        "the lowest score goes: uses, each multiplied by `decay` per visit of the layer since",
        "LRFU, Lee et al. 2001; decayed counts as in several offloading engines",
        {"decay": 0.9},
    ),
    Policy(
        "belady", eviction.BELADY, "the expert wanted furthest ahead goes (reads the future)", "Belady 1966", oracle=True
    ),
)

_LOSSY = {"prefill": 0.0, "late": 0.0}  # lossy answers in prefill steps too; late experts count as missing
MISS = _table(
    Policy("fetch", miss.FETCH, "wait until it has crossed the link", "every lossless engine"),
    Policy("drop", miss.DROP, "leave the missing expert out", "the zero-fill baseline", _LOSSY, lossy=True),
    Policy("cpu", miss.CPU, "compute the missing expert on the host, beside the GPU", "Fiddler, arXiv 2402.07033", {"late": 0.0}),
)

PLACEMENT = {
    "first": "expert 0, 1, ... of each layer",
    "empty": "nothing is resident",
    "popular": "the most popular of the calibration trace, the most popular the most recent",
    "random": "by a hash of seed, layer and expert",
}


def find(kind: str, table: Mapping[str, Any], name: str) -> Any:
    """The policy of that name; SpecError with the nearest name if there is none."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def predictors() -> Mapping[str, Any]:
    """Prefetchers by name (imported late: a run without one does not pay for it)."""
    from sim.fit.predictors import PREDICTORS

    return PREDICTORS


def predictor(name: str, given: Mapping[str, Value]) -> Any:
    """A prefetcher with its parameters. Raises SpecError for one that it does not have."""
    kind = find("prefetch", predictors(), name)
    known = inspect.signature(kind).parameters
    for key in given:
        if key not in known:
            raise unknown(f"set: parameter of {name}", key, known)
    return kind(**given)
