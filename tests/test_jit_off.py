"""The core as plain Python, as under a debugger: the same decisions and times as compiled."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
from numba.extending import is_jitted

from sim.core.visit import decide
from sim.machines import compiled, discrete
from tests.plans import random_plan
from tests.test_agreement import check

assert not is_jitted(decide)
for seed in range(60):
    for machine in (compiled, discrete):
        found = check(random_plan(seed), machine)
        assert found is None, (machine.__name__, seed, found)
print("agreed")
"""


def test_both_machines_run_with_the_jit_off() -> None:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "agreed\n"
