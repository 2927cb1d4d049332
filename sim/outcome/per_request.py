"""What each request of a run took: the one definition under every interval over requests.

A request's decode time is the sum, over the counted decode steps it takes part in, of the step's time divided by the
rows that share the step, times its own; its tokens are its rows there that count. Over all requests both add up exactly
to the summary's `decode_ns` and `tokens`, so that tokens/s = sum_i tokens_i / sum_i time_i, whatever the batch.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.machines.record import RunRecord
from sim.outcome.summary import begun

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
LEVEL = 0.95  # of every interval
DRAWS = 2000  # of the bootstrap


@dataclass(frozen=True)
class PerRequest:
    """One row per request of a run, ascending in `request`. tokens int64: of counted decode steps; time_ns float64: its
    share of them; tpot_ms float64: as the summary takes it, NaN where it has none."""

    request: Int
    tokens: Int
    time_ns: Float
    tpot_ms: Float

    def with_tokens(self) -> "PerRequest":
        """Those that had a counted token."""
        some = self.tokens > 0
        return PerRequest(self.request[some], self.tokens[some], self.time_ns[some], self.tpot_ms[some])

    def rates(self, draws: Int) -> Float:
        """Tokens per second of each draw of requests, [draws]; two runs are compared on the same draws."""
        rates: Float = self.tokens[draws].sum(axis=1) / self.time_ns[draws].sum(axis=1) * 1e9
        return rates


def drawn(n: int, seed: int) -> Int:
    """int64 [DRAWS, n]: one of n drawn with replacement, n times (the bootstrap: Efron 1979)."""
    return np.random.default_rng(seed).integers(0, n, (DRAWS, n))


def per_request(record: RunRecord) -> PerRequest:
    """What each request took: decode steps after the warm-up only."""
    r, steps = record.requests, record.steps
    whole = begun(record) & (r["tokens"] > 1)
    gaps = np.maximum(r["tokens"] - 1, 1)
    tpot = np.where(whole, (r["last_ns"] - r["first_ns"]) / gaps / 1e6, np.nan)
    order = np.argsort(r["request"], kind="stable")
    tokens = shares(record, steps["rows"], accepted=True).round().astype(np.int64)
    return PerRequest(r["request"][order], tokens, shares(record, steps["end_ns"] - steps["begin_ns"]), tpot[order])


def shares(record: RunRecord, by_step: Float | Int, accepted: bool = False) -> Float:
    """What each request has of amounts by step, [requests], ascending in `request`: over the counted decode steps that
    it takes part in, by its rows among those that share the step; or by those that are `accepted` alone."""
    step, whose, rows = _taken(record, accepted)
    each = np.where(step >= record.warmup_steps, by_step[step] / np.maximum(record.steps["rows"][step], 1), 0.0)
    request = record.requests["request"]
    found: Float = np.bincount(whose, each * rows, len(request)).astype(np.float64)[np.argsort(request, kind="stable")]
    return found


def _taken(record: RunRecord, accepted: bool) -> tuple[Int, Int, Int]:
    """(step, request in order of admission, rows) of each time that a request takes part in a decode step."""
    if record.windows:
        rows = record.windows["accepted" if accepted else "rows"]
        return record.windows["step"], record.windows["request"], rows
    r, decode = record.requests, np.flatnonzero(record.steps["prefill"] == 0)
    n = r["generated"]
    whose = np.repeat(np.arange(len(n)), n)
    at = np.arange(len(whose)) - np.repeat(np.cumsum(n) - n, n) + np.repeat(r["first_decode"], n)
    return decode[at], whose, np.ones(len(whose), np.int64)


def interval(values: Float) -> tuple[float, float]:
    """The middle LEVEL of the values: a percentile interval (Efron and Tibshirani 1993, chapter 13)."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
