"""Who runs what when: tasks of useful size to workers that come and go.

Runs that share much stand beside each other and are cut into one stretch per worker, so that each worker makes what
they share once; who is done takes from the far end of the longest stretch left. A task holds as many runs as take about
half a second, by what the runs of the same trace took so far. The first run of each version of the machine is a task of
its own, for it may have to be compiled; who would need the same version meanwhile does something else (sim.sweeps.
versions).

A worker that dies takes no other with it: its runs are tried again, each alone; one that kills a worker a second time
becomes a row with an error.
"""

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from sim.errors import SpecError
from sim.sweeps.config import Configuration
from sim.sweeps.rows import Row, error_row
from sim.sweeps.versions import Versions
from sim.sweeps.worker import Done, Task
from traces.progress import doing

TASK_S = 0.5
APART_S = 2.0  # lines of progress on a terminal
MOST_RUNS = 1_000  # of a task
STILLBORN = 3  # workers that die one after another before they are ready: something is wrong with all of them
KILLED = "the worker died twice while it ran this (out of memory?)"


@dataclass(frozen=True)
class WorkerEvent:
    """What a worker did: it is ready (done None, dead False), has done its task, or is dead (`why`) for good."""

    worker: int
    done: Done | None = None
    dead: bool = False
    why: str = ""


class Pool(Protocol):
    """Workers by number, each with at most one task. An engine: see `local` and `cluster`."""

    def start(self) -> int:
        """Begin to make a worker; it counts once its event says that it is ready."""

    def give(self, worker: int, task: Task) -> None:
        """To a worker that is ready and has nothing to do."""

    def events(self, timeout_s: float) -> Sequence[WorkerEvent]:
        """What happened, waiting for it at most so long; may be nothing."""

    def close(self) -> None:
        """End all workers at once, whatever they do; nothing where that has been done."""


@dataclass
class Totals:
    """What the workers did so far, in seconds of theirs, and the entries they simulated."""

    loop_s: float = 0.0
    prepare_s: float = 0.0
    busy_s: float = 0.0
    cpu_s: float = 0.0
    requests: int = 0
    runs: int = 0

    def add(self, done: Done) -> None:
        for name in ("loop_s", "prepare_s", "busy_s", "cpu_s", "requests"):
            setattr(self, name, getattr(self, name) + getattr(done, name))
        self.runs += len(done.rows)


