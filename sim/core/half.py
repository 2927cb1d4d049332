"""float16 from its bits: numba does not compute with float16 on a CPU, and a trace's logits stay memory-mapped."""

from typing import Any

import numpy as np

from sim.core.jit import apart, choice

_BIAS = 2.0 ** (1023 - 15)  # between the exponents of a double and of a float16
_LARGEST = 0x7C00  # exponent: of infinities and of what is no number


@choice
def half_to_float(bits: Any) -> float:
    """The value of a float16 given as uint16 (IEEE 754 binary16), exactly.

    Its exponent and fraction at their places in a double are that value / _BIAS, those without a leading 1 included."""
    wide = np.int64(bits)
    if wide & _LARGEST == _LARGEST:
        return _infinite(wide)
    return np.int64((wide & 0x8000) << 48 | (wide & 0x7FFF) << 42).view(np.float64) * _BIAS


@apart
def _infinite(bits: Any) -> Any:
    """A call, so that nobody else computes it and then chooses."""
    return np.int64((bits & 0x8000) << 48 | (bits & 0x7FFF) << 42 | 0x7FF << 52).view(np.float64)


@choice
def half_rank(bits: Any) -> int:
    """An integer that is less, equal or greater as the value of that float16 is: its magnitude with its sign."""
    wide = np.int64(bits)
    sign = wide >> 15
    return ((wide & 0x7FFF) ^ -sign) + sign  # type: ignore[return-value]
