"""Keeping what several runs share: a function `memo(key, make)` that may give back what an earlier `make` made.

`sim.prepare.prepare` asks one for everything that does not depend on the whole spec (the trace, its steps, costs, what
is fitted). `afresh` keeps nothing; a `Kept` belongs to whoever made it, so two of them know nothing of each other.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

T = TypeVar("T")


class Memo(Protocol):
    """Called with a key and a function without arguments, gives that function's value: equal keys, equal values."""

    def __call__(self, key: object, make: Callable[[], T]) -> T: ...


def afresh(key: object, make: Callable[[], T]) -> T:
    """Keeps nothing."""
    return make()


def within(memo: Memo) -> Memo:
    """The same memo, asked for each key once: for the parts of one preparation, which ask again for what they share."""
    had: dict[str, Any] = {}

    def once(key: object, make: Callable[[], T]) -> T:
        name = repr(key)
        if name not in had:
            had[name] = memo(key, make)
        value: T = had[name]
        return value

    return once


class Kept:
    """Keeps values until their arrays exceed `limit_bytes`; then those not asked for longest go.

    Keys are compared by their repr, since to Python 1, 1.0 and True are equal. A `make` that raises keeps nothing.
    Memory-mapped arrays count nothing: the page cache holds them once for every process.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._values: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def __call__(self, key: object, make: Callable[[], T]) -> T:
        name = repr(key)
        if name in self._values:
            self._values.move_to_end(name)
            kept: T = self._values[name][0]
            return kept
        value = make()
        size = _array_bytes(value)
        self._values[name] = (value, size)
        self.bytes += size
        while self.bytes > self.limit_bytes and len(self._values) > 1:
            self.bytes -= self._values.popitem(last=False)[1][1]
        return value


def _array_bytes(value: Any) -> int:
    """Bytes of the arrays that a value holds, maps of files aside."""
    if isinstance(value, np.ndarray):
        return 0 if _mapped(value) else value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_array_bytes, value.values()))
    if isinstance(value, (tuple, list)):
        return sum(map(_array_bytes, value))
    if is_dataclass(value):
        return sum(_array_bytes(getattr(value, field.name)) for field in fields(value))
    return 0


def _mapped(array: Any) -> bool:
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False
