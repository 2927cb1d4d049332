"""python -m runtime.gpu.parts.versions --touch-gb N: what this machine is, into versions.json.

It then touches N GB of host memory and gives them back, so that a machine whose memory grows as it is used has grown
before a part asks how much there is; how much could be touched is in the file (`touched_bytes`).
"""

import json
import mmap
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.device.host_memory import host_bytes, meminfo
from runtime.gpu.parts.here import here
from runtime.gpu.project import project
from runtime.replaying.layers import has_grouped
from traces.command import Parser, write_bytes

PACKAGES = ("torch", "numpy", "numba", "llvmlite", "scipy", "pandas", "pydantic", "simpy", "transformers", "pytest")
GPU = (
    "driver_version", "pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current", "pcie.link.width.max",
    "clocks.sm", "clocks.max.sm", "clocks.mem", "memory.total", "memory.used", "persistence_mode", "power.limit",
)  # fmt: skip
FILE = "versions.json"
STEP_BYTES = 1 << 30
SPARE_BYTES = 3 << 30  # where less is left, memory is given time to grow
TOUCH_S = 12.0  # no longer than that
GROWTH_S = 0.5
ASK_S = 10.0


def facts() -> dict[str, Any]:
    """Everything but the memory that is touched."""
    cudnn: Any = torch.backends.cudnn  # without types
    return {
        **here(),
        "project": project(),
        "cudnn": cudnn.version(),
        "grouped_mm": has_grouped(),
        "system": platform.platform(),
        "cpu": _after("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "page_lock_limit_bytes": _limit(),
        "huge_pages": _text("/sys/kernel/mm/transparent_hugepage/enabled"),
        "memory": {name: meminfo().get(name) for name in ("MemTotal", "MemFree", "MemAvailable", "Mlocked")},
        "host_free_bytes": host_bytes(),
        "nvidia_smi": _gpu(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _after(path: str, name: str) -> str | None:
    """What stands behind `name :` in a file of the system."""
    lines = (line.partition(":") for line in (_text(path) or "").splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), None)


def _limit() -> int | None:
    """Bytes that a process may lock (ulimit -l); None: any number."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _gpu() -> dict[str, str] | None:
    """What nvidia-smi says of the first GPU, by its own names; None where it says nothing."""
    ask = ["nvidia-smi", f"--query-gpu={','.join(GPU)}", "--format=csv,noheader", "-i", "0"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=ASK_S, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(GPU, said.split(", "), strict=False))


def touch(most_bytes: int) -> int:
    """Touch memory until there is so much of it, or no more, or TOUCH_S are over; gives it back. Bytes touched."""
    held: list[mmap.mmap] = []
    end = time.monotonic() + TOUCH_S
    while len(held) * STEP_BYTES < most_bytes and time.monotonic() < end:
        if host_bytes() < SPARE_BYTES:
            time.sleep(GROWTH_S)
            if host_bytes() < SPARE_BYTES:
                break
        held.append(_touched(STEP_BYTES))
    return len(held) * STEP_BYTES


def _touched(nbytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1
    return memory


def main(argv: list[str]) -> None:
    """The command."""
    parser = Parser(prog="python -m runtime.gpu.parts.versions")
    parser.add_argument("--touch-gb", type=int, required=True, metavar="N")
    wanted = parser.parse_args(argv).touch_gb * 10**9
    found = facts()
    _write(found)  # whatever becomes of this process
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if somebody must go, then this one
    _write(found | {"touched_bytes": touch(wanted), "host_free_bytes_after": host_bytes()})
    print(Path(FILE).read_text())


def _write(found: dict[str, Any]) -> None:
    write_bytes(FILE, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
