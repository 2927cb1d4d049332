"""The CPU as a device: kernels run in the thread that launches them, a worker thread is the copy engine.

The copies are real: bytes move from the host's copy of an expert into its slot. Then the thread waits until as much
time has passed as a link of `link_gbps` would take (and `link_latency_us` before a copy on an idle link), so that copy
and compute can stand to each other as on a GPU machine. It sleeps for most of that and looks at the clock for the last
SPIN_NS, which keeps the pace to some microseconds and leaves the core to the thread that computes. A pace that the
memory cannot keep is not kept: `facts` says how many copies fell behind and by how much.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from runtime.device.port import Access, Buffer, DeviceMissing, Event, Landed
from runtime.device.worker import Mark, Threads, Worker, failing, give_back, give_way

SPIN_NS = 120_000  # sleeping is late by up to about this much
Sequences = Sequence[Access]


class PacedCopy(Mark):
    """A copy that is to last `ns`."""

    def __init__(self, threads: Threads, ns: int, landed: Landed | None) -> None:
        super().__init__(threads)
        self.ns, self.landed = ns, landed
        self.started_ns: int | None = None


class Link(Worker):
    """The copy engine."""

    def __init__(self, threads: Threads, gbps: float, latency_ns: int) -> None:
        self.gbps, self.latency_ns = gbps, latency_ns
        self.under_way, self.copies, self.behind, self.behind_ns = 0, 0, 0, 0
        super().__init__(threads, "link", 1)

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
        self.threads.check()
        with self.threads.condition:
            follows, self.under_way = self.under_way > 0, self.under_way + 1
        nbytes = src.numel() * src.element_size()
        job = PacedCopy(self.threads, int(nbytes / self.gbps) + (0 if follows else self.latency_ns), landed)
        self.jobs.put(lambda: self._run(job, dst, src))
        return job

    def _run(self, job: PacedCopy, dst: torch.Tensor, src: torch.Tensor) -> None:
        job.started_ns = start = time.perf_counter_ns()
        dst.copy_(src)
        late = time.perf_counter_ns() - (start + job.ns)
        self.copies += 1
        if late > 0:
            self.behind, self.behind_ns = self.behind + 1, self.behind_ns + late
        sleep_until(start + job.ns)
        with self.threads.condition:
            self.under_way -= 1
            job.set()
        if job.landed is not None:
            job.landed(start, job.time_ns())


class Now:
    """The stream of what runs where it is launched."""

    def __init__(self, threads: Threads) -> None:
        self.threads = threads

    def launch(
        self, work: Callable[[], Any], planned_ns: int = 0, reads: Sequences = (), writes: Sequences = ()
    ) -> None:
        self.threads.check()
        with failing("the device"):
            work()

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
        job = PacedCopy(self.threads, 0, landed)
        job.started_ns = time.perf_counter_ns()
        dst.copy_(src)
        job.set()
        if landed is not None:
            landed(job.started_ns, job.time_ns())
        return job

    def record(self) -> Event:
        return Mark(self.threads, time.perf_counter_ns())

    def wait(self, event: Event) -> None:
        event.wait()


class HostPort:
    """What ports share whose kernels run, and are waited for, where they are launched. See runtime.device.port.Port."""

    link: Any

    def __init__(self, device: torch.device, timeout_s: float | None, torch_threads: int) -> None:
        self.device, self.name = device, device.type
        self.threads = Threads() if timeout_s is None else Threads(timeout_s)
        self.lock = self.threads.condition
        self.host = Worker(self.threads, "host", torch_threads)
        self.buffers: list[Buffer] = []

    def alloc_device(self, nbytes: int, what: str) -> Buffer:
        with failing(f"{what} ({nbytes / 1e9:.2f} GB)"):
            self.buffers.append(Buffer(torch.empty(nbytes, dtype=torch.uint8, device=self.device), what))
        return self.buffers[-1]

    def alloc_host(self, nbytes: int, what: str, page_locked: bool = True) -> Buffer:
        """Ordinary memory: nothing can be page-locked without an accelerator that knows how."""
        with failing(f"{what} ({nbytes / 1e9:.2f} GB)"):
            self.buffers.append(Buffer(torch.empty(nbytes, dtype=torch.uint8), what))
        return self.buffers[-1]

    def free(self, buffer: Buffer) -> None:
        give_back(buffer)
        self.buffers.remove(buffer)

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def soon(self, call: Callable[[], None]) -> None:
        call()

    def poll(self) -> None:
        """Whoever copies notices."""

    def notify(self) -> None:
        self.threads.condition.notify_all()

    def wait_until(self, ready: Callable[[], bool]) -> None:
        self.threads.wait_until(ready)

    def touch(self, reads: Sequences = (), writes: Sequences = ()) -> None:
        """Nothing to do."""

    def sync(self) -> None:
        for worker in self.threads.workers:
            worker.record().wait()

    def free_bytes(self) -> int:
        return host_bytes()

    def close(self) -> None:
        for worker in self.threads.workers:
            worker.stop()
        for buffer in list(self.buffers):
            self.free(buffer)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CpuPort(HostPort):
    """The CPU, and a paced thread for its link. torch computes with one thread while the port is open."""

    def __init__(self, link_gbps: float = 25.0, link_latency_us: float = 10.0, timeout_s: float | None = None) -> None:
        if not link_gbps > 0 or not link_latency_us >= 0:
            wrong = f"{link_gbps:g} GB/s after {link_latency_us:g} us"
            raise DeviceMissing(f"link: {wrong}: must be above 0, and not below 0")
        self._torch_threads: int | None = torch.get_num_threads()
        torch.set_num_threads(1)
        super().__init__(torch.device("cpu"), timeout_s, 1)
        self.link = Link(self.threads, link_gbps, round(link_latency_us * 1e3))
        self.compute = Now(self.threads)

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


def host_bytes() -> int:
    """Memory that this process can still have: what the system has to give, and what a control group leaves."""
    left = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 62
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        left = int(lines.get("MemAvailable", f"{left // 1024} kB").split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
        stat = dict(line.split() for line in used.with_name("memory.stat").read_text().splitlines())
        left = min(left, int(most) - int(used.read_text()) + int(stat.get("inactive_file", 0)))
    return left
