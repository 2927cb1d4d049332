"""One measured quantity with the value of every round; how rounds are timed; what the machine was meanwhile."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.plans import ROOT, Traces
from traces.command import write_bytes

Job = Callable[[], object]
PACKAGES = ("numpy", "numba", "llvmlite", "scipy", "pydantic", "simpy", "libcachesim")


@dataclass(frozen=True)
class Figure:
    """name: `section/of what/which`; values: one of each round; asked: what it is meant to be, in words, or empty;
    quiet: kept and not printed."""

    name: str
    unit: str
    values: tuple[float, ...]
    asked: str = ""
    note: str = ""
    quiet: bool = False

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def facts(self) -> dict[str, Any]:
        """As it is kept."""
        spread = {"median": self.median, "least": min(self.values), "most": max(self.values)}
        return asdict(self) | {"values": list(self.values)} | spread

    def line(self) -> str:
        """As it is printed, below its heading."""
        spread = f"({_short(min(self.values))} .. {_short(max(self.values))})" if len(self.values) > 1 else ""
        more = "; ".join(filter(None, [self.asked and f"asked: {self.asked}", self.note]))
        name = self.name.rpartition("/")[2]
        return f"  {name:<44} {_short(self.median):>9} {self.unit:<17} {spread:<20} {more}".rstrip()


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


@dataclass(frozen=True)
class Ask:
    """What a run of the bench is told. requests: of throughput and of the full record; each: of every other run; runs:
    rounds that count, behind one that does not; most: the largest size."""

    traces: Traces
    requests: float = 4e6
    each: float = 1e6
    runs: int = 5
    most: float = 1e8
    workers: int = 2


def cpu_s(job: Job) -> float:
    """Seconds of this process that a job took: those of others, who share the cores, do not count."""
    begin = time.process_time()
    job()
    return time.process_time() - begin


def rounds(jobs: Mapping[str, Job], runs: int) -> dict[str, tuple[float, ...]]:
    """CPU seconds of each job, round after round, all jobs in each; the first round, which loads code, is left out."""
    took = [{name: cpu_s(job) for name, job in jobs.items()} for _ in range(runs + 1)][1:]
    return {name: tuple(each[name] for each in took) for name in jobs}


def beside(base: Job, jobs: Mapping[str, Job], runs: int) -> dict[str, tuple[float, ...]]:
    """Time of each job over the base's, which runs just before it, in every round but the first."""
    took = [{name: _over(base, job) for name, job in jobs.items()} for _ in range(runs + 1)][1:]
    return {name: tuple(each[name] for each in took) for name in jobs}


def _over(base: Job, job: Job) -> float:
    before = cpu_s(base)
    return cpu_s(job) / max(before, 1e-9)


def ratio(a: Iterable[float], b: Iterable[float]) -> tuple[float, ...]:
    """a over b, round by round."""
    return tuple(x / max(y, 1e-9) for x, y in zip(a, b, strict=True))


def machine() -> dict[str, Any]:
    """The commit and versions that are measured, and the processor with its caches in bytes, as far as Linux says."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"commit": commit(ROOT), "versions": versions, "cpu": _model(), "cores": cores(), "caches": caches()}


def commit(root: Path) -> str:
    """Of a checkout, with + where its files are not those of the commit; empty where git does not know it."""
    ask = ["git", "-C", str(root)]
    found = subprocess.run([*ask, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run([*ask, "diff", "--quiet", "HEAD", "--"], capture_output=True, check=False).returncode == 1
    return found.stdout.strip() + ("+" if dirty else "")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def caches() -> dict[str, int]:
    """Bytes of each cache that data of one core may lie in, by level: L1, L2, L3."""
    out = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            out[f"L{level}"] = int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20}[size[-1]]
    return out


def load() -> str:
    """What else the machine is at: processes that ran or waited to, over 1, 5 and 15 minutes."""
    return "load " + ", ".join(f"{each:.2f}" for each in os.getloadavg())


def keep(path: Path, figures: Iterable[Figure], about: Mapping[str, Any]) -> None:
    """All of it as one JSON object: `machine`'s facts, loads, and `figures`."""
    kept = {**about, "figures": [figure.facts for figure in figures]}
    write_bytes(path, (json.dumps(kept, indent=1) + "\n").encode())
