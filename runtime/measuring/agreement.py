"""How far a simulation is off, beside how far one measurement lies from the next: numbers in, numbers out.

Signed errors are (simulated - measured) / measured. The spread of a case is the robust standard deviation of its
repeats (interquartile range / 1.349, which for a normal distribution is the standard deviation) over their median: what
one more run may differ by. Unlike the range it does not grow with the number of repeats. The statements:

* a case is *within* when |error| <= tolerance; it is *outside* when |error| > tolerance + 2 x spread; anything else,
  and everything whose spread is wider than the tolerance, is inconclusive;
* the errors of the time that is not stall are judged in the median alone, as those of the whole time are: where cases
  wait for the link most of the time, an error of the kernels hardly shows in the whole. A case that does nothing but
  wait has none;
* two cases are told apart when their medians differ by more than the sum of their spreads (in ns). Kendall's tau is
  taken over those pairs alone: (concordant - discordant) / pairs (Kendall, Biometrika 30 (1938) 81-93). It is outside
  when it is too low over the pairs that differ by more than twice that, too.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import combinations
from statistics import median

import numpy as np

COMPONENTS = ("dense", "decide", "experts", "stall", "cpu_wait", "head")
REGIMES = ("compute", "mixed", "stall")
IQR_OF_NORMAL = 1.349  # interquartile range of a normal distribution, in standard deviations
LOW, HIGH = 0.2, 0.8  # shares of the time that the GPU stalls, between the regimes
CASES = 2  # that a regime needs to be covered
# what is promised of |error| of the time per token, as shares, and of tau
TOLERANCE = {"median": 0.10, "without_link": 0.10, "worst": 0.20, "tau": 0.9}
KINDS = {"compute": "compute-only", "mixed": "mixed-only", "stall": "link-only"}  # what a record of one regime is


class Verdict(IntEnum):
    """The exit status."""

    WITHIN = 0
    OUTSIDE = 1
    INCONCLUSIVE = 3


@dataclass(frozen=True)
class CaseTimes:
    """One case in short. error: signed; spread: share; ns: time per token, measured and simulated; group: cases of one
    group are ranked against each other; awake: error and spread of the time that is not stall, None without any."""

    error: float
    spread: float
    measured_ns: float
    simulated_ns: float
    group: str = ""
    awake: tuple[float, float] | None = None


def spread(values: Sequence[float]) -> float:
    """Interquartile range / 1.349 over the median, of repeats; 0 where that is 0. One repeat has none: infinite."""
    if len(values) < 2:
        return float("inf")
    low, center, high = np.percentile(values, (25, 50, 75)).tolist()
    return float((high - low) / IQR_OF_NORMAL / center) if center else 0.0


def signed_error(simulated: float, measured: float) -> float | None:
    """(simulated - measured) / measured; None where nothing was measured."""
    return (simulated - measured) / measured if measured else None


def regime(stall_share: float) -> str:
    """Which of REGIMES a share of stall belongs to: under 20 %, between, over 80 %."""
    return REGIMES[0] if stall_share < LOW else REGIMES[2] if stall_share > HIGH else REGIMES[1]


def kind(regimes: Sequence[str]) -> str:
    """What cases in these regimes can show: `full` where two regimes are covered; one of KINDS where all are in one,
    and nothing of what the others would; else `thin`: there is no second regime with enough cases."""
    counts = Counter(regimes)
    if len(counts) == 1:
        return KINDS[regimes[0]]
    return "full" if sum(n >= CASES for n in counts.values()) > 1 else "thin"


def separated(a: CaseTimes, b: CaseTimes, times: float = 1.0) -> bool:
    """Whether measurement tells two cases apart, by more than so many `times` their spreads."""
    return abs(a.measured_ns - b.measured_ns) > times * (a.spread * a.measured_ns + b.spread * b.measured_ns)


def tau(cases: Sequence[CaseTimes], times: float = 1.0) -> tuple[float | None, int]:
    """(Kendall's tau over the pairs of one group that are told apart, how many those are); None without any. A tie of
    the simulated times is neither concordant nor discordant."""
    pairs = [(a, b) for a, b in combinations(cases, 2) if a.group == b.group and separated(a, b, times)]
    if not pairs:
        return None, 0
    signs = [np.sign(a.measured_ns - b.measured_ns) * np.sign(a.simulated_ns - b.simulated_ns) for a, b in pairs]
    return float(np.mean(signs)), len(pairs)


def judge(error: float, spread_: float, tolerance: float) -> Verdict:
    """One |error| against a tolerance."""
    if error > tolerance + 2 * spread_:
        return Verdict.OUTSIDE
    return Verdict.WITHIN if error <= tolerance and spread_ <= tolerance else Verdict.INCONCLUSIVE


def judge_median(errors: Sequence[tuple[float, float]], tolerance: float) -> Verdict:
    """The median of several |error|, of (error, spread), with the median spread; nothing there shows nothing."""
    if not errors:
        return Verdict.INCONCLUSIVE
    return judge(median([abs(e) for e, _ in errors]), median([s for _, s in errors]), tolerance)


def judge_tau(value: float | None, clear: float | None, least: float) -> Verdict:
    """The rank agreement: over pairs told apart, and over those that are clearly so (twice their spreads). Nothing told
    apart shows nothing."""
    if value is not None and value >= least:
        return Verdict.WITHIN
    return Verdict.OUTSIDE if clear is not None and clear < least else Verdict.INCONCLUSIVE


def worst_of(verdicts: Sequence[Verdict]) -> Verdict:
    """OUTSIDE before INCONCLUSIVE before WITHIN."""
    for verdict in (Verdict.OUTSIDE, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.WITHIN


def verdicts(cases: Sequence[CaseTimes], equal: bool | None) -> dict[str, Verdict]:
    """Every statement about the times of a set of cases, by name. `equal`: hits and decisions were equal wherever they
    must be (None: wherever that was looked at, which was not everywhere). A median is judged with the median spread,
    every case with its own against `worst`."""
    return {
        "median": judge_median([(case.error, case.spread) for case in cases], TOLERANCE["median"]),
        "without_link": judge_median(
            [case.awake for case in cases if case.awake is not None], TOLERANCE["without_link"]
        ),
        "worst": worst_of([judge(abs(case.error), case.spread, TOLERANCE["worst"]) for case in cases]),
        "tau": judge_tau(tau(cases)[0], tau(cases, 2.0)[0], TOLERANCE["tau"]),
        "equal": {True: Verdict.WITHIN, False: Verdict.OUTSIDE, None: Verdict.INCONCLUSIVE}[equal],
    }
