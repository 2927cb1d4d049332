"""How far predictions are off: each row by constants that no row of its machine had a part in, or by two anchors."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from sim.catalog.intervals import LEVEL
from sim.timings.effects import Observed, fit, simulated, solved, spread
from sim.timings.estimate import Estimate
from traces.progress import counted

JUDGED = 4  # rows of grade A or B that a group needs to be judged
EIGHTY = 1.2816  # standard deviations on each side that hold 80 % of a normal distribution
ANCHOR_NOISE = 0.02  # of the logarithm of two timings made the same way on one machine
LEAST_SD = 0.02


@dataclass(frozen=True)
class Judged:
    """A row with what was predicted for it, seconds per token: before any timing, with one factor of its engine, with
    all terms (its machine left out of both), `sd` the standard deviation of the last one's logarithm; with two anchors
    of its machine, None of an anchor and where there are none."""

    row: Observed
    before: float
    one_factor: float
    left_out: float
    sd: float
    anchored: float | None = None
    anchor: bool = False

    def error(self, seconds: float) -> float:
        """Predicted over published speed, less 1."""
        return self.row.timing.seconds / seconds - 1

    @property
    def interval(self) -> tuple[float, float]:
        """Seconds per token that should hold 80 % of such rows."""
        factor = math.exp(EIGHTY * self.sd)
        return self.left_out / factor, self.left_out * factor

    @property
    def held(self) -> bool:
        """Whether the interval holds what was published."""
        return abs(self.z) <= EIGHTY

    @property
    def z(self) -> float:
        """Logarithm of measured over predicted time, in standard deviations."""
        return math.log(self.row.timing.seconds / self.left_out) / self.sd


def judge(observed: Sequence[Observed], workers: int | None = None) -> list[Judged]:
    """Every row with its machine left out; grade C is judged, and taught by none. Each prediction is simulated."""
    teach = [row for row in observed if row.timing.grade != "C"]
    wanted: list[_Wanted] = []
    machines = [*dict.fromkeys(row.timing.measured_on for row in observed)]
    for machine in counted(machines, "leaving out machine", str):
        others = [row for row in teach if row.timing.measured_on != machine]
        mine = [row for row in observed if row.timing.measured_on == machine]
        found = fit(others)
        anchored = _anchored(mine, found)
        wanted += [_Wanted(row, found, *anchored.get(row.timing.id, (None, False))) for row in mine]
    jobs = [(each.row, [{}, each.found.by_name, (each.learned or each.found).by_name]) for each in wanted]
    times = dict(zip((each.row.timing.id for each in wanted), simulated(jobs, workers), strict=True))
    before = {name: values[0] for name, values in times.items()}
    out = [_judged(each, times[each.row.timing.id], teach, before) for each in wanted]
    return [replace(one, sd=one.sd * _scale(one, out)) for one in out]


@dataclass(frozen=True)
class _Wanted:
    """A row, what all other machines tell, and what two anchors add; whether it is one of them."""

    row: Observed
    found: Estimate
    learned: Estimate | None
    anchor: bool


def _judged(
    each: _Wanted, times: Sequence[float], teach: Sequence[Observed], every_before: Mapping[str, float]
) -> Judged:
    before, left_out, anchored = times
    theirs = [row for row in teach if row.timing.measured_on != each.row.timing.measured_on]
    factor = _factor(theirs, each.row, every_before)
    sd = max(each.row.seconds(each.found)[1], LEAST_SD)
    known = None if each.anchor or each.learned is None else anchored
    return Judged(each.row, before, before * factor, left_out, sd, known, each.anchor)


def _scale(one: Judged, every: Sequence[Judged]) -> float:
    """By how much the standard deviations of the other machines' rows of its phase would have had to be larger for
    their intervals to hold 80 %."""
    timing = one.row.timing
    others = [
        abs(other.z)
        for other in every
        if other.row.timing.measured_on != timing.measured_on
        and other.row.timing.prefill == timing.prefill
        and other.row.timing.grade != "C"
    ]
    return float(np.quantile(others, LEVEL)) / EIGHTY if others else 1.0


def _factor(others: Sequence[Observed], row: Observed, before: Mapping[str, float]) -> float:
    """Median of measured over predicted time before any timing, of the engine's other machines; 1 without any."""
    theirs = defaultdict(list)
    for other in others:
        same = other.timing.published_engine == row.timing.published_engine
        if same and other.timing.prefill == row.timing.prefill:
            theirs[other.timing.measured_on].append(other.timing.seconds / before[other.timing.id])
    return median(median(each) for each in theirs.values()) if theirs else 1.0


def _anchored(mine: Sequence[Observed], found: Estimate) -> dict[str, tuple[Estimate, bool]]:
    """By id, (what its series' anchors tell, whether it is one): of each series with more than two rows the fastest
    and the slowest by prediction."""
    groups = defaultdict(list)
    for row in mine:
        groups[row.timing.series].append(row)
    out: dict[str, tuple[Estimate, bool]] = {}
    for rows in groups.values():
        ordered = sorted(rows, key=lambda row: row.seconds(found)[0])
        anchors = [ordered[0], ordered[-1]]
        if len(rows) > len(anchors):
            learned = with_anchors(anchors, found)
            out |= {row.timing.id: (learned, row in anchors) for row in rows}
    return out


def with_anchors(anchors: Sequence[Observed], found: Estimate) -> Estimate:
    """What a machine's own timings say, on top of `found`, which was found without them."""
    start, noise = found.by_name, np.full(len(anchors), ANCHOR_NOISE)
    moved = solved(anchors, noise, lambda name: _left(name, found), start)
    names = tuple(sorted({*found.names, *moved.names}))
    sums = np.array([start.get(name, 0.0) + moved.by_name.get(name, 0.0) for name in names])
    covariance = np.zeros((len(names), len(names)))
    where = [names.index(name) for name in moved.names]
    covariance[np.ix_(where, where)] = moved.covariance
    return Estimate(names, sums, covariance, np.array([spread(name) for name in names]))


def _left(name: str, found: Estimate) -> float:
    """What is left of an effect's spread once all other machines have told theirs."""
    return found.of({name: 1.0})[1] if name in found.by_name else spread(name)
