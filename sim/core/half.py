"""float16 from its bits: numba does not compute with float16 on a CPU, and a trace's logits stay memory-mapped."""

import math
from typing import Any

from sim.core.jit import choice


@choice
def half_to_float(bits: Any) -> float:
    """The value of a float16 given as uint16 (IEEE 754 binary16), exactly."""
    sign = -1.0 if bits >> 15 else 1.0
    exponent, fraction = (bits >> 10) & 31, float(bits & 1023)
    if exponent == 31:
        return sign * math.inf if fraction == 0.0 else math.nan
    if exponent == 0:
        return sign * fraction * 2.0**-24
    return sign * (1024.0 + fraction) * 2.0 ** (float(exponent) - 25.0)
