"""Stages of the store: how many a plan may fill at once, and which of them holds which copy.

The core counts stages (sim.core.stages); which one a copy goes into is no choice of a policy.
"""

from collections import deque

import numpy as np

from sim.core.plan import Plan
from sim.on_miss import layers_lacking, may_stream, visit_stages


def stages_of(plan: Plan) -> int:
    """Stages that must be there, 0 where nothing streams. Without a limit a visit of whole layers may find what is left
    of earlier ones on the link, whose depth bounds it."""
    on, lacks = plan.on_miss, layers_lacking(plan)
    if on is None or not (may_stream(plan.miss, lacks) | may_stream(on.bulk, lacks)).any():
        return 0
    n, every = plan.n_experts, int(np.prod(plan.experts.shape[1:2])) * plan.n_experts
    if on.stages or on.ahead:
        return on.stages or (on.ahead + 1) * n
    if not on.whole_layer:
        return visit_stages(plan)
    return min(every, n + plan.costs.commit_depth * (n if on.merge_runs else 1))


class Stages:
    """Which stage each copy is in, by its id (core.rules): of the free ones the one that was given back first."""

    def __init__(self, first: int, n: int) -> None:
        """n stages, numbered from `first` on."""
        self.free = deque(range(first, first + n))
        self.of: dict[int, int] = {}

    def claim(self, copy: int) -> int:
        """A stage for a copy that was committed."""
        self.of[copy] = self.free.popleft()
        return self.of[copy]

    def give_back(self, copy: int) -> None:
        """The copy has left its stage."""
        self.free.append(self.of.pop(copy))
