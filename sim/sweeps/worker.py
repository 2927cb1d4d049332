"""What a worker process does, on this machine or on a node of a cluster: runs in, rows out.

A worker keeps what its runs share (sim.memo) and is told beforehand what was found out once for all of them: the
content hash of each trace, so that it maps the file without reading it through again, and the hardware and engines that
are files, so that no edit in the middle of a sweep can mix two of them.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sim.memo import Kept
from sim.simulation import simulate
from sim.spec import RunSpec
from sim.sweeps.config import Configuration
from sim.sweeps.rows import Row, error_row, row_of
from traces.errors import UserError
from traces.format import npz
from traces.format.trace import RoutingTrace

if TYPE_CHECKING:  # with it comes the core
    from sim.prepare import Described

MEMO_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Setup:
    """What every worker is told. folder: where relative paths begin; hashes: content hash by trace, as it is named in
    the specs; parts: hardware and engines, as sim.prepare asks for them; check_traces: read a trace through and compare
    its hash first (another machine may hold another file under that name)."""

    folder: str
    hashes: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping["Described", Any] = field(default_factory=dict)
    check_traces: bool = False


@dataclass(frozen=True)
class Task:
    """Runs for one worker, one after the other. warm_up: compile what they need; no rows come of it."""

    runs: Sequence[Configuration]
    warm_up: bool = False


@dataclass(frozen=True)
class Done:
    """rows of a task's runs, in their order; loop_s spent in machines, prepare_s before, busy_s in all, cpu_s of it on
    a core; requests: the (token, slot) entries that were simulated. unseen: a trace that this worker has no file of:
    nothing was run."""

    rows: Sequence[Row]
    loop_s: float = 0.0
    prepare_s: float = 0.0
    busy_s: float = 0.0
    cpu_s: float = 0.0
    requests: int = 0
    unseen: str = ""


class Unseen(Exception):
    """args[0]: the name of a trace that is not where it should be, or another one."""


class Worker:
    """Runs tasks. Two of them know nothing of each other."""

    def __init__(self, setup: Setup) -> None:
        if os.path.isdir(setup.folder):
            os.chdir(setup.folder)
        self.setup = setup
        self.memo = Kept(MEMO_BYTES)
        self.handed: dict[str, RoutingTrace] = {}  # traces that came over the network
        self.seconds = {"prepared": 0.0, "run": 0.0}

    def ready(self) -> None:
        """Returns once there is a worker to answer."""

    def receive(self, name: str, trace: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Take over a trace, its meta and its arrays, which this machine has no file of."""
        meta, arrays = trace
        self.handed[name] = RoutingTrace(meta=meta, **arrays)

    def run(self, task: Task) -> Done:
        """Every run of the task; one that fails is a row with its error. Never raises for a run."""
        begin, cpu, before = time.perf_counter(), time.process_time(), dict(self.seconds)
        try:
            rows = [self._row(run, task.warm_up) for run in task.runs]
        except Unseen as error:
            return Done((), unseen=str(error))
        spent = {name: self.seconds[name] - before[name] for name in before}
        busy = time.perf_counter() - begin
        entries = sum(row["slots_wanted"] or 0 for row in rows)
        on_core = time.process_time() - cpu
        return Done(() if task.warm_up else rows, spent["run"], spent["prepared"], busy, on_core, entries)

    def _row(self, run: Configuration, warm_up: bool) -> Row:
        if run.spec is None:
            return error_row(run, run.error)
        try:
            return row_of(run, self._summary(run.spec, warm_up))
        except Unseen:
            raise
        except UserError as error:
            return error_row(run, str(error))
        except Exception as error:  # ours to mend, but no reason to stop the others
            return error_row(run, f"{type(error).__name__}: {error}")

    def _summary(self, spec: RunSpec, warm_up: bool) -> Mapping[str, Any]:
        if warm_up:
            spec = spec.model_copy(update={"max_steps": 1, "warmup_steps": 0})
        begin = time.perf_counter()
        self._provide(spec.trace)
        if isinstance(spec.calibration, str):
            self._provide(spec.calibration)
        for key, part in self.setup.parts.items():
            self.memo(key, lambda part=part: part)  # type: ignore[misc]  # bound now, not when it is called

        def reached(stage: str) -> None:
            nonlocal begin
            now = time.perf_counter()
            self.seconds[stage] += now - begin
            begin = now

        return simulate(spec, memo=self.memo, reached=reached)[0]

    def _provide(self, name: str) -> None:
        """Put a trace whose hash is known where `prepare` looks for it. An unknown one it opens and checks itself."""
        from sim.prepare import Opened

        if name in self.setup.hashes:
            self.memo(Opened(name), lambda: (self._opened(name), self.setup.hashes[name]))

    def _opened(self, name: str) -> RoutingTrace:
        if name in self.handed:
            return self.handed[name]
        if not self.setup.check_traces:
            return npz.read(npz.find(name), check=False)
        try:
            trace = npz.read(npz.find(name))
        except UserError:
            raise Unseen(name) from None
        if npz.content_hash(trace) != self.setup.hashes[name]:
            raise Unseen(name)
        return trace
