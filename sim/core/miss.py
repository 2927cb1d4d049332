"""What to do for one (token, slot) whose expert is not on the GPU: the miss policies.

fetch: wait for it. drop: leave it out. cpu: compute it on the host.
"""

from typing import Any, NamedTuple

from sim.core.jit import choice
from sim.core.plan import Plan

ANSWER_FETCH, ANSWER_SUBSTITUTE, ANSWER_DROP, ANSWER_CPU, ANSWER_LOW = range(5)  # plan.ANSWERS
FETCH, DROP, CPU = range(3)


class Miss(NamedTuple):
    """The miss policy as `answer` takes it; ask_late: late experts are asked about too."""

    kind: int
    ask_late: bool
    lossy_prefill: bool

    @staticmethod
    def of(plan: Plan) -> "Miss | None":
        """None where every miss is fetched: the loop is then compiled without any question."""
        if plan.miss.kind == FETCH and not plan.late_counts_as_missing:
            return None
        return Miss(plan.miss.kind, plan.late_counts_as_missing, plan.lossy_prefill)


@choice
def answer(s: Any, miss: Any, visit: int, t: int, layer: int, k: int, e: int) -> tuple[int, int, int]:
    """(answer, stand-in or -1, gate that stopped a substitution or 0) for trace token t, slot k, expert e of its layer."""
    if miss.kind == DROP:
        return ANSWER_DROP, -1, 0
    if miss.kind == CPU:
        return ANSWER_CPU, -1, 0
    return ANSWER_FETCH, -1, 0
