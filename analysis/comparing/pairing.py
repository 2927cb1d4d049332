"""Is the difference more than luck of the draw? Paired bootstrap over the requests that two runs both judged.

Theory. A request's tokens and its share of the decode time (sim.outcome.per_request) add up over all requests to the
summary's, so that

    tokens/s = sum_i tokens_i / sum_i time_i

and the ratio of two runs over the same requests is a ratio of sums of pairs. Requests are drawn with replacement, the
same draw for both runs (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 and 13: percentile
intervals), `resamples` times from a seeded generator. The requests are taken as exchangeable; that they share one
cache, and in a batch its steps, is not modelled. It says how far the result hangs on which requests there were, not
how far the machine's model is off.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.reading.run import Run
from sim.outcome.per_request import DRAWS, PerRequest, interval, per_request

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

RESAMPLES = DRAWS
FEW = 8  # below that many requests an interval says little, and it is said
BLOCK = 1 << 20  # draws held at once
STATISTIC = (
    "intervals: {level:.0%} percentile bootstrap, paired over requests, {resamples} draws, seed {seed}; tokens/s is "
    "the sum of the drawn requests' tokens by the sum of their shares of step time, TPOT their mean"
)


@dataclass(frozen=True)
class Paired:
    """A run against the baseline over the n requests of both. Intervals are (low, high), None where nothing compares.

    ratio: tokens/s of the run by the baseline's; tpot_ms: mean of the run's TPOT minus the baseline's, and n_tpot its
    requests.
    """

    n: int
    ratio: float | None
    ratio_interval: tuple[float, float] | None
    n_tpot: int
    tpot_ms: float | None
    tpot_interval: tuple[float, float] | None


def why_not(run: Run, base: Run) -> str | None:
    """Why two runs cannot be paired, or None."""
    if run.record is None or base.record is None:
        return "no record.npz"
    if run.trace["hash"] != base.trace["hash"]:
        return "another trace"
    if run.judged != base.judged:
        return "other requests judged (calibration, seed or as_decode differ)"
    return None


def paired(run: PerRequest, base: PerRequest, seed: int = 0, resamples: int = RESAMPLES) -> Paired:
    """The run against the baseline, over requests that gave the same number of counted tokens in both."""
    _, mine, theirs = np.intersect1d(run.request, base.request, return_indices=True)
    same = run.tokens[mine] == base.tokens[theirs]
    mine, theirs = mine[same], theirs[same]
    some = run.tokens[mine] > 0
    a, b = run.time_ns[mine[some]], base.time_ns[theirs[some]]
    both = np.isfinite(run.tpot_ms[mine]) & np.isfinite(base.tpot_ms[theirs])
    gap = run.tpot_ms[mine[both]] - base.tpot_ms[theirs[both]]
    ratio = float(b.sum() / a.sum()) if len(a) and a.sum() > 0 else None
    ratio_interval = tpot_interval = None
    if ratio is not None and len(a) > 1:
        sums = _resampled(np.stack([b, a]), seed, resamples)
        ratio_interval = interval(sums[0] / np.maximum(sums[1], np.finfo(float).tiny))
    if len(gap) > 1:
        tpot_interval = interval(_resampled(gap[None], seed, resamples)[0] / len(gap))
    tpot = float(gap.mean()) if len(gap) else None
    return Paired(len(a), ratio, ratio_interval, len(gap), tpot, tpot_interval)


def _resampled(rows: Float, seed: int, resamples: int) -> Float:
    """Sums over n drawn columns, float64 [rows, resamples]: the same draws for every row."""
    n = rows.shape[1]
    rng = np.random.default_rng(seed)
    out = np.empty((len(rows), resamples))
    block = max(1, BLOCK // n)
    for lo in range(0, resamples, block):
        draw = rng.integers(0, n, (min(block, resamples - lo), n))
        out[:, lo : lo + len(draw)] = rows[:, draw].sum(axis=2)
    return out


def against(runs: list[Run], base: Run, seed: int, resamples: int) -> list[Paired | str | None]:
    """Each run against the baseline: what was found, or why not; None for the baseline itself."""
    theirs = per_request(base.record) if base.record is not None else None
    out: list[Any] = []
    for run in runs:
        reason = why_not(run, base)
        if run is base:
            out.append(None)
        elif reason is not None or theirs is None or run.record is None:
            out.append(reason)
        else:
            found = paired(per_request(run.record), theirs, seed, resamples)
            out.append(found if found.n else "no request with the same tokens in both")
    return out
