"""A stream that a thread works off, one job after the other: the copy engine of the CPU port, and the host's
experts."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

import torch

from runtime.device.port import TIMEOUT_S, Access, Buffer, Copy, DeviceError, Event, Landed

Job = Callable[[], None]
P = ParamSpec("P")
R = TypeVar("R")
SLICE_S = 0.2  # how often a waiting host looks whether the thread it waits for is still alive


class Threads:
    """What the threads of a port share: the lock, what went wrong, and waiting with a limit."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.condition = threading.Condition(threading.RLock())
        self.failure: str | None = None
        self.closing = False
        self.workers: list[Worker] = []
        self.timeout_s = timeout_s

    def fail(self, why: str) -> None:
        """The first failure is the one that is told."""
        with self.condition:
            self.failure = self.failure or why
            self.condition.notify_all()

    def check(self) -> None:
        """Raises DeviceError when a thread has failed or died."""
        for worker in self.workers:
            if not worker.is_alive() and not self.closing:
                self.failure = self.failure or f"the {worker.name} thread died"
        if self.failure is not None:
            raise DeviceError(self.failure)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """See Port.wait_until."""
        end = time.monotonic() + self.timeout_s
        with self.condition:
            while not ready():
                self.check()
                if time.monotonic() > end:
                    raise DeviceError(f"nothing happened for {self.timeout_s:g} s; gave up waiting")
                self.condition.wait(SLICE_S)


class Mark:
    """An event of a worker, or one that is past already."""

    def __init__(self, threads: Threads, ns: int | None = None) -> None:
        self._threads = threads
        self._ns = ns

    def done(self) -> bool:
        return self._ns is not None

    def set(self) -> None:
        """It happens now."""
        with self._threads.condition:
            self._ns = time.perf_counter_ns()
            self._threads.condition.notify_all()

    def wait(self) -> None:
        if self._ns is None:
            self._threads.wait_until(self.done)

    def time_ns(self) -> int:
        assert self._ns is not None, "asked for the time of what has not happened"
        return self._ns


class Worker(threading.Thread):
    """A stream of jobs. torch's number of threads is a thread's own: with one, the thread that computes keeps its
    core."""

    def __init__(self, threads: Threads, name: str, torch_threads: int) -> None:
        super().__init__(name=name, daemon=True)
        self.threads, self.torch_threads = threads, torch_threads
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        threads.workers.append(self)
        self.start()

    def run(self) -> None:
        torch.set_num_threads(self.torch_threads)
        try:
            with torch.inference_mode():
                while (job := self.jobs.get()) is not None:
                    job()
        except BaseException as error:
            self.threads.fail(f"the {self.name} thread failed: {type(error).__name__}: {first_line(error)}")

    def launch(
        self, work: Callable[[], Any], planned_ns: int = 0, reads: Sequence[Access] = (), writes: Sequence[Access] = ()
    ) -> None:
        self.threads.check()
        self.jobs.put(work)

    def copy(
        self,
        dst: torch.Tensor,
        src: torch.Tensor,
        landed: Landed | None = None,
        planned_ns: int = 0,
        gap_ns: int = 0,
        reads: Sequence[Access] = (),
        writes: Sequence[Access] = (),
    ) -> Copy:
        raise NotImplementedError(f"{self.name} is no link")

    def record(self) -> Event:
        mark = Mark(self.threads)
        self.jobs.put(mark.set)
        return mark

    def wait(self, event: Event) -> None:
        if not event.done():
            self.jobs.put(event.wait)

    def stop(self, seconds: float = 5.0) -> None:
        """Finish what is queued and end; a thread that does not within `seconds` is left to the process's end."""
        self.threads.closing = True
        self.jobs.put(None)
        if threading.current_thread() is not self:
            self.join(seconds)


def give_way() -> None:
    """Let whoever waits for the interpreter or the core go on: about a microsecond, where time.sleep(0) takes 60 to 70
    (CPython 3.11 to 3.13 on Linux: gh-125997)."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0)


@contextmanager
def failing(what: str) -> Iterator[None]:
    """What torch raises of a device, as DeviceError with its first line."""
    try:
        yield
    except RuntimeError as error:
        raise told(what, error) from None


def told(what: str, error: RuntimeError) -> DeviceError:
    """What torch raised, as DeviceError with its first line."""
    if isinstance(error, DeviceError):
        return error
    memory = "out of device memory: " if isinstance(error, torch.OutOfMemoryError) else ""
    return DeviceError(f"{what}: {memory}{first_line(error)}")


def asks_device(method: Callable[P, R]) -> Callable[P, R]:
    """A call that may find the device gone, and that is made too often for `failing`."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except RuntimeError as error:
            raise told("the device", error) from None

    return call


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def give_back(buffer: Buffer) -> None:
    """Drop a buffer's memory, once."""
    if buffer.freed:
        raise DeviceError(f"double free of {buffer.what}")
    buffer.freed = True
    buffer.tensor = torch.empty(0, dtype=torch.uint8)
