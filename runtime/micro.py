"""Microbenchmarks, as a cross-check beside what was measured in place: never part of a hardware file's terms.

They say what the parts take alone. In place the same parts take longer, because the host waits for each before it
decides: the difference is what an engine with a readback pays.
"""

import statistics
import threading
from collections.abc import Callable
from typing import Any

import torch

SIZES = tuple(2**power for power in range(12, 27, 2))  # 4 KiB to 64 MiB
REPEATS = 9


def microbenchmarks(port: Any, bench: Any) -> dict[str, str]:
    """Each in one line of words: copies by size, page-locked and not, both ways; one expert by tokens; one launch."""
    out = {}
    sizes = [size for size in SIZES if size <= max(SIZES[0], 4 * bench.expert_bytes)]
    for way, name in ((True, "to the device"), (False, "to the host")):
        for locked in (True, False):
            rates = [(size, size / copy_ns(port, size, way, locked)) for size in sizes]
            label = f"copies {name}, {'page-locked' if locked else 'pageable'}"
            out[label] = ", ".join(f"{size >> 10} KiB {rate:.2f} GB/s" for size, rate in rates)
    out["one expert"] = ", ".join(f"{n} tokens {expert_ns(port, bench, n) / 1e3:.1f} us" for n in (1, 2, 4, 16, 64))
    out["one launch"] = f"{launch_ns(port, lambda: None) / 1e3:.1f} us from the launch until the host has seen its end"
    return out


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
