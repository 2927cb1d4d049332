"""This checkout and another one, interleaved: every job on the one, then on the other, in turns; the order alternates.

Each side is a process of its own, with compiled code of its own; what it runs and how it is timed is this checkout's.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.bench.figures import Ask, Figure, commit, ratio
from tests.bench.plans import ROOT
from tests.bench.starts import FURTHER, Spent, Starts
from traces.errors import UserError
from traces.progress import doing

# this package in front of the other checkout's of that name
BOOT = "import sys, tests; tests.__path__.insert(0, sys.argv.pop(1)); from tests.bench import worker; worker.main()"
UNIT = "x the base's time"


def checked(base: str, root: Path = ROOT) -> str:
    """The same, if it is a commit or the folder of a checkout; else raises UserError."""
    there = (Path(base) / "sim/machines/compiled.py").is_file()
    git = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"]
    if not there and (Path(base).is_dir() or subprocess.run(git, capture_output=True, check=False).returncode):
        raise UserError(f"base: {base!r}: must be a commit or the folder of a checkout")
    return base


@contextmanager
def checkout(base: str, root: Path = ROOT) -> Iterator[Path]:
    """The folder that `base` names, or the commit in a folder for the time being. Raises UserError where it is
    neither."""
    if Path(base).is_dir():
        yield Path(base).resolve()
        return
    git = ["git", "-C", str(root)]
    with tempfile.TemporaryDirectory(prefix="bench-base-") as folder:
        place = Path(folder) / "base"
        made = subprocess.run(
            [*git, "worktree", "add", "--detach", str(place), base], capture_output=True, text=True, check=False
        )
        if made.returncode:
            why = (made.stderr.strip().splitlines() or ["git is silent"])[-1]
            raise UserError(f"base: {base!r}: must be a commit or the folder of a checkout ({why})")
        try:
            yield place
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(place)], capture_output=True, check=False)


def cache(root: Path) -> Path:
    """Where a checkout's tests keep compiled code; of this one, where it is told to."""
    asked = os.environ.get("NUMBA_CACHE_DIR") if root == ROOT else None
    return Path(asked) if asked else root / ".numba_cache"


class Worker:
    """A process of `tests.bench.worker` on a checkout. names: the jobs that it knows."""

    def __init__(self, root: Path, requests: float) -> None:
        environment = {**os.environ, "PYTHONPATH": str(root), "NUMBA_CACHE_DIR": str(cache(root))}
        command = [sys.executable, "-c", BOOT, str(ROOT / "tests"), repr(requests)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=root, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.names: list[str] = self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"base: a worker ended with status {self.process.wait()}; stderr says why")
        return json.loads(line)

    def ask(self, job: str) -> dict[str, Any]:
        """{"s": CPU seconds} or {"absent": why}."""
        assert self.process.stdin is not None
        self.process.stdin.write(job + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = self._read()
        return found

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.communicate()  # it ends where its lines do


def compare(ask: Ask, base: str, only: str = "", starts: bool = True) -> Iterator[Figure]:
    """Time of each job here over its time there, round by round; only: of jobs whose names hold that."""
    with checkout(base) as there, ExitStack() as stack:
        print(f"  here {commit(ROOT)}, base {commit(there)} in {there}")
        sides = [stack.enter_context(Worker(root, ask.each)) for root in (ROOT, there)]
        jobs = [job for job in sides[0].names if only in job]
        if not jobs:
            raise UserError(
                f"only: {only!r}: is in no name of {len(sides[0].names)} jobs, such as {sides[0].names[0]!r}"
            )
        yield from jobs_compared(jobs, sides, ask.runs)
        if starts:
            yield from starts_compared([Starts(root, cache=cache(root)) for root in (ROOT, there)], ask.runs)


def jobs_compared(jobs: Sequence[str], sides: Sequence[Any], runs: int) -> Iterator[Figure]:
    """sides: here, there. A job that one of the two has not is said to be missing."""
    found: dict[str, list[list[dict[str, Any]]]] = {job: [[], []] for job in jobs}
    for round_ in range(runs + 1):
        for job in jobs:
            doing(f"round {round_} of {runs}: {job}", at_once=False)
            for side in (0, 1) if round_ % 2 else (1, 0):
                found[job][side].append(sides[side].ask(job))
    for job, answers in found.items():
        missing = [(where, each[0]["absent"]) for where, each in zip(HERE, answers, strict=True) if "absent" in each[0]]
        if missing:
            print(f"  {job}: not compared: " + "; ".join(f"{where}: {why}" for where, why in missing))
            continue
        here, there = ([each["s"] for each in side[1:]] for side in answers)
        yield from _both(f"compare/{job}", here, there, "CPU-s")


HERE = ("here", "in the base")


def _both(name: str, here: Sequence[float], there: Sequence[float], unit: str) -> Iterator[Figure]:
    """What it takes here over there, and both."""
    yield Figure(name, UNIT, ratio(here, there), note=f"least {min(here):.3g} {unit} for {min(there):.3g}")
    yield Figure(f"{name}, here", unit, tuple(here), quiet=True)
    yield Figure(f"{name}, base", unit, tuple(there), quiet=True)


def starts_compared(sides: Sequence[Starts], runs: int) -> Iterator[Figure]:
    """Warm starts in turns; then cold ones, one of each kind."""
    warm = [[side.warm() for side in sides] for _ in range(runs + 1)][1:]
    yield from _spent("warm/the default run", [each[0] for each in warm], [each[1] for each in warm])
    first: list[tuple[Spent, Spent]] = []
    for name, further in FURTHER.items():
        doing(f"cold starts: {name}", at_once=False)
        here, there = (side.cold(further) for side in sides)
        first.append((here[0], there[0]))
        yield from _spent(f"cold/{name}", [here[1]], [there[1]])
    yield from _spent("cold/the default run", *map(list, zip(*first, strict=True)))


def _spent(name: str, here: Sequence[Spent], there: Sequence[Spent]) -> Iterator[Figure]:
    yield from _both(f"compare/{name}", [each.cpu_s for each in here], [each.cpu_s for each in there], "CPU-s")
    yield from _both(f"compare/{name}, wall", [each.wall_s for each in here], [each.wall_s for each in there], "s")
