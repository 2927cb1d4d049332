"""python -m tests.warm [VERSION ...]: compile these versions of the machine, or all, into numba's cache."""

import sys
from itertools import count

from sim.core.inputs import parts
from sim.machines import compiled, discrete
from sim.outcome.bounds import bounds
from tests.on_miss_plans import plan_of
from tests.plans import plan

VERSIONS = (
    "lean", "everything", "rules", "rules-everything", "log", "everything-log", "rules-log", "rules-everything-log",
)  # fmt: skip


def compile_version(name: str) -> None:
    """A tiny run is enough: what it needs is compiled, and kept."""
    full, miss = name.endswith("log"), "drop" if "everything" in name else "fetch"
    tiny = plan([[[0, 1]], [[2, 1]]], 3, [2], miss=miss)
    if name.startswith("rules"):
        tiny = next(made for made in map(plan_of, count()) if parts(made)[0] == ("everything" in name))
    compiled.run(tiny, full)
    discrete.run(tiny, full)
    if name == VERSIONS[0]:
        bounds(tiny)


if __name__ == "__main__":
    for version in sys.argv[1:] or VERSIONS:
        compile_version(version)
