"""A token's logits: float16 from its bits, their softmax, and their order from any guess at its front."""

import math
from typing import Any

import numpy as np

from sim.core.half import half_rank, half_to_float
from sim.core.jit import choice
from sim.core.memory import Memory, Struct, zeros
from sim.core.softmax import put_in_order, read_odds


class Run(Struct):
    n_experts: int


class Scratch(Memory):
    """What core.softmax takes of a State."""

    run: Run
    order: Any
    marked: Any
    logit: Any
    odds: Any


def scratch(n: int) -> Scratch:
    run = zeros(dtype=Run)
    run["n_experts"] = n
    return Scratch(run=run, **{name: zeros(n + 1) for name in ("order", "marked")}, logit=np.zeros(n), odds=np.zeros(n))


@choice
def _order(s: Any, logits: Any, n: int, most: int) -> None:
    put_in_order(s, logits, n, most)


@choice
def _odds(s: Any, logits: Any) -> float:
    return read_odds(s, logits)


def order(s: Scratch, logits: Any, guess: list[int], most: int) -> list[int]:
    s.arrays["order"][: len(guess)] = guess
    _order(s, logits.view(np.uint16), len(guess), most)
    found: list[int] = s.arrays["order"][:most].tolist()
    return found


def test_a_half_is_its_value_and_ranks_as_it_does() -> None:
    """All 65536 of them; what is no number has no rank."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.view(np.float16).astype(np.float64)
    np.testing.assert_array_equal([half_to_float(each) for each in bits], values)
    numbers = ~np.isnan(values)
    ranks, values = np.array([half_rank(each) for each in bits[numbers]]), values[numbers]
    by_rank = np.argsort(ranks, kind="stable")
    rises = np.diff(values[by_rank])
    assert (rises >= 0).all() and ((rises == 0) == (np.diff(ranks[by_rank]) == 0)).all()  # 0 and -0 are one


def test_an_order_by_hand() -> None:
    """Of 1 3 3 2 -inf the two highest are 1 and 2, the lower id first, whoever was thought to be there."""
    logits, s = np.array([1, 3, 3, 2, -np.inf], np.float16), scratch(5)
    assert order(s, logits, [], 2) == order(s, logits, [4, 0], 2) == order(s, logits, [2, 1], 2) == [1, 2]
    assert order(s, logits, [3], 1) == [1]
    assert order(s, logits, [1, 2], 4) == [1, 2, 3, 0]
    assert order(s, logits, [1, 2, 3, 0], 5) == [1, 2, 3, 0, 4]


def test_an_order_is_that_of_sorting_whatever_is_guessed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(1, 140))
        logits = np.round(rng.normal(0, rng.choice([0.5, 3, 50]), n)).astype(np.float16)
        logits[rng.random(n) < 0.1] = rng.choice([-np.inf, -0.0, 0.0])
        most = int(rng.integers(1, n + 1))
        guess = rng.permutation(n)[: rng.integers(0, most + 1)].tolist()
        right = sorted(range(n), key=lambda e: (-logits[e], e))
        s = scratch(n)
        assert order(s, logits, guess, most) == right[:most]
        assert order(s, logits, right[:most], n) == right


def test_odds_are_exponentials_added_up_in_order() -> None:
    """To the bit: what is decided by a sum must not depend on how it was added up. -inf is of no weight."""
    logits = np.random.default_rng(1).normal(0, 3, 64).astype(np.float16)
    logits[7] = -np.inf
    s = scratch(64)
    values, total = logits.astype(np.float64).tolist(), 0.0
    for value in values:
        total += math.exp(value - max(values))
    assert _odds(s, logits.view(np.uint16)) == total
    assert s.arrays["odds"].tolist() == [math.exp(value - max(values)) for value in values]
    assert s.arrays["logit"].tolist() == values and s.odds[7] == 0.0
