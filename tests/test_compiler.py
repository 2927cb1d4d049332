"""What is used of numba's inside: parts are compiled once and linked once, whoever calls them with what integers."""

# mypy: disable-error-code="attr-defined, no-untyped-call"

import gc
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.compiler import DefaultPassBuilder

from sim.core import jit
from sim.core.memory import Memory

pytestmark = pytest.mark.skipif(not jit.compiles(), reason="nothing is compiled")


@pytest.fixture(autouse=True, scope="module")
def nothing_kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What an earlier run compiled tells nothing."""
    jit.compiler()
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(tmp_path_factory.mktemp("cache"))
    yield
    numba.config.CACHE_DIR = before


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


class Some(Memory):
    """What a version may do without."""

    n: Any  # int64 [1]


@jit.inner
def _without(x: int) -> int:
    return x + 1


@jit.inner
def _with(some: Any, x: int) -> int:
    return some.n[0] + x


@jit.choice
def with_it(some: Any, x: int) -> int:
    """One part where there is something, another where there is nothing."""
    return _without(x) if some is None else _with(some, x)


def test_what_a_version_does_without_is_not_compiled_either_way() -> None:
    assert with_it(Some(n=np.full(1, 7)), 2) == 9 and not _without.part.overloads
    (only,) = _with.part.overloads
    assert with_it(None, 2) == 3 and [*_with.part.overloads] == [only] and len(_without.part.overloads) == 1


def test_what_is_left_out_of_numbas_passes_is_there_to_be_left_out() -> None:
    names = {each.name() for each, _ in DefaultPassBuilder.define_nopython_pipeline(_state()).passes}
    assert {*jit.compiler().NEEDLESS} <= names


def _state() -> Any:
    """As much of a compilation's as a pipeline looks at."""

    class State(dict[str, Any]):
        __getattr__ = dict.__getitem__

    flags = numba.core.compiler.Flags()
    return State(flags=flags, func_ir=None)


def test_pythons_collector_collects_again() -> None:
    assert gc.isenabled()
    with_it(None, 5)
    assert gc.isenabled()
