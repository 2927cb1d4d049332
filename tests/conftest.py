"""Before anything runs: compile the machine once, not once in every worker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim.core.jit import CACHE_DIR

ROOT = Path(__file__).parent.parent
BATCHES = (("lean", "everything"), ("log",))  # side by side, about as long as each other


def pytest_configure(config: pytest.Config) -> None:
    """In the process that starts the workers, where nothing is cached yet for these sources and a machine runs."""
    asked = [Path(argument.split("::")[0]).name for argument in config.args]
    needed = not all(name.startswith(("test_catalog", "test_costs")) for name in asked)  # these run none
    cold = needed and not any(CACHE_DIR.rglob("compiled._loop*.nbc"))
    if cold and not hasattr(config, "workerinput") and not os.environ.get("NUMBA_DISABLE_JIT"):
        jobs = [subprocess.Popen([sys.executable, "-m", "tests.warm", *batch], cwd=ROOT) for batch in BATCHES]
        if any([job.wait() for job in jobs]):
            raise pytest.UsageError("the machine does not compile: see above")
