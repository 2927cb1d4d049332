"""Which part of a run would have to be wrong, and by how much, for its times to be those that were measured.

Each part alone is scaled and the run is simulated again, until what is compared adds up to what was measured. That sum
many parts can reach; what tells them apart is the pattern over steps: how much is left of each step's difference when
the sums agree. All of it is correlation, and a part that explains the times need not be the one that is wrong.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis.comparing.own_times import OwnTimes
from analysis.comparing.parts import PARTS, Part
from analysis.comparing.seen import Seen, seen
from sim.machines.record import RunRecord
from sim.memo import Kept
from sim.simulation import machine
from traces.errors import UserError
from traces.progress import counted

if TYPE_CHECKING:
    from sim.prepare import Setting

Float = npt.NDArray[np.float64]
LOW, HIGH = 0.1, 10.0  # factors on a part's times that are still believed
CLOSE, TRIES = 1e-5, 30  # of the sum; simulations of one part
ALIKE = 3.0  # natural logarithm of a ratio of likelihoods below which two parts are not told apart
ROUNDED = 1e-5  # of a mean time: what is left below it is rounding
MISSES = Part("number of misses", "what is resident when it is wanted", lambda setting, factor: setting.plan)
KEPT_BYTES = 500_000_000
CANNOT = "cannot be it: "  # begins why a part is not it, whatever its size


@dataclass(frozen=True)
class Explanation:
    """One part. factor: on its times (a rate's is one over it, see `Part`; ms where it is added), None where none
    explains the sum, and `why_not` says it. ms: what is simulated with it; left: see `left`. tied: not told apart from
    the best. note: how it was found."""

    part: Part
    factor: float | None
    ms: Float | None = None
    left: float = math.inf
    tied: bool = False
    why_not: str = ""
    note: str = ""


@dataclass(frozen=True)
class Why:
    """One run held against the times. ms: simulated; record: of the run again, full; parts: the best first."""

    setting: "Setting"
    seen: Seen
    ms: Float
    record: RunRecord
    parts: Sequence[Explanation]


def why(setting: "Setting", own: OwnTimes) -> Why:
    """Simulate the run again and again. Raises UserError, one line, where nothing can be compared."""
    record = machine("compiled")(setting.plan, True)
    compared = seen(own, record)
    ms = compared.of(record)
    if not (compared.weight @ ms) > 0:
        raise UserError(f"{own.source}: what it measured takes no time in this run")
    found = [_explained(setting, compared, ms, part) for part in counted(PARTS, "part", lambda part: part.name)]
    found.append(_by_misses(setting, compared, ms))
    return Why(setting, compared, ms, record, _ranked(found, compared))


def left(compared: Seen, ms: Float) -> float:
    """Root mean square of what differs, as shares of a phase's mean time; of figures, of themselves."""
    return float(np.sqrt(np.mean(((compared.ms - ms) * compared.weight) ** 2)))


def _ranked(found: Sequence[Explanation], compared: Seen) -> list[Explanation]:
    """Those that explain the sum first, the least left in front, then by the smaller change; last of
    equals what can be anything."""

    def standing(one: Explanation) -> tuple[float, float]:
        change = math.inf if one.factor is None or one.part.added else abs(math.log(one.factor))
        return round(max(one.left, ROUNDED), 5), change

    order = sorted((one for one in found if one.factor is not None), key=standing)
    n = len(compared.ms)
    for i, one in enumerate(order):
        best = max(order[0].left, ROUNDED)
        order[i] = replace(one, tied=i > 0 and n * math.log(max(one.left, ROUNDED) / best) < ALIKE)
    return [*order, *(one for one in found if one.factor is None)]


# --- one part ---


def _explained(setting: "Setting", compared: Seen, ms: Float, part: Part) -> Explanation:
    """By a factor, else by ms that are added to a part that can have more."""
    found = _scaled(setting, compared, ms, part)
    if found.factor is None and part.more is not None and compared.weight @ compared.ms > compared.weight @ ms:
        more = _scaled(setting, compared, ms, replace(part, plan=part.more, rate=False, added=True))
        return found if more.factor is None else more
    return found


def _scaled(setting: "Setting", compared: Seen, ms: Float, part: Part) -> Explanation:
    target, begin = float(compared.weight @ compared.ms), float(compared.weight @ ms)
    had: dict[float, Float] = {0.0 if part.added else 1.0: ms}

    def total(factor: float) -> float:
        if factor not in had:
            had[factor] = compared.of(machine("compiled")(part.plan(setting, factor), False))
        return float(compared.weight @ had[factor])

    least, start, most = (0.0, 0.0, HIGH * float(np.mean(compared.ms))) if part.added else (LOW, 1.0, HIGH)
    end = most if target > begin else least
    if abs(target - begin) <= CLOSE * target:
        return Explanation(part, start, ms, left(compared, ms))
    reached = total(end)
    if abs(reached - begin) <= CLOSE * begin:
        return Explanation(part, None, why_not=_no_effect(part, end))
    if (reached - target) * (begin - target) > 0:
        return Explanation(part, None, why_not=_not_enough(part, end, target, total))
    factor = solved(total, target, min(start, end), max(start, end))
    total(factor)
    return Explanation(part, factor, had[factor], left(compared, had[factor]))


def _no_effect(part: Part, end: float) -> str:
    if part.added and end == 0:
        return f"{CANNOT}the run is slower than what was measured already: it would have to be less than nothing"
    return f"{CANNOT}this run has none of it, or hides all of it behind something else"


def _not_enough(part: Part, end: float, target: float, total: Callable[[float], float]) -> str:
    """What a part would have to be; where it is to be less, whether it could be at all."""
    if end < 1 and total(0.0) > target:
        return f"{CANNOT}with none of it the sum is still {total(0.0) / target:.3f} of what was measured"
    told = f"{1 / end if part.rate else end:g}"
    bound = "more" if (end > 1) != part.rate else "less"
    return f"would have to be {bound} than x {told}, which brings the sum to {total(end) / target:.3f} of the measured"


def solved(total: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a sum that never falls (but for a little) meets the target: regula falsi with Illinois' halving."""
    a, b = low, high
    at_a, at_b = total(a) - target, total(b) - target
    for _ in range(TRIES):
        middle = (a * at_b - b * at_a) / (at_b - at_a) if at_b != at_a else (a + b) / 2
        off = total(middle) - target
        if abs(off) <= CLOSE * target or b - a <= 1e-9 * b:
            return middle
        if (off > 0) == (at_b > 0):
            b, at_b, at_a = middle, off, at_a / 2
        else:
            a, at_a, at_b = middle, off, at_b / 2
    return middle


# --- the number of misses: by slots, which are whole ---


def _by_misses(setting: "Setting", compared: Seen, ms: Float) -> Explanation:
    """With other slots of the same policy: the two sizes between which the sum agrees, and a line between them."""
    slots = setting.plan.slots
    if not isinstance(setting.spec.cache, int | float) or (slots != slots[0]).any():
        why_not = "not tried: the slots of this run are its engine's, or not the same in all layers"
        return Explanation(MISSES, None, why_not=why_not)
    target, own = float(compared.weight @ compared.ms), int(slots[0])
    most = setting.plan.n_experts * (setting.plan.experts.shape[1] if setting.plan.pooled else 1)
    runs = _BySlots(setting, compared)
    if (runs.total(own) - target) * (runs.total(1 if target > runs.total(own) else most) - target) > 0:
        end = 1 if target > runs.total(own) else most
        reached = runs.total(end) / target
        told = f"{CANNOT}even {end} slots in place of {own} bring the sum to {reached:.3f} of what was measured"
        return Explanation(MISSES, None, why_not=told)
    few, many = (1, own) if target > runs.total(own) else (own, most)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if runs.total(middle) > target else (few, middle)
    a, b = runs.total(few), runs.total(many)
    share = 0.0 if a == b else min(1.0, max(0.0, (a - target) / (a - b)))
    mixed = (1 - share) * runs.ms(few) + share * runs.ms(many)
    misses = (1 - share) * runs.misses(few) + share * runs.misses(many)
    if not runs.misses(own) or not misses:
        return Explanation(MISSES, None, why_not=f"{CANNOT}this run, or the one that would agree, has no misses")
    note = f"as with {few + share:.2f} slots in place of {own}, on a line between whole ones"
    return Explanation(MISSES, misses / runs.misses(own), mixed, left(compared, mixed), note=note)


class _BySlots:
    """The run with so many slots of each scope, each once."""

    def __init__(self, setting: "Setting", compared: Seen) -> None:
        self.setting, self.compared, self.memo = setting, compared, Kept(KEPT_BYTES)
        self.had: dict[int, RunRecord] = {int(setting.plan.slots[0]): machine("compiled")(setting.plan, False)}

    def record(self, slots: int) -> RunRecord:
        if slots not in self.had:
            from sim.prepare import prepare

            setting = self.setting
            spec = setting.spec.model_copy(update={"cache": slots})
            known: dict[str, Any] = {"model": setting.model}
            self.had[slots] = machine("compiled")(prepare(spec, self.memo, **known).plan, False)
        return self.had[slots]

    def ms(self, slots: int) -> Float:
        return self.compared.of(self.record(slots))

    def total(self, slots: int) -> float:
        return float(self.compared.weight @ self.ms(slots))

    def misses(self, slots: int) -> int:
        return int(self.record(slots).layer["misses"].sum())
