"""The Ray engine: one actor per CPU of a cluster, wherever its node is. `ray` is an extra, imported when asked for.

The address is always given ("local" starts a cluster on this machine): without one Ray may wait for a cluster that is
long gone. A node needs this package; it reads a trace from its own file system where it finds the same trace under the
same name, else the trace is put into Ray's object store, once, and mapped from there. Files that policies name in their
parameters (lists, matrices) and policies of your own must lie under the same path on every node.
"""

import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.errors import SpecError
from sim.sweeps.dispatch import WorkerEvent
from sim.sweeps.worker import Setup, Task, Worker
from traces.format import npz

NO_RAY = "pool ray: is not installed: pip install 'moe-offload-sim[ray]'"
PATIENCE_S = 120.0  # without a single worker
REACH_S = 10.0


class RayPool:
    """Workers on a Ray cluster (sim.sweeps.dispatch.Pool). Raises SpecError where there is no Ray, or no cluster."""

    def __init__(self, setup: Setup, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise SpecError(NO_RAY) from None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _reach(address)
        try:
            ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=_dashboard(address)
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SpecError(f"ray-address: {address}: no cluster there: {error}") from None
        self._ray: Any = ray
        self._setup = setup
        self._actor: Any = ray.remote(num_cpus=1, max_restarts=0)(Worker)
        self._workers: dict[int, Any] = {}
        self._tasks: dict[int, Task] = {}
        self._waiting: dict[Any, int] = {}  # reference of a result -> whose it will be
        self._put: dict[str, Any] = {}
        self._started = 0
        self._alive = time.monotonic()

    @property
    def cpus(self) -> int:
        """CPUs of the cluster as it is now."""
        return int(self._ray.cluster_resources().get("CPU", 1))

    def start(self) -> int:
        self._started += 1
        worker = self._actor.remote(self._setup)
        self._workers[self._started] = worker
        self._waiting[worker.ready.remote()] = self._started
        return self._started

    def give(self, worker: int, task: Task) -> None:
        self._tasks[worker] = task
        self._waiting[self._workers[worker].run.remote(task)] = worker

    def events(self, timeout_s: float) -> Sequence[WorkerEvent]:
        references = list(self._waiting)
        ready, _ = self._ray.wait(references, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        found = [self._event(reference, self._waiting.pop(reference)) for reference in ready]
        if found or self._tasks:
            self._alive = time.monotonic()
        elif time.monotonic() - self._alive > PATIENCE_S:
            raise SpecError(f"ray: no worker came up in {PATIENCE_S:.0f} s; does the cluster have a free CPU?")
        return [event for event in found if event is not None]

    def _event(self, reference: Any, worker: int) -> WorkerEvent | None:
        errors = self._ray.exceptions
        try:
            done = self._ray.get(reference)
        except errors.RayTaskError:
            raise  # a failure of ours
        except errors.RayError as error:
            self._ray.kill(self._workers.pop(worker))
            self._tasks.pop(worker, None)
            return WorkerEvent(worker, dead=True, why=str(error))
        if done is not None and done.unseen:
            self._hand(worker, done.unseen)
            return None
        self._tasks.pop(worker, None)
        return WorkerEvent(worker, done)

    def _hand(self, worker: int, name: str) -> None:
        """Send a trace that the worker's node does not have, and its task again."""
        if name not in self._put:
            trace = npz.read(npz.find(name), check=False)
            arrays = {key: np.asarray(array) for key, array in trace.arrays().items()}
            self._put[name] = self._ray.put((trace.meta, arrays))
        self._workers[worker].receive.remote(name, self._put[name])
        self.give(worker, self._tasks[worker])

    def close(self) -> None:
        for worker in self._workers.values():
            self._ray.kill(worker)
        self._workers.clear()
        self._ray.shutdown()


def _reach(address: str) -> None:
    """Ray itself tries for minutes. Raises SpecError where nobody listens at HOST:PORT."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), REACH_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise SpecError(f"ray-address: {address}: no cluster there: {error}") from None


def _dashboard(address: str) -> bool | None:
    """None where the cluster is not ours to start: Ray refuses the argument there."""
    return False if address == "local" else None
