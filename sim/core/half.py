"""float16 from its bits: numba does not compute with float16 on a CPU, and a trace's logits stay memory-mapped."""

import math
from typing import Any

import numpy as np

from sim.core.jit import choice

# by its exponent the worth of a fraction's last bit; looked up, for a power takes most of a run that reads logits
_UNIT = 2.0 ** np.maximum(np.arange(-25, 7), -24)


@choice
def half_to_float(bits: Any) -> float:
    """The value of a float16 given as uint16 (IEEE 754 binary16), exactly."""
    sign = -1.0 if bits >> 15 else 1.0
    exponent, fraction = (bits >> 10) & 31, float(bits & 1023)
    if exponent == 31:
        return sign * math.inf if fraction == 0.0 else math.nan
    return sign * (fraction if exponent == 0 else 1024.0 + fraction) * _UNIT[exponent]
