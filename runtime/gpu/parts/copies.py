"""python -m runtime.gpu.parts.copies cuda|cpu: bare copies by size and kind of host memory, both ways.

Into copies.json. Kinds: page-locked by registering ordinary memory (what the port does with experts), page-locked by
torch's own allocator, pageable. Times are the device's, between two events around the copy. On a GPU also whether a
kernel that reads device memory is slower beside a copy, which the simulator says it is not.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from runtime.device.accelerator import cudart, own_pages
from traces.command import write_bytes

SIZES = {  # bytes; the 17 and 352 MB are an expert of DeepSeek-V2-Lite and of Mixtral in bf16
    "cuda": (4 << 10, 64 << 10, 1 << 20, 4 << 20, 17_301_504, 64 << 20, 352_321_536, 1 << 30),
    "cpu": (4 << 10, 64 << 10, 1 << 20),
}
MANY, FEW, LARGE = 9, 4, 1 << 27  # repeats, and from how many bytes there are few
READ_BYTES, READS, COPY_BYTES, COPIES = 1 << 31, 20, 1 << 30, 2  # of kernels beside copies


@contextmanager
def registered(nbytes: int) -> Iterator[torch.Tensor]:
    """uint8 [nbytes] in pages of its own, page-locked until they are given back. Raises DeviceError."""
    memory = torch.frombuffer(own_pages(nbytes), dtype=torch.uint8)
    cudart("cudaHostRegister", memory.data_ptr(), nbytes, 0)
    try:
        yield memory
    finally:
        cudart("cudaHostUnregister", memory.data_ptr())


def on_device_ns(work: Callable[[], object], device: str) -> float:
    """ns that the work takes on the current stream: between two events of the GPU, or on the host's clock."""
    if device != "cuda":
        began = time.perf_counter_ns()
        work()
        return max(1, time.perf_counter_ns() - began)
    begin, end = (torch.Event(device=torch.device(device), enable_timing=True) for _ in range(2))
    stream = torch.accelerator.current_stream(torch.device(device))
    begin.record(stream)
    work()
    end.record(stream)
    end.synchronize()
    return max(1.0, begin.elapsed_time(end) * 1e6)


def copies(device: str, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """For each size (bytes, rising) and kind the median ns to the device and back; without a GPU there is one kind."""
    kinds = {"pageable": torch.empty(sizes[-1], dtype=torch.uint8)}
    if device != "cuda":
        return timed(device, kinds, sizes)
    with registered(sizes[-1]) as memory:
        pinned = torch.empty(sizes[-1], dtype=torch.uint8, pin_memory=True)
        return timed(device, {"registered": memory, "pinned": pinned, **kinds}, sizes)


def timed(device: str, kinds: dict[str, torch.Tensor], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """See `copies`; kinds: host memory, uint8 [largest size]."""
    there, out = torch.empty(sizes[-1], dtype=torch.uint8, device=device), []
    for memory in kinds.values():
        memory.fill_(1)
    for size in sizes:
        for kind, host in kinds.items():
            up = _median(there[:size], host[:size], device)
            down = _median(host[:size], there[:size], device)
            out.append({"bytes": size, "host_memory": kind, "h2d_ns": up, "d2h_ns": down})
            rates = f"to the device {size / up:7.2f} GB/s, back {size / down:7.2f} GB/s"
            print(f"{size:>13,} bytes {kind:<11} {rates}", flush=True)
    return out


def _median(dst: torch.Tensor, src: torch.Tensor, device: str) -> float:
    """ns of a copy, after one that is not counted."""
    dst.copy_(src, non_blocking=True)
    times = FEW if src.numel() >= LARGE else MANY
    return statistics.median(on_device_ns(lambda: dst.copy_(src, non_blocking=True), device) for _ in range(times))


def beside_a_copy(read_bytes: int, copy_bytes: int) -> dict[str, float]:
    """ns of kernels that read device memory, alone and while the link copies to the device."""
    device = torch.device("cuda")
    numbers = torch.zeros(read_bytes, dtype=torch.uint8, device=device).view(torch.bfloat16)
    there = torch.empty(copy_bytes, dtype=torch.uint8, device=device)

    def read() -> None:
        for _ in range(READS):
            numbers.sum(dtype=torch.float32)

    read()
    alone = on_device_ns(read, "cuda")
    compute = torch.accelerator.current_stream(device)
    with registered(copy_bytes) as host:
        torch.accelerator.set_stream(torch.Stream(device=device))
        for _ in range(COPIES):
            there.copy_(host, non_blocking=True)
        torch.accelerator.set_stream(compute)
        beside = on_device_ns(read, "cuda")  # the copies run meanwhile: they take longer
        torch.accelerator.synchronize(device)
    return {"kernels_ns_alone": alone, "kernels_ns_beside_copies": beside}


def main(device: str) -> None:
    """The command."""
    found: dict[str, Any] = {"copies": copies(device, SIZES[device])}
    _write(found)
    if device == "cuda":
        found |= beside_a_copy(READ_BYTES, COPY_BYTES)
        print(f"kernels {found['kernels_ns_alone'] / 1e6:.2f} ms, beside copies "
              f"{found['kernels_ns_beside_copies'] / 1e6:.2f} ms")  # fmt: skip
        _write(found)


def _write(found: dict[str, Any]) -> None:
    write_bytes("copies.json", (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1])
