"""What to do for a (token, slot) whose expert is not on the GPU: the miss policies.

`plan_token` answers for all slots of one token at once (Algorithm 1 of BuddyMoE works token by token); `visit` then
applies the answers in slot order. fetch, drop, cpu and drop-by-weight need no more than that; whatever has gates,
stand-ins or a fallback is one method with parameters, in core.substitution.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core.jit import inner
from sim.core.memory import Memory, Struct, packed, record
from sim.core.plan import NOT_ALL_FETCHED, Plan
from sim.core.state import RESIDENT, State
from sim.core.substitution import (
    ANSWER_CPU,
    ANSWER_DROP,
    ANSWER_FETCH,
    ANSWER_LOW,
    ANSWER_SUBSTITUTE,
    NOBODY,
    OPEN,
    asked,
    may_stand_in,
    substitute,
)

FETCH, DROP, CPU, DROP_BY_WEIGHT, SUBSTITUTE, USER, PRECISION, STREAM, REMOTE, ADMIT, SPLIT, SPECULATE = range(12)
# SUBSTITUTE is plan.SUBSTITUTION, REMOTE plan.REMOTE


class OfMiss(Struct):
    kind: int
    ask_late: int  # 1: late experts are asked about too
    lossy_prefill: int
    rerank: int  # kind of the re-ranking policy (core.rerank), -1 none
    norm_topk: int  # 1: chosen experts' weights add up to 1


class Miss(Memory):
    """The miss policy as the core takes it, of a plan that `asks`.

    params float64 (SUBSTITUTE: core.substitution's; DROP_BY_WEIGHT: the threshold); tau float64 [L]; logits:
    core.inputs.Route's; peers int16 [L, E, n] and q float32 [L, E, n]: buddy lists, best first, -1 = end; cpu_ns int64
    [2, tokens], expert_ns [tokens], transfer_ns [2]: what the cheaper answer compares; rerank_params: of the re-ranking
    policy; similarity float32 [L, E, E] or empty; predicted int16 [T, L, K] or empty: what speculate runs instead, best
    first, -1 = no entry.
    """

    policy: OfMiss
    params: npt.NDArray[np.float64]
    tau: npt.NDArray[np.float64]
    logits: npt.NDArray[np.uint16]
    peers: npt.NDArray[np.int16]
    q: npt.NDArray[np.float32]
    cpu_ns: npt.NDArray[np.int64]
    expert_ns: npt.NDArray[np.int64]
    transfer_ns: npt.NDArray[np.int64]
    rerank_params: npt.NDArray[np.float64]
    similarity: npt.NDArray[np.float32]
    predicted: npt.NDArray[np.int16]

    @staticmethod
    def of(plan: Plan) -> "Miss":
        """As the plan has it."""
        layers, n = plan.experts.shape[1], plan.n_experts
        none = np.zeros((layers, n, 0))
        return Miss(
            policy=_policy(plan),
            **packed(
                params=(np.float64, plan.miss.params),
                tau=(np.float64, plan.tau if plan.tau.size else np.full(layers, -1.0)),
                logits=(np.uint16, NONE if plan.logits is None else plan.logits.view(np.uint16)),
                peers=(np.int16, plan.peers if plan.peers.size else none),
                q=(np.float32, plan.peer_q if plan.peer_q.size else none),
                cpu_ns=(np.int64, plan.costs.cpu_expert_ns),
                expert_ns=(np.int64, plan.costs.expert_ns),
                transfer_ns=(np.int64, plan.costs.transfer_ns),
                rerank_params=(np.float64, np.zeros(0) if plan.rerank is None else plan.rerank.params),
                similarity=(np.float32, NONE if plan.similarity is None else plan.similarity),
                predicted=(np.int16, NONE if plan.predicted is None else plan.predicted),
            ),
        )


NONE = np.zeros((0, 0, 0))


def asks(plan: Plan) -> bool:
    """Whether a plan has anything but fetches of what the router wants, by no rule."""
    return (
        bool(plan.miss.marks & NOT_ALL_FETCHED)
        or plan.late_counts_as_missing
        or plan.rerank is not None
        or plan.on_miss is not None
    )


def _policy(plan: Plan) -> Any:
    return record(
        OfMiss,
        kind=plan.miss.kind,
        ask_late=plan.late_counts_as_missing,
        lossy_prefill=plan.lossy_prefill,
        rerank=-1 if plan.rerank is None else plan.rerank.kind,
        norm_topk=plan.norm_topk,
    )


@inner
def plan_token(s: State, miss: Any, ids: Any, weights: Any, t: int, layer: int) -> None:
    """Fill State.reply for the slots of one token whose expert is missing (and, with ask_late, late).

    ids int64 [K], weights float64 [K]: the token's routed experts (-1 none) and router weights, after re-ranking.
    """
    if miss.policy.kind == SUBSTITUTE:
        substitute(s, miss, ids, weights, t, layer)
        return
    if miss.policy.kind == PRECISION:
        _by_precision(s, miss, ids, weights)
        return
    if miss.policy.kind == SPECULATE:
        _speculate(s, miss, ids, t, layer)
        return
    for k in range(len(ids)):
        reply = ANSWER_FETCH
        if miss.policy.kind == DROP:
            reply = ANSWER_DROP
        elif miss.policy.kind == CPU:
            reply = ANSWER_CPU
        elif miss.policy.kind == DROP_BY_WEIGHT and ids[k] >= 0 and weights[k] < miss.params[0]:
            reply = ANSWER_DROP
        s.reply[k].answer, s.reply[k].other, s.reply[k].gate = reply, -1, OPEN


@inner
def _by_precision(s: State, miss: Any, ids: Any, weights: Any) -> None:
    """HOBBIT (arXiv 2411.01433): with s the share of the token's router weight in front of a slot (descending weight,
    ties by slot), fetch up to s = params[0], the low-precision copy up to params[1], and nobody beyond."""
    total, before = 0.0, 0.0
    for k in range(len(ids)):
        s.reply[k].answer, s.reply[k].other, s.reply[k].gate = -1, -1, OPEN
        total += weights[k] if ids[k] >= 0 else 0.0
    k = _next_slot(s, weights, ids)
    while k >= 0:
        share = before / total if total > 0.0 else 0.0
        reply = ANSWER_FETCH if share <= miss.params[0] else ANSWER_DROP
        if reply == ANSWER_DROP and share <= miss.params[1]:
            reply = ANSWER_LOW
        s.reply[k].answer = reply
        before += weights[k]
        k = _next_slot(s, weights, ids)


@inner
def _next_slot(s: State, weights: Any, ids: Any) -> int:
    """The slot to look at next: descending router weight, ties by slot; those done have an answer."""
    best = -1
    for k in range(len(ids)):
        if ids[k] >= 0 and s.reply[k].answer < 0 and (best < 0 or weights[k] > weights[best]):
            best = k
    return best


@inner
def _speculate(s: State, miss: Any, ids: Any, t: int, layer: int) -> None:
    """Speculating Experts (arXiv 2603.19289): where all experts that were predicted for the token are resident, those
    of them that it does not use run in place of its missing ones, in their order; else it waits for its own."""
    base, there = layer * s.run.n_experts, _all_predicted_are_there(s, miss, t, layer)
    s.run.token += 1
    for k in range(len(ids)):
        if ids[k] >= 0:
            s.expert[base + ids[k]].used_by = s.run.token
    for k in range(len(ids)):
        s.reply[k].answer, s.reply[k].other, s.reply[k].gate = ANSWER_FETCH, -1, NOBODY
        other = _unused_predicted(s, miss, t, layer) if there and ids[k] >= 0 and asked(s, miss, base + ids[k]) else -1
        if other >= 0:
            s.reply[k].answer, s.reply[k].other, s.reply[k].gate = ANSWER_SUBSTITUTE, other, OPEN
            s.expert[base + other].used_by = s.run.token


@inner
def _all_predicted_are_there(s: State, miss: Any, t: int, layer: int) -> bool:
    """Whether anything was predicted for the token, and all of it is resident."""
    n = 0
    for r in range(miss.predicted.shape[2]):
        e = miss.predicted[t, layer, r]
        if e >= 0 and s.expert[layer * s.run.n_experts + e].state != RESIDENT:
            return False
        n += e >= 0
    return n > 0


@inner
def _unused_predicted(s: State, miss: Any, t: int, layer: int) -> int:
    """The first of the predicted experts that is resident and not in the token's set U; -1 if there is none."""
    for r in range(miss.predicted.shape[2]):
        e = miss.predicted[t, layer, r]
        if e >= 0 and may_stand_in(s, layer * s.run.n_experts, e):
            return e
    return -1
