"""First residents: the order of landing by hand, and never more than slots."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from sim.errors import SpecError
from sim.fit.buddies import BuddyLists
from sim.fit.placement import first_residents
from sim.policies.registry import PLACEMENT
from tests.gen import random_trace
from traces.format.trace import RoutingTrace, hash64


def slots(*n: int) -> np.ndarray:
    return np.array(n, np.int64)


def counted(*uses: dict[int, int]) -> RoutingTrace:
    """A trace of top-1 in which layer l uses expert e uses[l][e] times; 3 experts."""
    column = [[e for e, n in layer.items() for _ in range(n)] for layer in uses]
    experts = np.array(column, np.int16).T[:, :, None]
    tokens = len(experts)
    meta = {
        "format_version": 1,
        "model": "m",
        "n_experts": 3,
        "top_k": 1,
        "n_layers": len(uses),
        "real": False,
    }
    meta["moe_layers"] = list(range(len(uses)))
    zero = np.zeros(tokens, np.int32)
    return RoutingTrace(experts, zero, np.arange(tokens, dtype=np.int32), zero > 0, meta)


def test_first_layer_by_layer_and_in_one_pool() -> None:
    assert first_residents("first", 3, 4, slots(2, 0, 9), False).tolist() == [0, 1, 8, 9, 10, 11]
    assert first_residents("first", 3, 4, slots(5), True).tolist() == [0, 4, 8, 1, 5]


def test_empty() -> None:
    found = first_residents("empty", 2, 4, slots(2, 2), False)
    assert (found.dtype, found.size) == (np.int64, 0)


def test_the_most_popular_lands_last() -> None:
    # layer 0: 1 four times, 2 once, 0 never; layer 1: 0 and 2 twice each, 1 once
    calibration = counted({1: 4, 2: 1}, {0: 2, 1: 1, 2: 2})
    assert first_residents("popular", 2, 3, slots(2, 2), False, calibration).tolist() == [2, 1, 5, 3]
    assert first_residents("popular", 2, 3, slots(3, 1), False, calibration).tolist() == [0, 2, 1, 3]
    # one pool, by uses: 1 (4), then 3 and 5 (2), then 2 and 4 (1): the lower id first
    assert first_residents("popular", 2, 3, slots(4), True, calibration).tolist() == [2, 5, 3, 1]


def test_random_is_the_order_of_the_hash() -> None:
    order = sorted(range(6), key=lambda e: int(hash64(9, 1, e)[0]))
    assert first_residents("random", 2, 6, slots(0, 4), False, seed=9).tolist() == [6 + e for e in order[:4]]
    everyone = sorted(range(12), key=lambda g: int(hash64(9, g // 6, g % 6)[0]))
    assert first_residents("random", 2, 6, slots(7), True, seed=9).tolist() == everyone[:7]


@given(
    some.sampled_from(sorted(PLACEMENT)),
    some.lists(some.integers(0, 7), min_size=1, max_size=4),
    some.integers(1, 6),
    some.booleans(),
    some.integers(0, 9),
)
def test_never_more_than_slots_and_nobody_twice(kind: str, n: list[int], experts: int, pooled: bool, seed: int) -> None:
    layers = len(n)
    calibration = random_trace(np.random.default_rng(seed), 9, layers, experts, 1)
    room = slots(sum(n)) if pooled else slots(*n)
    lists = None
    if kind == "buddy-coverage":
        peers = (np.arange(experts)[None, :, None] + 1) % experts if experts > 1 else np.full((1, 1, 1), -1)
        every = np.broadcast_to(peers, (layers, experts, 1))
        lists = BuddyLists(every.astype(np.int16), np.ones(every.shape, np.float32), np.ones(every.shape[:2]), {})
    found = first_residents(kind, layers, experts, room, pooled, calibration, seed, lists)
    assert len(set(found.tolist())) == len(found) and found.dtype == np.int64
    held = slots(len(found)) if pooled else np.bincount(found // experts, minlength=layers)
    most = layers * experts if pooled else experts
    assert held.tolist() == ([0] * len(room) if kind == "empty" else np.minimum(room, most).tolist())


@pytest.mark.parametrize(
    ("kind", "room", "pooled", "calibration", "message"),
    [
        (
            "best",
            slots(1, 1),
            False,
            None,
            "placement best is unknown",
        ),
        ("popular", slots(1, 1), False, None, "placement popular needs a calibration trace"),
        (
            *("popular", slots(1, 1), False, counted({0: 1})),
            "placement popular: the calibration trace has 1 MoE layers of 3 experts; 2 of 3 are required",
        ),
        ("first", slots(1), False, None, "placement first: slots is [1]; 2 numbers from 0 are needed"),
        ("first", slots(1, 1), True, None, "placement first: slots is [1, 1]; 1 numbers from 0 are needed"),
        (
            "first",
            slots(-1, 1),
            False,
            None,
            "placement first: slots is [-1, 1]; 2 numbers from 0 are needed",
        ),
    ],
)
def test_refusals(kind: str, room: np.ndarray, pooled: bool, calibration: RoutingTrace | None, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        first_residents(kind, 2, 3, room, pooled, calibration)
    assert str(raised.value) == message
