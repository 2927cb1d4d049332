"""A token's router logits as numbers, their softmax and their order: read, raised to a power and put in order once."""

import math
from typing import Any

from sim.core.half import half_to_float
from sim.core.jit import apart
from sim.core.state import State


@apart
def read_logits(s: State, logits: Any, t: int, layer: int) -> None:
    """Those of token t into State.logit."""
    for e in range(s.run.n_experts):
        s.logit[e] = half_to_float(logits[t, layer, e])


@apart
def read_odds(s: State) -> float:
    """exp(logit - largest) of each of State.logit into State.odds; returns their sum, so p is odds / sum."""
    top, total = s.logit[0], 0.0
    for e in range(1, s.run.n_experts):
        top = max(top, s.logit[e])
    for e in range(s.run.n_experts):
        s.odds[e] = math.exp(s.logit[e] - top)
        total += s.odds[e]
    return total


@apart
def put_in_order(s: State, values: Any, most: int) -> None:
    """The experts of the `most` highest values [E] into State.order, descending, ties by the lower id."""
    order, n = s.order, 0
    for e in range(s.run.n_experts):
        if n == most and not values[order[n - 1]] < values[e]:
            continue
        place = n if n < most else n - 1
        n = place + 1
        while place > 0 and values[order[place - 1]] < values[e]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = e
