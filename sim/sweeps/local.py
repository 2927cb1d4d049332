"""The local engine: one process per worker, started fresh (spawn), spoken to over a pipe of its own.

Not concurrent.futures: when one of its workers is killed it breaks the whole pool without saying which task did it, and
its workers outlive a parent that was killed. Here a pipe that ends says both: which worker is gone, and to a worker,
that nobody waits for it any more.
"""

import multiprocessing
import signal
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from sim.sweeps.dispatch import WorkerEvent
from sim.sweeps.worker import Setup, Task, Worker

READY = None  # the first thing a worker sends


class LocalPool:
    """Workers on this machine (sim.sweeps.dispatch.Pool)."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[int, tuple[SpawnProcess, Connection]] = {}
        self._started = 0

    def start(self) -> int:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._setup), daemon=True)
        process.start()
        theirs.close()  # the worker's alone: it ends with the worker
        self._started += 1
        self._workers[self._started] = (process, ours)
        return self._started

    def give(self, worker: int, task: Task) -> None:
        with suppress(OSError):  # it has died: the end of its pipe is an event
            self._workers[worker][1].send(task)

    def events(self, timeout_s: float) -> Sequence[WorkerEvent]:
        ends = {pipe: worker for worker, (_, pipe) in self._workers.items()}
        return [self._event(ends[pipe], pipe) for pipe in wait(list(ends), timeout_s) if isinstance(pipe, Connection)]

    def _event(self, worker: int, pipe: Connection) -> WorkerEvent:
        try:
            done = pipe.recv()
        except (EOFError, OSError):
            process, _ = self._workers.pop(worker)
            pipe.close()
            process.join()
            return WorkerEvent(worker, dead=True, why=f"exit status {process.exitcode}")
        return WorkerEvent(worker, done)

    def close(self) -> None:
        for process, _ in self._workers.values():
            process.kill()
        for process, pipe in self._workers.values():
            process.join()
            pipe.close()
        self._workers.clear()

    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process, _ in self._workers.values() if process.pid is not None]


def _serve(pipe: Connection, setup: Setup) -> None:
    """A worker's life: tasks from the pipe, what is done back, until nobody is at its other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    worker = Worker(setup)
    try:
        pipe.send(READY)
        while True:
            pipe.send(worker.run(pipe.recv()))
    except (EOFError, OSError):
        return
