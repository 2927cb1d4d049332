"""Microbenchmarks, as a cross-check beside what was measured in place: never part of a hardware file's terms.

They say what the parts take alone. In place the same parts take longer, because the host waits for each before it
decides: the difference is what an engine with a readback pays. Two of them are used: no transfer of a fit may be faster
than the bare copies of an expert (runtime.measuring.terms), and what an expert keeps the GPU busy stands beside what
the host takes for it, because a replay in Python whose experts are small measures the host.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, pairwise
from typing import Any

import numpy as np
import torch

from runtime.measuring import durations
from runtime.measuring.durations import TimedRun
from runtime.measuring.fits import hats, robust
from runtime.measuring.rounds import Deadline
from runtime.measuring.table import said, tokens_of
from runtime.replaying.lockstep import check

SIZES = tuple(2**power for power in range(12, 27, 2))  # 4 KiB to 64 MiB
REPEATS = 9
BURSTS, BURSTS_NS, BURST = 5, 20_000_000, 4  # of bare copies at least, for so long at least, and copies in each
TOKENS = (1, 4, 16, 64, 256)  # of one expert
LAUNCHES = 8  # in a row
LEADS = tuple(2**power for power in range(20, 33))  # bytes of the copies that they are queued behind: 1 MiB to 4 GiB


def microbenchmarks(port: Any, bench: Any, run: TimedRun, deadline: Deadline) -> tuple[dict[str, str], dict[str, Any]]:
    """One expert by tokens; one launch; the core's decisions; copies by size, page-locked and not, both ways, as far as
    the time does (a copy by size is none of an expert, and takes longest): (each result in one line; the bare
    page-locked copies to the device as a [link] table of a hardware file, its set-up inside the curve, empty where
    nothing was measured)."""
    words = {f"one expert, {tokens_of(kernel)}": said(kernel) for kernel in bench.kernels(TOKENS)}
    words["one launch"] = f"{launch_ns(port, lambda: None) / 1e3:.1f} us until the host has seen its end"
    words["the core alone"] = f"{core_ns(run) / 1e3:.1f} us a visit: its decisions, landings and ends, without a device"
    sizes = [size for size in SIZES if size <= max(SIZES[1], 4 * bench.expert_bytes)]
    link: dict[str, Any] = {}
    for to_device in (True, False):
        for locked in (True, False):
            name = f"copies to the {'device' if to_device else 'host'}, {'page-locked' if locked else 'pageable'}"
            if deadline.left_s <= 0:
                words[name] = "not measured: no time was left"
                continue
            times = [copy_ns(port, size, to_device, locked) for size in sizes]
            words[name] = _copies(sizes, times)
            link = link or {"curve": curve(sizes, times), "setup_ns": 0, "source": f"runtime.calibrate: {name}"}
    return words, link


# --- copies -----------------------------------------------------------------------------------------------------------


def bare_copies(port: Any, store: Any) -> tuple[int, int]:
    """ns of a bare copy of one expert into a slot, (on an idle link, behind another copy, which takes no longer): of
    several bursts the fastest, so that a machine that is disturbed does not raise it."""
    began_ns = port.now_ns()
    bursts: list[list[tuple[int, int]]] = []
    while len(bursts) < BURSTS or port.now_ns() - began_ns < BURSTS_NS:
        bursts.append(_burst(port, store))
    idle = min(copies[0][1] - copies[0][0] for copies in bursts)
    return idle, min(idle, *(b - a for copies in bursts for (_, a), (_, b) in pairwise(copies)))


def _burst(port: Any, store: Any) -> list[tuple[int, int]]:
    """(started, landed) of copies given to an idle link at once."""
    port.sync()
    times: list[tuple[int, int]] = []
    for i in range(BURST):
        slot = i % len(store.slot_bytes)
        store.fetch(i % store.full, slot, lambda started_ns, landed_ns: times.append((started_ns, landed_ns)))
    port.wait_until(lambda: len(times) == BURST)
    return times


def _copies(sizes: Sequence[int], times: Sequence[float]) -> str:
    latency, per_byte = robust(np.column_stack([np.ones(len(sizes)), sizes]), np.array(times, np.float64))
    rates = ", ".join(f"{size >> 10} KiB {size / ns:.2f} GB/s" for size, ns in zip(sizes, times, strict=True))
    whole = f"{1 / per_byte:.2f} GB/s" if per_byte > 0 else "any number of bytes"
    return f"{latency / 1e3:.1f} us and then {whole}: {rates}"


def curve(sizes: Sequence[int], times: Sequence[float]) -> list[list[float]]:
    """[bytes, GB/s] points of times ns that never fall with the size."""
    rising = np.maximum.accumulate(np.asarray(times, np.float64))
    return [[float(size), float(size / ns)] for size, ns in zip(sizes, rising, strict=True)]


def core_ns(run: TimedRun) -> float:
    """Median ns that the core takes a visit to decide a recorded run again."""
    times = []
    for _ in range(3):
        began = time.perf_counter_ns()
        check(run.setting.plan, run.record)
        times.append((time.perf_counter_ns() - began) / len(run.record.groups["visits"]["step"]))
    return float(statistics.median(times))


def copy_ns(port: Any, size: int, to_device: bool, page_locked: bool) -> float:
    """Median ns of a copy of `size` bytes on an idle link, from when it began until it had ended."""
    with _buffers(port, size, page_locked) as (device, host):
        dst, src = (device, host) if to_device else (host, device)
        return float(statistics.median(_one_copy(port, dst, src) for _ in range(REPEATS)))


@contextmanager
def _buffers(port: Any, size: int, page_locked: bool = True) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """So many bytes on the device and on the host, given back at the end."""
    device = port.alloc_device(size, "a microbenchmark")
    host = port.alloc_host(size, "a microbenchmark", page_locked)
    try:
        yield device.tensor, host.tensor
    finally:
        port.sync()
        port.free(device)
        port.free(host)


def _one_copy(port: Any, dst: torch.Tensor, src: torch.Tensor) -> int:
    """ns of one copy; waits for it."""
    ended, times = threading.Event(), [0]

    def landed(started_ns: int, landed_ns: int) -> None:
        times[0] = max(1, landed_ns - started_ns)
        ended.set()

    port.link.copy(dst, src, landed)
    port.wait_until(ended.is_set)
    return times[0]


# --- kernels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """One expert on so many tokens, in ns. device_ns: how long the device is busy; host_ns: what the host needs to
    launch it; seen_ns: from its launch until the host has seen its end. ahead: whether the host was ahead of the device
    while device_ns was measured; a device whose kernels run where they are launched never lets it be, and device_ns is
    host_ns there."""

    tokens: int
    device_ns: float
    host_ns: float
    seen_ns: float
    ahead: bool


def kernels(port: Any, store: Any, tokens: Sequence[int]) -> list[dict[str, Any]]:
    """A Kernel, as a dict, for each number of tokens; from one slot after the other, whose bytes no cache then holds
    from the launch before."""
    return [asdict(kernel(port, store, n)) for n in tokens]


def kernel(port: Any, store: Any, tokens: int) -> Kernel:
    """One expert on so many tokens; medians."""
    from runtime.replaying.layers import expert

    x = torch.ones((tokens, store.layout.hidden), dtype=store.layout.dtype, device=port.device)
    works = [lambda w=weights: expert(x, w) for weights in store.slot_weights[:LAUNCHES]]
    with torch.inference_mode(), _buffers(port, SIZES[-1]) as (device, host):
        turns = cycle(works)
        seen = launch_ns(port, lambda: next(turns)())
        found = [_in_a_row(port, works, device, host) for _ in range(REPEATS)]
    device_ns, host_ns = (float(statistics.median(times)) for times in list(zip(*found, strict=True))[:2])
    ahead = all(f[2] for f in found)
    return Kernel(tokens, device_ns if ahead else host_ns, host_ns, seen, ahead)


def _in_a_row(
    port: Any, works: Sequence[Callable[[], Any]], device: torch.Tensor, host: torch.Tensor
) -> tuple[float, float, bool]:
    """(ns of the device, ns of the host, whether the host was ahead) of one of LAUNCHES launches, which wait on the
    device for copies, of so many bytes that the last launch comes before the last copy has landed."""
    for nbytes in LEADS:
        size = min(nbytes, len(host))
        last = [port.link.copy(device[:size], host[:size]) for _ in range(nbytes // size)][-1]
        port.compute.wait(last)
        runs_there = last.done()  # the wait was the host's: kernels run where they are launched
        begin, began_ns = port.compute.record(), port.now_ns()
        for i in range(LAUNCHES):
            port.compute.launch(works[i % len(works)])
        host_ns, ahead = port.now_ns() - began_ns, not last.done()
        end = port.compute.record()
        end.wait()
        if ahead or runs_there:
            break
    return (end.time_ns() - begin.time_ns()) / LAUNCHES, host_ns / LAUNCHES, ahead


def gpu_busy_ns(run: TimedRun, found: Sequence[dict[str, Any]]) -> float:
    """ns per token that the experts of a run's counted steps keep the device busy, each executed alone: device_ns at
    its number of tokens, on straight lines between those that were measured."""
    done, visits = run.record.groups["executions"], run.record.groups["visits"]
    counted = (done["cpu"] == 0) & (visits["step"][done["visit"]] >= run.record.warmup_steps)
    each = hats(done["tokens"][counted], [k["tokens"] for k in found]) @ [k["device_ns"] for k in found]
    return float(each.sum()) / durations.rows_done(run)


def launch_ns(port: Any, work: Callable[[], Any]) -> float:
    """Median ns from a launch until the host has seen its end."""
    times = []
    with torch.inference_mode():
        for _ in range(REPEATS):
            began = port.now_ns()
            port.compute.launch(work)
            port.compute.record().wait()
            times.append(port.now_ns() - began)
    return float(statistics.median(times))
