"""What ports share whose time is real: memory, the lock, and threads that work off a stream, one job after the other
(the copy engine of the CPU port, and the host's experts)."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from queue import SimpleQueue
from typing import Any, ParamSpec, Self, TypeVar

import torch

from runtime.device.port import NOTHING, TIMEOUT_S, Access, Buffer, Declared, DeviceError, Event

P = ParamSpec("P")
R = TypeVar("R")


class RealPort:
    """See runtime.device.port.Port. torch_threads: of the thread of `host`."""

    name: str
    compute: Any
    link: Any

    def __init__(self, device: torch.device, torch_threads: int, timeout_s: float = TIMEOUT_S) -> None:
        self.device, self.timeout_s = device, timeout_s
        self.lock = threading.Condition(threading.RLock())
        self.failure: str | None = None
        self.buffers: list[Buffer] = []
        self.host = Worker(self, "host", torch_threads)

    def alloc_device(self, nbytes: int, what: str) -> Buffer:
        with failing(f"{what} ({nbytes / 1e9:.2f} GB)"):
            return self.keep(torch.empty(nbytes, dtype=torch.uint8, device=self.device), what)

    def alloc_host(self, nbytes: int, what: str, page_locked: bool = True) -> Buffer:
        """Ordinary memory: nothing can be page-locked without an accelerator that knows how."""
        with failing(f"{what} ({nbytes / 1e9:.2f} GB)"):
            return self.keep(torch.empty(nbytes, dtype=torch.uint8), what)

    def keep(self, memory: torch.Tensor, what: str) -> Buffer:
        """The buffer of this memory, given back when the port is closed at the latest."""
        self.buffers.append(Buffer(memory, what))
        return self.buffers[-1]

    def free(self, buffer: Buffer) -> None:
        buffer.give_back()
        self.buffers.remove(buffer)

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def let_pass(self, ns: int) -> None:
        until = self.now_ns() + ns
        while self.now_ns() < until:
            self.poll()
            give_way()

    def soon(self, call: Callable[[], None]) -> None:
        call()

    def poll(self) -> None:
        """Whoever copies notices."""

    def notify(self) -> None:
        self.lock.notify_all()

    def touch(self, reads: Sequence[Access] = (), writes: Sequence[Access] = ()) -> None:
        """Nothing to do."""

    def fail(self, why: str) -> None:
        """A thread has failed; the first failure is the one that is told."""
        with self.lock:
            self.failure = self.failure or why
            self.lock.notify_all()

    def check(self) -> None:
        """Raises DeviceError when a thread has failed."""
        if self.failure is not None:
            raise DeviceError(self.failure)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """See Port.wait_until; asked again when somebody notifies, and when a thread has done a job."""

        def is_over() -> bool:
            if ready():
                return True
            self.check()
            return False

        with self.lock:
            if not self.lock.wait_for(is_over, self.timeout_s):
                raise self.gave_up()

    def sync(self) -> None:
        for stream in (self.compute, self.link, self.host):
            stream.record().wait()
        self.poll()

    def gave_up(self) -> DeviceError:
        """Of a wait that takes longer than anything should."""
        return DeviceError(f"nothing happened for {self.timeout_s:g} s; gave up waiting")

    def close(self) -> None:
        """See Port.close."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Mark:
    """An event of a worker, or one that is past already."""

    def __init__(self, port: RealPort, ns: int | None = None) -> None:
        self._port, self._ns = port, ns

    def done(self) -> bool:
        return self._ns is not None

    def set(self) -> None:
        """It happens now."""
        with self._port.lock:
            self._ns = time.perf_counter_ns()
            self._port.notify()

    def wait(self) -> None:
        if self._ns is None:
            self._port.wait_until(self.done)

    def time_ns(self) -> int:
        assert self._ns is not None, "asked for the time of what has not happened"
        return self._ns


class Worker(threading.Thread):
    """A stream of jobs. torch's number of threads is a thread's own: with one, the thread that computes keeps its
    core."""

    def __init__(self, port: RealPort, name: str, torch_threads: int) -> None:
        super().__init__(name=name, daemon=True)
        self.port, self.torch_threads = port, torch_threads
        self.jobs: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self.start()

    def run(self) -> None:
        torch.set_num_threads(self.torch_threads)
        try:
            with torch.inference_mode():
                while (job := self.jobs.get()) is not None:
                    job()
                    with self.port.lock:
                        self.port.notify()
        except BaseException as error:
            self.port.fail(f"the {self.name} thread failed: {type(error).__name__}: {first_line(error)}")

    def launch(self, work: Callable[[], Any], declared: Declared = NOTHING) -> None:
        self.port.check()
        self.jobs.put(work)

    def record(self) -> Event:
        mark = Mark(self.port)
        self.jobs.put(mark.set)
        return mark

    def wait(self, event: Event) -> None:
        if not event.done():
            self.jobs.put(event.wait)

    def stop(self, seconds: float = 5.0) -> None:
        """Finish what is queued and end; a thread that does not within `seconds` is left to the process's end."""
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
