"""One checkout's side of a comparison: a line on stdin names a job, the answer says what it took.

Started by `tests.bench.compare` with this file's package in front of the other checkout's: so plans, names and timing
are this one's, and everything they call the other's. `{"s": CPU seconds}`, or `{"absent": why}` where it cannot do it.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import IO

from sim.machines import compiled
from sim.outcome.bounds import bounds
from tests.bench.arms import BASE, BOTH, Arms
from tests.bench.figures import Job, cpu_s
from tests.bench.plans import Traces, captures

FULL, BOUNDS = "full record, ", "bounds, "
MORE = (FULL + BASE, FULL + BOTH, BOUNDS + BASE)


class Side:
    """The jobs of one checkout, `TRACE/NAME`, each made when it is first asked for."""

    def __init__(self, traces: Traces, requests: float, folder: Path) -> None:
        self.traces, self.requests, self.folder = traces, requests, folder
        self.jobs: dict[str, Job] = {}

    @cached_property
    def arms(self) -> dict[str, Arms]:
        return {name: Arms(trace, self.requests, _made(self.folder / name)) for name, trace in self.traces.items()}

    def names(self) -> list[str]:
        """Of all that this checkout can be asked for."""
        return [f"{trace}/{arm}" for trace, arms in self.arms.items() for arm in (*arms.every(), *MORE)]

    def answer(self, name: str) -> dict[str, float | str]:
        """Whatever goes wrong is an answer: the other side may still know how."""
        try:
            job = self.jobs.get(name) or self.jobs.setdefault(name, self._job(name))
            return {"s": cpu_s(job)}
        except Exception as why:
            return {"absent": f"{type(why).__name__}: {' '.join(str(why).split())}"}

    def _job(self, name: str) -> Job:
        trace, _, arm = name.partition("/")
        plan = self.arms[trace].plan(arm.removeprefix(FULL).removeprefix(BOUNDS))
        return partial(bounds, plan) if arm.startswith(BOUNDS) else partial(compiled.run, plan, arm.startswith(FULL))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def serve(side: Side, lines: Iterable[str], out: IO[str]) -> None:
    """An answer for each line; the first line out says what may be asked."""
    print(json.dumps(side.names()), file=out, flush=True)
    for line in lines:
        print(json.dumps(side.answer(line.strip())), file=out, flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        serve(Side(captures(), float(sys.argv[1]), Path(folder)), sys.stdin, sys.stdout)
