"""What is used of numba's inside: parts are compiled once and linked once, whoever calls them with what integers."""

import numba
import numpy as np
import pytest

from sim.core import jit

pytestmark = pytest.mark.skipif(not jit.compiles(), reason="nothing is compiled")


@jit.inner
def _least(a: int, b: int) -> int:
    """A part of parts."""
    return a if a < b else b


@jit.apart
def _shifted(x: int, by: int) -> int:
    return _least(x, 1000) + by


@jit.inlined
def _twice(x: int) -> int:
    return _shifted(x, 1) + _shifted(x, 2)


@jit.choice
def both(ids: np.ndarray, n: int) -> int:
    """Calls its parts with uint32, int64 and numbers spelled out; `in` is a part of numba's own making."""
    total = 0
    for i in range(n):
        total += _twice(ids[i]) + _least(i, 7) + _least(2, 3) + (1 if i in (0, 2) else 0)
    return total


@jit.inner
def _high(x: np.uint64) -> np.uint64:
    return x >> np.uint64(63)


@jit.choice
def high(x: int) -> int:
    return np.int64(_high(np.uint64(x)))


def by_hand(ids: list[int]) -> int:
    return sum(2 * min(x, 1000) + 3 + min(i, 7) + 2 + (i in (0, 2)) for i, x in enumerate(ids))


def test_a_root_and_its_parts_are_right() -> None:
    ids = [5, 2000, 7, 4_000_000_000]
    assert both(np.array(ids, np.uint32), 4) == by_hand(ids)


def test_a_part_is_compiled_once_whatever_integers_it_is_called_with() -> None:
    both(np.zeros(1, np.uint32), 1)
    for part in (_least, _shifted, _twice):
        (only,) = part.part.overloads  # numba's own: four, of _least
        assert set(only) == {numba.types.int64}


def test_unsigned_words_stay_what_they_are() -> None:
    assert high(-1) == 1  # as int64 the shift would carry the sign: -1


def test_a_part_has_no_machine_code_and_a_root_has() -> None:
    both(np.zeros(1, np.uint32), 1)
    (part,) = _shifted.part.overloads.values()
    assert part.library.get_pointer_to_function(part.fndesc.llvm_func_name) == 0
    (root,) = both.dispatcher.overloads.values()
    assert root.entry_point(np.zeros(1, np.uint32), 1) == by_hand([0])
