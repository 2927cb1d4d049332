"""The core as plain Python, as under a debugger: the same decisions and times as compiled."""

from tests.copied import ROOT
from tests.forked import Forks

SCRIPT = """
import warnings

warnings.simplefilter("error")

from numba.extending import is_jitted

from sim.core.visit import decide
from tests.plans import random_lossy_plan, random_plan
from tests.test_agreement import check

assert not is_jitted(decide)
for seed in range(60):
    found = check(random_plan(seed)) or check(random_lossy_plan(seed))
    assert found is None, (seed, found)
print("agreed")
"""


def test_both_machines_run_with_the_jit_off(forks: Forks) -> None:
    assert forks.run(ROOT, SCRIPT) == (0, "agreed\n")
