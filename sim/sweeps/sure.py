"""How sure a comparison is: intervals over requests, by the paired bootstrap.

A request's time is its share of the decode steps that it is in, each step shared alike by its rows; so the times of all
requests sum to the decode time, and tokens/s is their tokens over their times, whatever the batch. Requests are drawn
with replacement (Efron 1979); two runs of the same requests are compared on the same draws. The interval says how far
other requests of the same kind might have moved the figure; it knows nothing of other kinds of requests, nor of how
well the model of the machine fits yours.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
DRAWS = 2_000
LEVEL = 0.95


@dataclass(frozen=True)
class PerRequest:
    """tokens [n] that each request generated, ns [n] of decode time that they took; request [n]: which it is."""

    request: npt.NDArray[np.int64]
    tokens: Float
    ns: Float

    @staticmethod
    def of(record: Any) -> "PerRequest":
        """Of a sim.record.RunRecord: the requests with a generated token, in the order of the trace."""
        steps, requests = record.steps, record.requests
        decode = steps["prefill"] == 0
        each = (steps["end_ns"] - steps["begin_ns"])[decode] / np.maximum(steps["rows"][decode], 1)
        until = np.concatenate([[0.0], np.cumsum(each)])
        chosen = np.flatnonzero(requests["generated"] > 0)
        order = chosen[np.argsort(requests["request"][chosen], kind="stable")]
        first, n = requests["first_decode"][order], requests["generated"][order]
        return PerRequest(requests["request"][order], n.astype(np.float64), until[first + n] - until[first])

    def rates(self, draws: npt.NDArray[np.int64]) -> Float:
        """Tokens per second of each draw of requests, [draws]."""
        rates: Float = self.tokens[draws].sum(axis=1) / self.ns[draws].sum(axis=1) * 1e9
        return rates


def drawn(n: int, seed: int) -> npt.NDArray[np.int64]:
    """int64 [DRAWS, n]: requests drawn with replacement."""
    return np.random.default_rng(seed).integers(0, n, (DRAWS, n))


def interval(values: Float) -> tuple[float, float]:
    """The middle LEVEL of the values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
