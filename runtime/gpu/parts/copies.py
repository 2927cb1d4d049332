"""python -m runtime.gpu.parts.copies cuda|cpu: bare copies by size and kind of host memory, both ways.

Into copies.json. Kinds: page-locked by registering ordinary memory (what the port does with experts), page-locked by
torch's own allocator, pageable. Times are the device's, between two events around the copy. On a GPU also whether a
kernel that reads device memory is slower beside a copy, which the simulator says it is not.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from runtime.device.accelerator import own_pages
from traces.command import write_bytes

SIZES = {  # bytes; the 17 and 352 MB are an expert of DeepSeek-V2-Lite and of Mixtral in bf16
    "cuda": (4 << 10, 64 << 10, 1 << 20, 4 << 20, 17_301_504, 64 << 20, 352_321_536, 1 << 30),
    "cpu": (4 << 10, 64 << 10, 1 << 20),
}
MANY, FEW, LARGE = 9, 4, 1 << 27  # repeats, and from how many bytes there are few
READ_BYTES, READS, COPIES = 1 << 31, 20, 2  # of the kernel beside a copy


def registered(nbytes: int) -> torch.Tensor:
    """uint8 [nbytes] in pages of its own, page-locked. Raises RuntimeError."""
    memory = torch.frombuffer(own_pages(nbytes), dtype=torch.uint8)
    code = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), nbytes, 0))
    if code:
        raise RuntimeError(f"cudaHostRegister of {nbytes} bytes: error {code} of the runtime")
    return memory


def host_memory(device: str, nbytes: int) -> dict[str, torch.Tensor]:
    """uint8 [nbytes] of each kind, touched. Without a GPU there is one kind."""
    found = {"pageable": torch.empty(nbytes, dtype=torch.uint8)}
    if device == "cuda":
        found |= {"registered": registered(nbytes), "pinned": torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)}
    for memory in found.values():
        memory.fill_(1)
    return found


def on_device_ns(work: Callable[[], object], device: str) -> float:
    """ns that the work takes: between two events of the GPU, or on the host's clock."""
    if device != "cuda":
        began = time.perf_counter_ns()
        work()
        return max(1, time.perf_counter_ns() - began)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return max(1.0, begin.elapsed_time(end) * 1e6)


def copies(device: str) -> list[dict[str, Any]]:
    """For each size and kind the median ns to the device and back."""
    sizes = SIZES[device]
    there, kinds, out = torch.empty(sizes[-1], dtype=torch.uint8, device=device), host_memory(device, sizes[-1]), []
    for size in sizes:
        for kind, host in kinds.items():
            row: dict[str, Any] = {"bytes": size, "host_memory": kind}
            for way, dst, src in (("h2d_ns", there[:size], host[:size]), ("d2h_ns", host[:size], there[:size])):
                row[way] = _median(lambda d=dst, s=src: d.copy_(s, non_blocking=True), device, size)
            out.append(row)
            up, down = size / row["h2d_ns"], size / row["d2h_ns"]
            print(f"{size:>12,} bytes {kind:<11} to the device {up:7.2f} GB/s, back {down:7.2f} GB/s", flush=True)
    return out


def _median(copy: Callable[[], object], device: str, size: int) -> float:
    copy()
    return statistics.median(on_device_ns(copy, device) for _ in range(FEW if size >= LARGE else MANY))


def beside_a_copy() -> dict[str, float]:
    """ns of kernels that read device memory, alone and while the link copies to the device."""
    numbers = torch.zeros(READ_BYTES, dtype=torch.uint8, device="cuda").view(torch.bfloat16)
    host, there = registered(1 << 30), torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    link = torch.cuda.Stream()

    def read() -> None:
        for _ in range(READS):
            numbers.sum(dtype=torch.float32)

    read()
    alone = on_device_ns(read, "cuda")
    with torch.cuda.stream(link):
        for _ in range(COPIES):
            there.copy_(host, non_blocking=True)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # no wait here: the copies run meanwhile
    began.record()
    read()
    ended.record()
    torch.cuda.synchronize()
    return {"kernels_ns_alone": alone, "kernels_ns_beside_copies": began.elapsed_time(ended) * 1e6}


def main(device: str) -> None:
    """The command."""
    found: dict[str, Any] = {"copies": copies(device)}
    _write(found)
    if device == "cuda":
        found |= beside_a_copy()
        print(f"kernels {found['kernels_ns_alone'] / 1e6:.2f} ms, beside copies "
              f"{found['kernels_ns_beside_copies'] / 1e6:.2f} ms")  # fmt: skip
        _write(found)


def _write(found: dict[str, Any]) -> None:
    write_bytes("copies.json", (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1])
