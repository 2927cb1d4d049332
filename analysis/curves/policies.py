"""Many evictions over cache size: hits and tokens/s of each, beside the floor that no eviction gets below.

In one pass, at every capacity: `lru` (stack_distances) and `static`, whose residents never change, so that a use hits
where its expert is among them. The others by simulation, at capacities that are chosen: what they evict depends on
capacity in ways that one order of priority does not tell (uses and next uses tie by recency, which the order of hits
and misses in a visit decides; an expert that has run is no longer held while others of its visit land). `floor` is the
exact optimum with bypass (analysis.curves.floor), one pass for each chosen capacity.

Misses are exact, all of them: of decode steps, as in the curve of LRU alone. At chosen capacities those of one pass
are held against the simulator, and tokens/s are the simulator's; elsewhere, and of the floor, they are predicted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis.curves.curve import PLACEMENTS, Row, Visits, cliff, curve, fits, setting_of
from analysis.curves.floor import least_misses
from sim.catalog.intervals import DECODE as DECODING
from sim.catalog.intervals import stated
from sim.errors import SpecError
from sim.memo import Kept
from sim.policies.registry import EVICTION, find
from sim.simulation import simulate
from sim.spec import RunSpec
from traces.errors import UserError
from traces.progress import counted, doing

if TYPE_CHECKING:
    from sim.machines.record import RunRecord
    from sim.prepare import Setting

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
ALL = "all"
FLOOR = "floor"
NESTED = (*PLACEMENTS, "popular")  # at a slot more one resident more
ONE_PASS, SIMULATED, OPTIMUM = "one pass", "simulated", "optimum"
SHARES = (0.125, 0.25, 0.375, 0.5, 0.75)  # of the experts: capacities where nobody says others
MEMO_BYTES = 1 << 28


@dataclass(frozen=True)
class Line:
    """One policy over m capacities, ascending. how: ONE_PASS, SIMULATED or OPTIMUM; slots, misses (of decode steps)
    int64 [m]; predicted tokens/s [m]; simulated: tokens/s by slots."""

    policy: str
    how: str
    oracle: bool
    slots: Int
    misses: Int
    predicted: Float
    simulated: dict[int, float]

    def at(self, slots: int) -> int | None:
        """Its misses there, if known."""
        here = np.flatnonzero(self.slots == slots)
        return int(self.misses[here[0]]) if len(here) else None


@dataclass(frozen=True)
class Policies:
    """All that was found. setting: LRU's at one slot; visits: what it wants; slots: the chosen; size: of a scope;
    left_out: why a policy has no line."""

    setting: "Setting"
    visits: Visits
    slots: list[int]
    size: int
    lines: list[Line]
    left_out: dict[str, str]
    cliff: int
    fits: int | None

    @property
    def real(self) -> list[Line]:
        """Those that a machine can have: they know no future."""
        return [line for line in self.lines if not line.oracle]

    @property
    def runs(self) -> int:
        """Of the simulator."""
        return sum(len(line.simulated) for line in self.lines)


def names_of(text: str) -> list[str]:
    """The evictions of NAME,NAME or `all`, each once. Raises SpecError for an unknown one."""
    names = list(EVICTION) if text == ALL else list(dict.fromkeys(text.split(",")))
    for name in names:
        find("eviction", name)
    return names


def policies(fields: dict[str, Any], asked: str, slots: Sequence[int] | None) -> Policies:
    """The floor and each eviction that was asked for.

    Raises UserError for a setting that is wrong, slots that are not there, and a named policy that cannot run in it;
    of `all` those are left out, with the reason.
    """
    setting = setting_of(fields, NESTED)
    visits, size = Visits.of(setting), _size(setting)
    wanted = cliff(setting, visits)
    chosen = default_slots(wanted, size) if slots is None else _within(slots, size)
    runs, lines, left_out = _Runs(setting, visits), [], {}
    for name in counted([*names_of(asked)], "eviction", str):
        try:
            lines.append(_line(runs, name, chosen))
        except UserError as error:
            if asked != ALL:
                raise
            left_out[name] = str(error)
    doing("the floor", at_once=False)
    lines.append(_floor(runs, chosen))
    return Policies(setting, visits, chosen, size, lines, left_out, wanted, fits(setting, size))


def default_slots(least: int, size: int) -> list[int]:
    """From what one step wants, where all policies tie that keep no choice, to three quarters of the experts."""
    return sorted({least, *(n for share in SHARES if (n := round(share * size)) >= least)})


def _size(setting: "Setting") -> int:
    plan = setting.plan
    return int(plan.experts.shape[1] * plan.n_experts // len(plan.slots))


def _within(slots: Sequence[int], size: int) -> list[int]:
    chosen = sorted(set(slots))
    if not chosen or not 1 <= chosen[0] <= chosen[-1] <= size:
        raise UserError(f"slots: {','.join(map(str, slots))}: must lie in 1 .. {size}")
    return chosen


class _Runs:
    """The simulator's runs of one setting, which share what does not depend on eviction and slots."""

    def __init__(self, setting: "Setting", visits: Visits) -> None:
        self.setting, self.visits, self._memo = setting, visits, Kept(MEMO_BYTES)

    def of(self, eviction: str, slots: int) -> "tuple[float | None, Int]":
        """(tokens/s, misses int64 [V]). Raises UserError where that eviction cannot run."""
        spec = RunSpec.of(self.setting.spec.asked() | {"eviction": eviction, "cache": slots})
        out, record = simulate(spec, full=True, memo=self._memo)
        return out["tokens_per_s"], _misses(record)

    def rank(self) -> Int:
        """[G]: from how many slots on an expert is a first resident, less one; the size of a scope: from none on."""
        from sim.prepare import prepare

        plan, size = self.setting.plan, _size(self.setting)
        order = prepare(RunSpec.of(self.setting.spec.asked() | {"cache": size}), self._memo).plan.residents
        rank = np.full(plan.experts.shape[1] * plan.n_experts, size, np.int64)
        place = np.arange(len(order)) % size
        rank[order] = place if self.setting.spec.placement in PLACEMENTS else size - 1 - place
        return rank


