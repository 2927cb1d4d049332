"""No index in the core counts from the end: compiled code does not ask (sim.core.compiler), it would read elsewhere."""

from tests.copied import ROOT
from tests.forked import Forks

SCRIPT = """
import numpy as np

from sim.core import memory
from sim.machines import compiled, discrete
from sim.policies.registry import EVICTION
from tests.eviction_plans import plan_of_eviction
from tests.on_miss_plans import plan_in_chunks_of, plan_of, plan_with_low_copies_of
from tests.plans import random_lossy_plan, random_plan
from tests.window_plans import window_plan

MADE = (random_plan, random_lossy_plan, plan_of_eviction, window_plan)
MADE += (plan_of, plan_in_chunks_of, plan_with_low_copies_of)
seen = 0


class Checked:
    # what a Memory shows to plain Python, and whatever is cut from it
    def __init__(self, of):
        object.__setattr__(self, "of", of)

    def right(self, index):
        global seen
        for each in index if isinstance(index, tuple) else (index,):
            if isinstance(each, slice):
                assert all(end is None or end >= 0 for end in (each.start, each.stop)), index
            elif np.ndim(each) == 0:
                seen += 1
                assert each >= 0, index
        return index

    def __getitem__(self, index):
        found = self.of[self.right(index)]
        return Checked(found) if isinstance(found, np.ndarray) and found.ndim else found

    def __setitem__(self, index, value):
        self.of[self.right(index)] = value.of if isinstance(value, Checked) else value

    def __iter__(self):
        return iter(self.of)

    def __len__(self):
        return len(self.of)

    def __getattr__(self, name):
        return getattr(self.of, name)


plain = memory._in_python
memory._in_python = lambda array: Checked(plain(array)) if array.ndim else plain(array)
try:
    Checked([1, 2])[-1]
except AssertionError:
    print("checked")
for name in EVICTION:
    for seed in range(4):
        compiled.run(plan_of_eviction(seed, name), full=seed % 2 == 0)
for seed in range(40):
    for make in MADE:
        one = make(seed)
        for machine in (compiled, discrete)[: 1 + (seed < 10)]:
            machine.run(one, full=seed % 2 == 0)
print(seen > 100_000)
"""


def test_no_index_counts_from_the_end(forks: Forks) -> None:
    assert forks.run(ROOT, SCRIPT) == (0, "checked\nTrue\n")
