"""How long a command takes in a fresh process: with nothing compiled (cold), and the same again (warm)."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.bench.figures import Ask, Figure, ratio
from tests.bench.plans import ROOT

RUN = ("-m", "sim.run", "--trace", "mixtral.npz", "--json")
AHEAD = ("--cache", "6", "--prefetch", "gate-lookahead")
FURTHER: dict[str, tuple[str, ...]] = {
    "an eviction (decayed)": ("--eviction", "decayed"),
    "a prefetcher (gate-lookahead)": AHEAD,
    "substitution (buddy)": ("--cache", "6", "--miss", "buddy", "--calibration", "0.3"),
    "an engine (llama.cpp)": (
        "--engine", "llama.cpp", "--vram", "16GB", "--hardware", "rtx4090", "--precision", "q4-k-m",
    ),
    "--record full": ("--record", "full", "--out", "{folder}/run"),
}  # fmt: skip
ASKED = {"the default run": 12, "substitution (buddy)": 20}
MOST = 10  # CPU-s of any other further policy
FLOORS = {"python -c pass": ("-c", "pass"), "python -c 'import numpy'": ("-c", "import numpy")}


class Spent(NamedTuple):
    """Seconds of a command: on the wall, and of all cores, its children's included."""

    wall_s: float
    cpu_s: float


class Starts:
    """Commands of one checkout. run: the words of the default one, behind `python`."""

    def __init__(self, root: Path = ROOT, run: Sequence[str] = RUN, cache: Path | None = None) -> None:
        self.root, self.run = root, tuple(run)
        kept = {} if cache is None else {"NUMBA_CACHE_DIR": str(cache)}
        self.environment = {**os.environ, "PYTHONPATH": str(root), "MOE_OFFLOAD_SIM_QUIET": "1", **kept}

    def spent(self, words: Sequence[str], where: Mapping[str, str] | None = None) -> Spent:
        """Of one process. Raises CalledProcessError where it fails."""
        before, begin = _children_s(), time.perf_counter()
        told = {"cwd": self.root, "env": {**self.environment, **(where or {})}, "check": True}
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **told)
        return Spent(time.perf_counter() - begin, _children_s() - before)

    def cold(self, further: Sequence[str]) -> tuple[Spent, Spent]:
        """The default run where nothing is compiled, and then this one, of which the same cache holds a part."""
        with nothing_compiled() as (where, folder):
            words = [word.format(folder=folder) for word in further]
            return self.spent(self.run, where), self.spent((*self.run, *words), where)

    def warm(self, further: Sequence[str] = ()) -> Spent:
        return self.spent((*self.run, *further))


@contextmanager
def nothing_compiled() -> Iterator[tuple[dict[str, str], str]]:
    """(environment, folder) in which every cache of compiled code is empty."""
    with tempfile.TemporaryDirectory(prefix="bench-cold-") as folder:
        yield {"NUMBA_CACHE_DIR": f"{folder}/numba", "XDG_CACHE_HOME": f"{folder}/user"}, folder


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cold(ask: Ask, starts: Starts | None = None) -> Iterator[Figure]:
    """CPU seconds and wall of the first run ever, and of the first with one thing more behind it, each in caches of its
    own: so many first runs as there are things. It takes minutes."""
    starts = starts or Starts()
    starts.spent(("-m", "compileall", "-q", "sim", "traces"))  # bytecode is nobody's cold start
    pairs = {name: starts.cold(words) for name, words in FURTHER.items()}
    first = tuple(pair[0] for pair in pairs.values())
    for name, found in {"the default run": first, **{each: (pair[1],) for each, pair in pairs.items()}}.items():
        asked = f"<= {ASKED.get(name, MOST)}"
        yield Figure(f"cold/{name}", "CPU-s", tuple(each.cpu_s for each in found), asked)
        yield Figure(f"cold/{name}, wall", "s", tuple(each.wall_s for each in found))


def warm(ask: Ask, starts: Starts | None = None) -> Iterator[Figure]:
    """The default run, one with a prefetcher and the floors below both, in turns; the first round may compile, and is
    left out."""
    starts = starts or Starts()
    words = {"the default run": starts.run, "with a prefetcher": (*starts.run, *AHEAD), **FLOORS}
    took = [{name: starts.spent(each) for name, each in words.items()} for _ in range(ask.runs + 1)][1:]
    walls = {name: tuple(each[name].wall_s for each in took) for name in words}
    for name, found in walls.items():
        asked = "<= 0.6 quiet, without numba (0.9 with it)" if name == "the default run" else ""
        yield Figure(f"warm/{name}", "s", found, asked)
        yield Figure(f"warm/{name}, CPU", "CPU-s", tuple(each[name].cpu_s for each in took))
    yield Figure(
        "warm/default over import numpy", "x", ratio(walls["the default run"], walls["python -c 'import numpy'"])
    )
