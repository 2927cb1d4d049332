"""What each counted request of a run took and held, as serving benchmarks count it: the rows of sim.outcome.aiperf and
sim.outcome.otel.

A request begins when it is admitted: nobody waits in a queue before that. Its first token comes with the end of its
prompt, each further one with the end of a decode step (of a window, all that are accepted at once). A request that the
run cuts off ends there.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.machines.record import RunRecord
from sim.outcome.summary import begun, gaps

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Requests:
    """[n], in order of admission: when each was admitted, had its first token, its second (-1: none) and its last, ns;
    tokens of its prompt and generated ones. gap_ns: from each token of a request to its next, of all."""

    request: Int
    admitted_ns: Int
    first_ns: Int
    second_ns: Int
    last_ns: Int
    prompt: Int
    tokens: Int
    gap_ns: Int

    def __len__(self) -> int:
        return len(self.request)

    @property
    def latency_ns(self) -> Int:
        return self.last_ns - self.admitted_ns

    @property
    def ttft_ns(self) -> Int:
        return self.first_ns - self.admitted_ns

    @property
    def itl_ns(self) -> Float:
        """NaN where there is one token."""
        found: Float = np.full(len(self), np.nan)
        some = self.tokens > 1
        found[some] = (self.last_ns - self.first_ns)[some] / (self.tokens[some] - 1)
        return found

    @property
    def duration_ns(self) -> int:
        """From the first admission to the last token."""
        return int(self.last_ns.max() - self.admitted_ns.min()) if len(self) else 0


def requests_of(record: RunRecord) -> Requests:
    """Those that have a token, none of whose times lies in the warm-up."""
    r, warm = record.requests, record.warmup_steps
    some = np.flatnonzero(begun(record) & (r["admitted_step"] >= warm) & (r["first_ns"] >= 0))
    column = {name: r[name][some] for name in ("request", "admitted_ns", "first_ns", "last_ns", "tokens")}
    return Requests(**column, second_ns=_second(record)[some], prompt=_prompts(record)[some], gap_ns=gaps(record))


def _second(record: RunRecord) -> Int:
    """int64 [requests]: the end of the decode step behind the first token; -1 where there is none."""
    r, ends = record.requests, record.steps["end_ns"][record.steps["prefill"] == 0]
    behind = np.where(r["last_prefill_step"] >= 0, 0, 1)
    there = r["generated"] > behind
    found = np.full(len(there), -1)
    found[there] = ends[(r["first_decode"] + behind)[there]]
    return found


def _prompts(record: RunRecord) -> Int:
    """int64 [requests]: rows of their prefill steps, which come one request after another."""
    last, prefill = record.requests["last_prefill_step"], record.steps["prefill"].astype(np.bool_)
    before = np.concatenate([[0], np.cumsum(np.where(prefill, record.steps["rows"], 0))])
    order = np.argsort(last, kind="stable")
    order = order[last[order] >= 0]
    out = np.zeros(len(last), np.int64)
    out[order] = np.diff(before[last[order] + 1], prepend=0)
    return out
