"""A token's router logits: as numbers, their softmax, and their order.

An order is kept in ranks, one integer for a logit and its expert, greater the higher the logit and the lower the id.
"""

import math
from typing import Any

from sim.core.half import half_rank, half_to_float
from sim.core.jit import apart, inlined
from sim.core.state import State

_LOW_ID = 0xFFFF  # less an id, in a rank below the logit's
_LEAST = -(1 << 32)  # below every rank


@apart
def read_odds(s: State, logits: Any) -> float:
    """Its logits [E] into State.logit, exp(logit - largest) of each into State.odds; returns the sum of these,
    so p is odds / sum."""
    top, total = half_to_float(logits[0]), 0.0
    for e in range(s.run.n_experts):
        s.logit[e] = half_to_float(logits[e])
        top = max(top, s.logit[e])
    for e in range(s.run.n_experts):
        s.odds[e] = math.exp(s.logit[e] - top)
        total += s.odds[e]
    return total


@inlined
def rank_of(logits: Any, e: int) -> int:
    """Of expert e's, as one integer."""
    return half_rank(logits[e]) << 16 | _LOW_ID - e


@inlined
def expert_of(rank: int) -> int:
    """Whose rank it is."""
    return _LOW_ID - (rank & _LOW_ID)


@inlined
def insert(ranks: Any, rank: int, first: int, place: int) -> None:
    """A rank where it belongs among those from `first` to a place that is free, the highest in front."""
    while place > first and ranks[place - 1] < rank:
        ranks[place] = ranks[place - 1]
        place -= 1
    ranks[place] = rank


@apart
def put_in_order(s: State, logits: Any, n: int, most: int) -> None:
    """The experts of the `most` highest logits [E] into State.order, descending, ties by the lower id.

    The first n of State.order, different experts in any order, are likely to be among them: the router's own, or those
    of a shorter order. Then few others come in, and most are passed over by one comparison that is easily foretold."""
    order, ranks = s.order, s.marked
    for e in range(s.run.n_experts):
        ranks[e] = rank_of(logits, e)
    for i in range(n):
        rank = ranks[order[i]]
        ranks[order[i]] = _LEAST
        insert(order, rank, 0, i)
    least = order[n - 1] if n == most else _LEAST
    for e in range(s.run.n_experts):
        if ranks[e] > least:
            n += n < most
            insert(order, ranks[e], 0, n - 1)
            least = order[n - 1] if n == most else _LEAST
    for i in range(most):
        order[i] = expert_of(order[i])
