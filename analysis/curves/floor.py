"""The floor: the fewest misses of decode steps that any choice of residents can have, the exact optimum with bypass.

With bypass an expert that a visit wants may be used and not kept (Belady's MIN, 1966, with that choice). With C slots,
and the experts of a visit as one access, all that a policy chooses is who is resident between visits: at most C of
those that were resident and of those just wanted. A use hits exactly if its expert stayed from the use before: so
hits are intervals between uses of an expert, of which at most C may be open between any two visits, and any set under
that limit is a choice. The most intervals under it are what sim.outcome.packing keeps for visits that need no slot for
themselves (its proof says why its greedy is the optimum); the floor is the wants less these. tests/test_floor.py
holds it against every choice there is.

Of decode steps alone: an interval that ends in a prompt saves none of their misses, so it is never kept. No policy
that fetches a wanted expert when it is wanted misses less often in decode steps, whether it may bypass or not.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from analysis.curves.curve import Visits
    from sim.core.plan import Plan
    from sim.outcome.packing import Wants

Int = npt.NDArray[np.int64]


def least_misses(plan: "Plan", visits: "Visits", initial: Int) -> Int:
    """int64 [V]: misses of each visit under the choice that misses least in decode steps; 0 in prompts.

    plan: its slots are those there are; visits: of its whole run; initial: first residents, global ids.
    """
    from sim.outcome.packing import Walk

    layers = plan.experts.shape[1]
    walk, missing = Walk.begin(plan, initial)._replace(stages=True), np.zeros(len(visits.wide), np.int64)
    for first, last in _stretches(visits.prefill[::layers]):
        begin, end = first * layers, last * layers
        wants = _part(visits.wants, begin, end)
        if visits.prefill[begin]:
            walk.forget(wants.expert)
        missing[begin:end] = walk.over(wants)
    missing[visits.prefill] = 0
    return missing


def _stretches(prefill: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[first, last) of the steps to walk over at once: decode steps that follow each other, prompts' one by one."""
    first = np.flatnonzero(np.append(True, prefill[1:] | prefill[:-1]))
    return list(zip(first.tolist(), [*first[1:].tolist(), len(prefill)], strict=True))


def _part(wants: "Wants", begin: int, end: int) -> "Wants":
    offset = wants.offset[begin : end + 1]
    part: Any = slice(offset[0], offset[-1])
    return wants._replace(offset=offset - offset[0], expert=wants.expert[part], tokens=wants.tokens[part])
