"""What a user's own policy sees: one fixed tuple, the same for every kind and on every machine.

A policy is one function in numba's subset, `f(view, state, params) -> int`. It sees where things are now: no
clock, and nothing of the future. Its arrays are copies; only a re-ranking policy's `ids` and `weights` are
read back. docs/policies.md has an example of each kind.

    eviction   the index into `candidates` of the one that goes
    miss       the id of the resident expert that stands in, or FETCH, DROP or CPU
    re-rank    anything; what counts is what it wrote into `ids` and `weights`
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]

FETCH, DROP, CPU = -1, -2, -3  # answers of a miss policy


class View(NamedTuple):
    """K top-k, E experts of a layer; n = E (miss, re-rank) or the number of candidates (eviction)."""

    step: int  # number of the step of the visit being served
    layer: int  # its MoE layer
    token: int  # row of the trace (eviction: -1)
    slot: int  # of the token's K (miss only)
    expert: int  # miss: the wanted expert, 0 .. E - 1; eviction: the one that needs the slot, a global id
    weight: float  # miss: the slot's router weight (0.0 where the trace has none)
    tokens: int  # miss: how many tokens of this visit want the expert; else 1
    n_experts: int  # E; of a global id g the layer is g // n_experts, the expert g % n_experts (modulo
    # the layers: a low-precision copy's id lies layers x n_experts above its original's)
    seed: int  # of the run
    ids: Int  # [K] the token's experts, -1 none (eviction: empty)
    weights: Float  # [K] their router weights
    logits: Float  # [E] the token's router logits (empty where the trace has none, and for eviction)
    candidates: Int  # [n] eviction: global ids of those that may go, of one layer or of the pool; else empty
    resident: Int  # [n] 1 on the GPU
    committed: Int  # [n] 1 on its way over the link
    held: Int  # [n] 1 has work of this visit that has not run
    used: Int  # [n] miss: 1 the token is routed to it, or it stands in for one of the token's earlier slots
    recency: Int  # [n] running number of its last touch or landing: the smallest is the least recent
    landed: Int  # [n] running number of its last landing
    uses: Int  # [n] times it was executed on the GPU over the run
    backlog_bytes: int  # demands of this visit and what is under way, before this one: it waits at most for these
    host_backlog_ns: int  # what this visit has given the CPU so far
    expert_bytes: int  # one expert over the link
    transfer_ns: int  # the same: with the idle set-up where backlog_bytes is 0, else following on
    expert_ns: int  # one expert on the GPU, for `tokens` tokens
    cpu_expert_ns: int  # one expert on the CPU, for `tokens` tokens, link as busy as it is now