def _misses(record: "RunRecord") -> Int:
    return record.groups["visits"]["misses"].astype(np.int64)


def _line(runs: _Runs, name: str, chosen: Sequence[int]) -> Line:
    one_pass = ONE_PASSES.get(name)
    found = {slots: runs.of(name, slots) for slots in chosen}
    speeds = {slots: speed for slots, (speed, _) in found.items() if speed is not None}
    oracle, decode = find("eviction", name).oracle, ~runs.visits.prefill
    if one_pass is None or (name == "lru" and runs.setting.spec.placement not in PLACEMENTS):
        misses, predicted = _told(runs.visits, [missing for _, missing in found.values()])
        return Line(name, SIMULATED, oracle, np.array(chosen), misses, predicted, speeds)
    misses, predicted = one_pass(runs)
    for slots, (_, missing) in found.items():
        if misses[slots - 1] != missing[decode].sum():
            raise RuntimeError(f"{name}, {slots} slots: the simulator's misses are not those of one pass")
    return Line(name, ONE_PASS, oracle, np.arange(1, len(misses) + 1), misses, predicted, speeds)


def _told(visits: Visits, missing: Sequence[Int]) -> tuple[Int, Float]:
    """(misses, predicted tokens/s) of decode steps [m], from the misses of each visit at each capacity."""
    decode = np.array([each[~visits.prefill] for each in missing])
    misses = decode.sum(axis=1)
    return misses, visits.tokens_per_s(misses, (decode > 0) @ visits.weight[~visits.prefill])


def _floor(runs: _Runs, chosen: Sequence[int]) -> Line:
    plan, rank = runs.setting.plan, runs.rank()
    at = [replace(plan, slots=np.full(len(plan.slots), slots)) for slots in chosen]
    missing = [least_misses(each, runs.visits, np.flatnonzero(rank < n)) for each, n in zip(at, chosen, strict=True)]
    misses, predicted = _told(runs.visits, missing)
    return Line(FLOOR, OPTIMUM, True, np.array(chosen), misses, predicted, {})


def _lru(runs: _Runs) -> tuple[Int, Float]:
    found = curve(runs.setting)
    return found.decode_misses, found.tokens_per_s


def _static(runs: _Runs) -> tuple[Int, Float]:
    """A use misses below the slots from which on its expert is a first resident; a visit, below the most of its uses.

    [n] each, from one slot to all experts of a scope.
    """
    visits, size, rank = runs.visits, _size(runs.setting), runs.rank()
    until, prefill = rank[visits.wants.expert], np.repeat(visits.prefill, visits.wide)
    misses = _up_to(until[~prefill], np.ones(int((~prefill).sum()), np.int64), size)
    some = (visits.wide > 0) & ~visits.prefill
    most = np.maximum.reduceat(np.append(until, 0), visits.wants.offset[:-1])
    return misses, visits.tokens_per_s(misses, _up_to(most[some], visits.weight[some], size))


def _up_to(until: Int, amount: Int, size: int) -> Int:
    """[size]: at c slots (1 ..) the sum of the amounts whose `until` is c or more."""
    change = np.zeros(size + 1, np.int64)
    np.add.at(change, until, amount)
    return np.cumsum(change[::-1])[::-1][1:]


ONE_PASSES: dict[str, Callable[[_Runs], tuple[Int, Float]]] = {"lru": _lru, "static": _static}


def rows(found: Policies) -> list[Row]:
    """One row for each policy and capacity, by policy, the floor last; of one pass every capacity has one."""
    return [_row(found, line, i) for line in found.lines for i in range(len(line.slots))]


def _row(found: Policies, line: Line, i: int) -> Row:
    setting, slots, misses = found.setting, int(line.slots[i]), int(line.misses[i])
    simulated = line.simulated.get(slots)
    speed = float(line.predicted[i]) if simulated is None else simulated
    around = stated(setting.spec.engine, setting.hardware, DECODING)
    low, high = (None, None) if around is None else (around.of(speed) or (None, None))
    least = found.lines[-1].at(slots)
    return {
        "policy": line.policy,
        "slots": slots,
        "share": slots / found.size,
        "gb": slots * len(setting.plan.slots) * setting.plan.expert_bytes / 1e9,
        "hit_rate": 1 - misses / max(found.visits.wanted, 1),
        "misses": misses,
        "misses_per_token": misses / found.visits.tokens,
        "over_floor": misses / least if least else None,
        "tokens_per_s": speed,
        "tokens_per_s_low": low,
        "tokens_per_s_high": high,
        "tokens_by": "predicted" if simulated is None else "simulated",
        "misses_by": line.how,
        "oracle": line.oracle,
        "tied_with": tied(found, slots).get(line.policy, []),
    }


def tied(found: Policies, slots: int) -> dict[str, list[str]]:
    """By policy the others that miss as often there; the floor, which is none, ties with nobody."""
    at = {line.policy: line.at(slots) for line in found.lines if line.policy != FLOOR and slots in found.slots}
    return {name: [other for other, n in at.items() if other != name and n == misses] for name, misses in at.items()}


def slots_of(text: str | None) -> list[int] | None:
    """Of --slots 4,8; None where it was not given. Raises SpecError."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SpecError(f"slots: {text}: must be slots such as 4,8") from None
