"""How long things take, as the compiled loop is handed it."""

import numpy as np
import numpy.typing as npt

from sim.core.memory import Memory, Struct, fill, packed, together
from sim.core.plan import PLAIN, Plan

Int = npt.NDArray[np.int64]


class Each(Struct):
    decide_ns: int
    group_ns: int
    commit_gap_ns: int
    cpu_visit_ns: int  # plan.OnMiss
    beside: int
    share_n: int
    share_d: int


class Durations(Memory):
    """plan.Costs as the loop takes it, and plan.Low's (the same again where there is none)."""

    each: Each
    dense_ns: Int
    dense_in_all_ns: Int  # of all layers
    head_ns: Int
    cost_class: npt.NDArray[np.int32]
    expert_ns: Int
    cpu_expert_ns: Int
    transfer_ns: Int
    draft_ns: Int
    low_expert_ns: Int
    low_transfer_ns: Int
    run_ns: Int  # plan.OnMiss
    chunk_ns: Int


def durations(plan: Plan) -> Durations:
    """The plan's costs, each array of its type whatever it came as."""
    c, on = plan.costs, plan.on_miss or PLAIN
    low, (share_n, share_d) = plan.low or c, on.link_share
    arrays, front = together(len(Durations.__annotations__), each=(Each,))
    one = dict(decide_ns=c.decide_ns, group_ns=c.group_ns, commit_gap_ns=c.commit_gap_ns, cpu_visit_ns=on.cpu_visit_ns)
    fill(arrays["each"], **one, beside=on.beside, share_n=share_n, share_d=share_d)
    return Durations(
        front,
        **arrays,
        **packed(
            dense_ns=(np.int64, c.dense_ns),
            dense_in_all_ns=(np.int64, c.dense_ns.sum(axis=1)),
            head_ns=(np.int64, c.head_ns),
            cost_class=(np.int32, c.cost_class),
            expert_ns=(np.int64, c.expert_ns),
            cpu_expert_ns=(np.int64, c.cpu_expert_ns),
            transfer_ns=(np.int64, c.transfer_ns),
            draft_ns=(np.int64, c.draft_ns),
            low_expert_ns=(np.int64, low.expert_ns),
            low_transfer_ns=(np.int64, low.transfer_ns),
            run_ns=(np.int64, on.run_ns),
            chunk_ns=(np.int64, on.chunk_ns),
        ),
    )
