"""A device without streams to speak of (MPS, as torch has it): it does one thing at a time."""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from runtime.device.cpu import HostPort, Now, PacedCopy
from runtime.device.port import Access, Event, Landed
from runtime.device.worker import Threads, failing

Sequences = Sequence[Access]


class SynchronousStream(Now):
    """Work runs where it is launched, and the host waits for it: of a device that has no streams to speak of (MPS).

    Copies are put off until a launch or a wait, because whoever asks for one holds the lock."""

    def __init__(self, threads: Threads, settle: Callable[[], None]) -> None:
        super().__init__(threads)
        self.settle = settle
        self.queue: deque[tuple[PacedCopy, torch.Tensor, torch.Tensor]] = deque()

    def launch(
        self, work: Callable[[], Any], planned_ns: int = 0, reads: Sequences = (), writes: Sequences = ()
    ) -> None:
        self.threads.check()
        with failing("the device"):
            work()
            self.settle()
        self.work_off()

    def copy(
        self,
        dst: torch.Tensor,
        src: torch.Tensor,
        landed: Landed | None = None,
        planned_ns: int = 0,
        gap_ns: int = 0,
        reads: Sequences = (),
        writes: Sequences = (),
    ) -> PacedCopy:
        copy = PacedCopy(self.threads, 0, landed)
        self.queue.append((copy, dst, src))
        return copy

    def work_off(self) -> None:
        """Run what is queued, also what landings queue."""
        while self.queue:
            copy, dst, src = self.queue.popleft()
            copy.started_ns = time.perf_counter_ns()
            with failing("a copy"):
                dst.copy_(src)
                self.settle()
            copy.set()
            if copy.landed is not None:
                copy.landed(copy.started_ns, copy.time_ns())

    def record(self) -> Event:
        self.work_off()
        return super().record()

    def wait(self, event: Event) -> None:
        if not event.done():  # of a copy that is put off
            self.work_off()
        event.wait()


class OneStreamPort(HostPort):
    """A device that does one thing at a time: right, and without overlap."""

    def __init__(self, device: torch.device, timeout_s: float | None = None) -> None:
        super().__init__(device, timeout_s, max(1, (os.cpu_count() or 1) - 1))
        settle: Callable[[], None] = (lambda: None) if device.type == "cpu" else torch.accelerator.synchronize
        self.compute = self.link = SynchronousStream(self.threads, settle)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        self.compute.work_off()
        super().wait_until(ready)

    def sync(self) -> None:
        self.compute.work_off()
        super().sync()

    def facts(self) -> dict[str, Any]:
        """That there is one stream."""
        return {"name": self.name, "what": f"{self.device.type}, one stream, no overlap", "torch": torch.__version__}

    def close(self) -> None:
        self.compute.queue.clear()
        super().close()
