"""Microbenchmarks, as a cross-check beside what was measured in place: never part of a hardware file's terms.

They say what the parts take alone. In place the same parts take longer, because the host waits for each before it
decides: the difference is what an engine with a readback pays.
"""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from runtime.fits import robust
from runtime.lockstep import check
from runtime.observe import Run

SIZES = tuple(2**power for power in range(12, 27, 2))  # 4 KiB to 64 MiB
REPEATS = 9


@dataclass(frozen=True)
class Micro:
    """words: each result in one line. link: the bare page-locked copies to the device as a [link] table of a hardware
    file, its set-up inside the curve; empty where nothing was measured."""

    words: dict[str, str]
    link: dict[str, Any]


def microbenchmarks(port: Any, bench: Any, run: Run) -> Micro:
    """Copies by size, page-locked and not, both ways; one expert by tokens; one launch; the core's decisions."""
    words: dict[str, str] = {}
    sizes = [size for size in SIZES if size <= max(SIZES[1], 4 * bench.expert_bytes)]
    link: dict[str, Any] = {}
    for to_device in (True, False):
        for locked in (True, False):
            times = [copy_ns(port, size, to_device, locked) for size in sizes]
            name = f"copies to the {'device' if to_device else 'host'}, {'page-locked' if locked else 'pageable'}"
            words[name] = _copies(sizes, times)
            link = link or {"curve": curve(sizes, times), "setup_ns": 0, "source": f"runtime.calibrate: {name}"}
    words["one expert"] = ", ".join(f"{n} tokens {expert_ns(port, bench, n) / 1e3:.1f} us" for n in (1, 2, 4, 16, 64))
    words["one launch"] = f"{launch_ns(port, lambda: None) / 1e3:.1f} us until the host has seen its end"
    words["the core alone"] = f"{core_ns(run) / 1e3:.1f} us a visit: its decisions, landings and ends, without a device"
    return Micro(words, link)


def _copies(sizes: Sequence[int], times: Sequence[float]) -> str:
    latency, per_byte = robust(np.column_stack([np.ones(len(sizes)), sizes]), np.array(times, np.float64))
    rates = ", ".join(f"{size >> 10} KiB {size / ns:.2f} GB/s" for size, ns in zip(sizes, times, strict=True))
    whole = f"{1 / per_byte:.2f} GB/s" if per_byte > 0 else "any number of bytes"
    return f"{latency / 1e3:.1f} us and then {whole}: {rates}"


def curve(sizes: Sequence[int], times: Sequence[float]) -> list[list[float]]:
    """[bytes, GB/s] points of times ns that never fall with the size."""
    rising = np.maximum.accumulate(np.asarray(times, np.float64))
    return [[float(size), float(size / ns)] for size, ns in zip(sizes, rising, strict=True)]


def core_ns(run: Run) -> float:
    """Median ns that the core takes a visit to decide a recorded run again."""
    times = []
    for _ in range(3):
        began = time.perf_counter_ns()
        check(run.setting.plan, run.record)
        times.append((time.perf_counter_ns() - began) / len(run.record.groups["visits"]["step"]))
    return float(statistics.median(times))


def copy_ns(port: Any, size: int, to_device: bool, page_locked: bool) -> float:
    """Median ns of a copy of `size` bytes on an idle link, from when it began until it had ended."""
    device = port.alloc_device(size, "a microbenchmark")
    host = port.alloc_host(size, "a microbenchmark", page_locked)
    dst, src = (device, host) if to_device else (host, device)
    try:
        times = [_one_copy(port, dst.tensor, src.tensor) for _ in range(REPEATS)]
    finally:
        port.sync()
        port.free(device)
        port.free(host)
    return float(statistics.median(times))


def _one_copy(port: Any, dst: torch.Tensor, src: torch.Tensor) -> int:
    """ns of one copy; waits for it."""
    ended, times = threading.Event(), [0]

    def landed(started_ns: int, landed_ns: int) -> None:
        times[0] = max(1, landed_ns - started_ns)
        ended.set()

    port.link.copy(dst, src, landed)
    port.wait_until(ended.is_set)
    return times[0]


def expert_ns(port: Any, bench: Any, tokens: int) -> float:
    """Median ns of one expert from slot 0 on so many tokens, from its launch until the host has seen its end."""
    from runtime.layers import expert

    weights, layout = bench.store.slot_weights[0], bench.store.layout
    x = torch.ones((tokens, layout.hidden), dtype=layout.dtype, device=port.device)
    return launch_ns(port, lambda: expert(x, weights))


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
