"""The CPU as a device, and devices of one stream: kernels run in the thread that launches them.

The CPU's copy engine is a worker thread, and its copies are real: bytes move from the host's copy of an expert into its
slot. Then the thread waits until as much time has passed as a link of `link_gbps` would take (and `link_latency_us`
before a copy on an idle link), so that copy and compute can stand to each other as on a GPU machine. It sleeps for most
of that and looks at the clock for the last SPIN_NS, which keeps the pace to some microseconds and leaves the core to
the thread that computes. A pace that the memory cannot keep is not kept: `facts` says how many copies fell behind and
by how much.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from runtime.device.host_memory import host_bytes
from runtime.device.port import NOTHING, TIMEOUT_S, Declared, Event, Landed, Parts
from runtime.device.worker import Mark, RealPort, Worker, failing, give_way
from traces.errors import UserError

SPIN_NS = 120_000  # sleeping is late by up to about this much


class HostCopy(Mark):
    """A copy that the host makes, or several as one; it is to last `ns` at least."""

    def __init__(self, port: RealPort, parts: Parts, landed: Landed | None, ns: int = 0) -> None:
        super().__init__(port)
        self.parts, self.landed, self.ns = parts, landed, ns
        self.started_ns: int | None = None

    def declare(self, ns: int) -> None:
        """It lasts what it lasts."""

    def move(self) -> None:
        """The bytes."""
        for dst, src in self.parts:
            dst.copy_(src)

    def tell(self) -> None:
        """It has landed."""
        if self.landed is not None and self.started_ns is not None:
            self.landed(self.started_ns, self.time_ns())


class PacedLink(Worker):
    """The copy engine of the CPU."""

    def __init__(self, port: RealPort, gbps: float, latency_ns: int) -> None:
        self.gbps, self.latency_ns = gbps, latency_ns
        self.under_way, self.copies, self.behind, self.behind_ns = 0, 0, 0, 0
        super().__init__(port, "link", 1)

    def copy(
        self, dst: torch.Tensor, src: torch.Tensor, landed: Landed | None = None, declared: Declared = NOTHING
    ) -> HostCopy:
        return self.transfer([(dst, src)], landed, declared)

    def transfer(self, parts: Parts, landed: Landed | None = None, declared: Declared = NOTHING) -> HostCopy:
        self.port.check()
        with self.port.lock:
            follows, self.under_way = self.under_way > 0, self.under_way + 1
        nbytes = sum(src.numel() * src.element_size() for _, src in parts)
        job = HostCopy(self.port, parts, landed, int(nbytes / self.gbps) + (0 if follows else self.latency_ns))
        self.jobs.put(lambda: self._run(job))
        return job

    def _run(self, job: HostCopy) -> None:
        job.started_ns = start = time.perf_counter_ns()
        job.move()
        late = time.perf_counter_ns() - (start + job.ns)
        self.copies += 1
        if late > 0:
            self.behind, self.behind_ns = self.behind + 1, self.behind_ns + late
        sleep_until(start + job.ns)
        with self.port.lock:
            self.under_way -= 1
            job.set()
        job.tell()


class HostStream:
    """The stream of what runs where it is launched; the host waits for it (`settle`).

    Copies are put off until a launch or a wait, because whoever asks for one may hold the lock."""

    def __init__(self, port: RealPort, settle: Callable[[], None]) -> None:
        self.port, self.settle = port, settle
        self.queue: deque[HostCopy] = deque()

    def launch(self, work: Callable[[], Any], declared: Declared = NOTHING) -> None:
        self.port.check()
        with failing("the device"):
            work()
            self.settle()
        self.work_off()

    def copy(
        self, dst: torch.Tensor, src: torch.Tensor, landed: Landed | None = None, declared: Declared = NOTHING
    ) -> HostCopy:
        return self.transfer([(dst, src)], landed, declared)

    def transfer(self, parts: Parts, landed: Landed | None = None, declared: Declared = NOTHING) -> HostCopy:
        self.queue.append(HostCopy(self.port, parts, landed))
        return self.queue[-1]

    def work_off(self) -> None:
        """Run what is queued, also what landings queue."""
        while self.queue:
            copy = self.queue.popleft()
            copy.started_ns = time.perf_counter_ns()
            with failing("a copy"):
                copy.move()
                self.settle()
            copy.set()
            copy.tell()

    def record(self) -> Event:
        self.work_off()
        return Mark(self.port, time.perf_counter_ns())

    def wait(self, event: Event) -> None:
        if not event.done():  # of a copy that is put off
            self.work_off()
        event.wait()


class HostPort(RealPort):
    """What ports share whose kernels run, and are waited for, where they are launched. settle: waits for the device."""

    def __init__(
        self, device: torch.device, torch_threads: int, timeout_s: float, settle: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(device, torch_threads, timeout_s)
        self.name = device.type
        self.compute = HostStream(self, settle)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        self.compute.work_off()
        super().wait_until(ready)

    def free_bytes(self) -> int:
        return host_bytes()

    def close(self) -> None:
        self.compute.queue.clear()
        self.host.stop()
        for buffer in list(self.buffers):
            self.free(buffer)


class OneStreamPort(HostPort):
    """A device without streams to speak of (MPS, as torch has it), which does one thing at a time: right, and without
    overlap. Also a CPU that copies where it is told to, without a pace."""

    def __init__(self, device: torch.device, timeout_s: float = TIMEOUT_S) -> None:
        settle: Callable[[], None] = (lambda: None) if device.type == "cpu" else torch.accelerator.synchronize
        super().__init__(device, max(1, (os.cpu_count() or 1) - 1), timeout_s, settle)
        self.link = self.compute

    def facts(self) -> dict[str, Any]:
        """That there is one stream."""
        return {"name": self.name, "what": f"{self.device.type}, one stream, no overlap", "torch": torch.__version__}


class CpuPort(HostPort):
    """The CPU, and a paced thread for its link. torch computes with one thread while the port is open."""

    def __init__(self, link_gbps: float = 25.0, link_latency_us: float = 10.0, timeout_s: float = TIMEOUT_S) -> None:
        if not link_gbps > 0 or not link_latency_us >= 0:
            wrong = f"{link_gbps:g} GB/s after {link_latency_us:g} us"
            raise UserError(f"link: {wrong}: must be above 0, and not below 0")
        self._torch_threads: int | None = torch.get_num_threads()
        torch.set_num_threads(1)
        super().__init__(torch.device("cpu"), 1, timeout_s)
        self.link = PacedLink(self, link_gbps, round(link_latency_us * 1e3))

    def facts(self) -> dict[str, Any]:
        """Pace of the link as asked and as kept."""
        link = self.link
        return {
            "name": self.name,
            "what": "torch on the CPU, 1 thread; the link is a paced thread",
            "torch": torch.__version__,
            "link_gb_per_s": link.gbps,
            "link_latency_ns": link.latency_ns,
            "copies": link.copies,
            "copies_behind_pace": link.behind,
            "mean_behind_ns": link.behind_ns // max(1, link.behind),
            "page_locked": False,
        }

    def close(self) -> None:
        self.link.stop()
        super().close()
        if self._torch_threads is not None:
            torch.set_num_threads(self._torch_threads)
            self._torch_threads = None


def sleep_until(end_ns: int) -> None:
    """Sleep, then watch the clock; between two looks others may have the interpreter."""
    while (left := end_ns - time.perf_counter_ns()) > 0:
        if left > SPIN_NS:
            time.sleep((left - SPIN_NS) / 1e9)
        else:
            give_way()
