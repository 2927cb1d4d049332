"""python -m runtime.gpu.parts.compiling NAME...: what of numba the other parts need, compiled side by side.

On the CPU, so that the GPU is left to the parts beside which this runs.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPLAY = "runtime.replay --trace mixtral.npz --device cpu --precision fp32 --scale 0.0078125 --max-steps 3 --as-decode"
# The compiled machine's three versions, the torch machine's choices without prefetches and with, the closed loop.
COMMANDS = {
    "log": "sim.run --trace mixtral.npz --max-steps 3 --out scratch/log --record full",
    "everything": "sim.run --trace mixtral.npz --max-steps 3 --miss drop",
    "lean": "sim.run --trace mixtral.npz --max-steps 3",
    "replay": f"{REPLAY} --cache 3 --check",
    "prefetching": f"{REPLAY} --cache 6 --prefetch noisy-oracle --prefetch-budget 2 --check",
    "live": "runtime.gpu.parts.generate cpu scratch/compiling",
}


def compile_one(name: str) -> int:
    """Run one command with a log of its own; its exit status."""
    with Path(f"{name}.log").open("w") as log:
        command = [sys.executable, "-m", *COMMANDS[name].split()]
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode


def main(names: Sequence[str]) -> int:
    """Those of COMMANDS, as many at a time as there are cores; 1 where one failed."""
    with ThreadPoolExecutor(min(len(names), os.cpu_count() or 1)) as pool:
        statuses = dict(zip(names, pool.map(compile_one, names), strict=True))
    for name, status in statuses.items():
        print(f"{name}: exit {status}")
    return int(any(statuses[name] for name in names if name != "live"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
