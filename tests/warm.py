"""python -m tests.warm lean|everything|log: compile one version of the machine into numba's cache."""

import sys

from sim.machines import compiled, discrete
from tests.plans import plan

VERSIONS = ("lean", "everything", "log")


def compile_version(name: str) -> None:
    """A tiny run is enough: what it needs is compiled, and kept."""
    full, miss = name == "log", "drop" if name == "everything" else "fetch"
    tiny = plan([[[0, 1]], [[2, 1]]], 3, [2], miss=miss)
    compiled.run(tiny, full)
    discrete.run(tiny, full)


if __name__ == "__main__":
    for version in sys.argv[1:] or VERSIONS:
        compile_version(version)
