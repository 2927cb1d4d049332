"""Randomness without a generator's state: a counter-based hash of (seed, visit, ordinal).

splitmix64's finaliser (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014) over the three
numbers in turn, so that the same decision draws the same number on every machine, in any order of calls.
"""

import numpy as np

from sim.core.jit import choice, wrapping

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_A = np.uint64(0xBF58476D1CE4E5B9)
_B = np.uint64(0x94D049BB133111EB)


@wrapping
def mix64(z: np.uint64) -> np.uint64:
    """One round of splitmix64: a bijection of 64-bit integers."""
    z = z + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _A
    z = (z ^ (z >> np.uint64(27))) * _B
    return z ^ (z >> np.uint64(31))


@choice
def hash64(seed: int, visit: int, ordinal: int) -> np.uint64:
    """A uniform 64-bit number for draw `ordinal` of `visit` under `seed` (all int64, taken mod 2**64)."""
    return mix64(mix64(mix64(np.uint64(seed)) ^ np.uint64(visit)) ^ np.uint64(ordinal))