@dataclass
class Queue:
    """Runs that wait: one stretch per worker, and those to be tried again alone."""

    stretches: list[deque[Configuration]]
    versions: Versions
    again: deque[Configuration] = field(default_factory=deque)

    @staticmethod
    def of(runs: Sequence[Configuration], workers: int, versions: Versions) -> "Queue":
        ordered = sorted(runs, key=_sharing)
        cuts = [len(ordered) * i // workers for i in range(workers + 1)]
        return Queue([deque(ordered[a:b]) for a, b in pairwise(cuts)], versions)

    def __len__(self) -> int:
        return sum(map(len, self.stretches)) + len(self.again)

    def take(self, place: int, seconds: "Seconds") -> Sequence[Configuration]:
        """The next runs for the worker at a place: one to try again, of its own stretch, or of the longest; none where
        all that is left needs what others compile."""
        if self.again:
            return [self.again.popleft()]
        own, longest = self.stretches[place % len(self.stretches)], max(self.stretches, key=len)
        return self._drawn(own, seconds) or self._drawn(longest, seconds, far=True)

    def _drawn(self, source: deque[Configuration], seconds: "Seconds", far: bool = False) -> list[Configuration]:
        """From the near or the far end: what can be run at once, or a run of what nobody compiles."""
        place = self.versions.next(reversed(source) if far else source)
        if place is None:
            return []
        at = len(source) - 1 - place if far else place
        most = min(seconds.fitting(source[at]), 1 + len(source) // 2, MOST_RUNS)  # at last few: all end together
        if not self.versions.there(source[at]):
            self.versions.begin(source[at])
            most = 1
        taken = [source[at]]
        del source[at]
        while len(taken) < most and 0 <= (at := at - far) < len(source) and self.versions.there(source[at]):
            taken.append(source[at])
            del source[at]
        return taken


def _sharing(run: Configuration) -> tuple[Any, ...]:
    """Sort key: beside each other what shares trace, steps, costs, slots and predictions, in this order."""
    if run.spec is None:
        return ("",)
    s = run.spec
    laid_out = (s.trace, str(s.calibration), s.seed, s.batch, s.prefill_chunk, s.as_decode, s.max_steps or 0)
    costed = (
        str(s.model),
        s.hardware,
        repr(s.changes),
        s.engine,
        s.precision,
        s.context_offset,
        s.cache_scope,
        repr(s.cache),
        str(s.n_cpu_moe),
    )
    return (*laid_out, *costed, s.prefetch, s.miss, s.eviction, run.id)


class Seconds:
    """How long runs of a trace take, by those done so far."""

    def __init__(self) -> None:
        self._each: dict[tuple[str, int], float] = {}

    def fitting(self, run: Configuration) -> int:
        """How many such runs make a task; 1 while nothing is known."""
        each = self._each.get(_kind(run))
        return 1 if each is None else max(1, int(TASK_S / max(each, 1e-6)))

    def learn(self, runs: Sequence[Configuration], busy_s: float) -> None:
        """Remember what a task took; the latest counts half."""
        each, kind = busy_s / len(runs), _kind(runs[0])
        self._each[kind] = (self._each.get(kind, each) + each) / 2


def _kind(run: Configuration) -> tuple[str, int]:
    return ("", 0) if run.spec is None else (run.spec.trace, run.spec.max_steps or 0)


class Dispatcher:
    """Runs batches of configurations on the workers of a pool, which it keeps until `close`."""

    def __init__(self, pool: Pool, workers: int) -> None:
        self.pool, self.workers = pool, workers
        self.totals = Totals()
        self.seconds = Seconds()
        self.versions = Versions()
        self._idle: list[int] = []
        self._places: dict[int, int] = {}  # of workers that live: which stretch is theirs
        self._tasks: dict[int, Task] = {}
        self._deaths: dict[str, int] = {}  # by run
        self._stillborn = 0
        self._starting: set[int] = set()
        for place in range(workers):
            self._start(place)

    def close(self) -> None:
        self.pool.close()

    def warm_up(self, samples: Sequence[Configuration], ready: int = 1) -> None:
        """Compile what these runs need, each on a worker of its own, and wait: the others then find it on the disk.
        Returns when so many workers are ready for work."""
        doing(f"starting {self.workers} workers; what they run is compiled where it is not", at_once=False)
        queue = deque(Task([run], warm_up=True) for run in samples)
        while queue or self._tasks or len(self._idle) < ready:
            while queue and self._idle:
                self._give(self._idle.pop(), queue.popleft())
            for event in self.pool.events(1.0):
                self._seen(event)

    def run(
        self, runs: Sequence[Configuration], deadline: float = math.inf, piece: int | None = None
    ) -> Iterator[list[Row]]:
        """The rows of all runs, as they come: each run once. Raises SpecError where no worker can be kept alive.

        deadline, by time.monotonic(): what is not done by then is left undone, workers that are at it included: there
        is nothing to do with them then but `close`. piece: so many are given out before any later one (default: all).
        """
        progress, done = Progress(len(runs), self.workers), 0
        size = piece or max(1, len(runs))
        for first in range(0, len(runs), size):
            for rows in self._batch(runs[first : first + size], deadline):
                yield rows
                done += len(rows)
                progress.show(done)

    def _batch(self, runs: Sequence[Configuration], deadline: float) -> Iterator[list[Row]]:
        queue = Queue.of(runs, max(1, len(self._places)), self.versions)
        while (queue or self._tasks) and (left := deadline - time.monotonic()) > 0:
            rows: list[Row] = []
            self._hand_out(queue)
            for event in self.pool.events(min(1.0, left)):
                rows += self._rows(event, queue)
            self._hand_out(queue)  # nobody waits while the rows are written
            if rows:
                yield rows

    def _hand_out(self, queue: Queue) -> None:
        while self._idle and (taken := queue.take(self._places[self._idle[-1]], self.seconds)):
            self._give(self._idle.pop(), Task(taken))

    def _give(self, worker: int, task: Task) -> None:
        self._tasks[worker] = task
        self.pool.give(worker, task)

    def _start(self, place: int) -> None:
        worker = self.pool.start()
        self._places[worker] = place
        self._starting.add(worker)

    def _seen(self, event: WorkerEvent) -> Task | None:
        """Keep account of an event; gives the task that its worker had."""
        task = self._tasks.pop(event.worker, None)
        for run in task.runs if task else ():
            self.versions.end(run, done=not event.dead)
        if not event.dead:
            self._starting.discard(event.worker)
            self._stillborn = 0
            self._idle.append(event.worker)
            return task
        if event.worker in self._starting:
            self._stillborn += 1
        if self._stillborn >= STILLBORN:
            raise SpecError(f"workers: {STILLBORN} died one after another as they started: {event.why}")
        self._starting.discard(event.worker)
        self._idle = [worker for worker in self._idle if worker != event.worker]
        self._start(self._places.pop(event.worker))
        return task

    def _rows(self, event: WorkerEvent, queue: Queue) -> Sequence[Row]:
        task = self._seen(event)
        if event.done is not None:
            assert task is not None  # only a worker with a task has done one
            self.totals.add(event.done)
            if event.done.rows:
                self.seconds.learn(task.runs, event.done.busy_s)
            return event.done.rows
        rows = []
        for run in task.runs if task else ():
            self._deaths[run.id] = self._deaths.get(run.id, 0) + 1
            if self._deaths[run.id] < 2:
                queue.again.append(run)
            else:
                rows.append(error_row(run, KILLED))
                self.totals.runs += 1
        return rows


class Progress:
    """Rate and time left, told every few seconds."""

    def __init__(self, runs: int, workers: int) -> None:
        self.runs, self.workers = runs, workers
        self.begin = self.shown = time.monotonic()
        self.show(0)

    def show(self, done: int) -> None:
        now = time.monotonic()
        due = now - self.shown > APART_S or done == self.runs
        self.shown = now if due else self.shown
        rate = done / (now - self.begin) if done else 0.0
        left = f", {rate:.1f} runs/s, {(self.runs - done) / rate:,.0f} s left" if rate else ""
        doing(f"{done:,}/{self.runs:,} runs on {self.workers} workers{left}", at_once=due)
