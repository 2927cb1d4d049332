"""What paces do, by simulation: GB/s of a CPU's link at which cases fall into a regime, and seconds of a validation.

The probe decides nothing but the paces and how many steps a replay has; in which regime a case was is measured.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from runtime.measuring import durations
from runtime.measuring.agreement import HIGH, LOW
from sim.errors import SpecError
from sim.prepare import Setting

# what of the cases' shares of stall is brought where
TARGETS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "compute": (np.max, LOW / 2),
    "mixed": (np.mean, (LOW + HIGH) / 2),
    "stall": (np.min, 1 - (1 - HIGH) * 0.65),
}
SLOWEST, FASTEST = 0.02, 4.0  # GB/s; a thread that also really copies keeps no faster pace


def gbps_for(regime: str, shares: Callable[[float], Sequence[float]]) -> float:
    """GB/s at which `shares`, the shares of stall at a pace, meet the regime's target, by bisection on the logarithm.

    Raises SpecError when even the fastest link leaves a case of `compute` with too much stall."""
    of, target = TARGETS[regime]
    low, high = np.log(SLOWEST), np.log(FASTEST)
    for _ in range(16):
        middle = (low + high) / 2
        slower = of(list(shares(float(np.exp(middle))))) > target
        low, high = (middle, high) if slower else (low, middle)
    gbps = float(np.exp(high))
    most = max(shares(gbps))
    if regime == "compute" and most > LOW:
        raise SpecError(
            f"caches: an arm stalls {most:.0%} of the time even at {FASTEST:g} GB/s, where under {LOW:.0%} is wanted; "
            "larger --caches or --batches stall less"
        )
    return round(gbps, 3)


def _transferring(setting: Setting, transfer_ns: int) -> Setting:
    """The setting with that time per transfer."""
    costs = replace(setting.plan.costs, transfer_ns=np.array([transfer_ns] * 2, np.int64))
    return replace(setting, plan=replace(setting.plan, costs=costs))


def pace_of(
    regime: str, settings: Sequence[Setting], expert_bytes: int, fixed_ns: float, seconds: float, most: int
) -> tuple[float, int, float]:
    """(GB/s, counted steps that take about `seconds` there, at least 2 and at most `most`, seconds of one). fixed_ns:
    of a transfer, whatever its pace."""

    def at(gbps: float) -> list[dict[str, int]]:
        ns = round(expert_bytes / gbps + fixed_ns)
        return [durations.components(durations.simulated(_transferring(setting, ns))) for setting in settings]

    gbps = gbps_for(regime, lambda gbps: [c["stall"] / c["total"] for c in at(gbps)])
    counted = len(settings[0].steps) - settings[0].spec.warmup_steps
    per_step = statistics.mean(c["total"] for c in at(gbps)) / counted / 1e9
    return gbps, int(np.clip(round(seconds / per_step), 2, most)), per_step


# --- seconds ----------------------------------------------------------------------------------------------------------


def seconds_of(settings: Iterable[Setting], gbps: float, expert_bytes: int) -> tuple[float, float]:
    """Seconds of one replay of each setting, by simulation: (first residents, placed one after another; all steps).
    Every copy of an expert takes what its bytes take at `gbps`."""
    from sim.machines.compiled import run

    copy_ns = round(expert_bytes / gbps)
    plans = [_transferring(setting, copy_ns).plan for setting in settings]
    placed_ns = sum(len(plan.residents) for plan in plans) * copy_ns
    return placed_ns / 1e9, sum(int(run(plan, False).steps["end_ns"][-1]) for plan in plans) / 1e9


def predicted_s(
    warming: Sequence[Setting], cases: Sequence[Setting], locked: Sequence[Setting], gbps: float, expert_bytes: int,
    rounds: int,
) -> float:  # fmt: skip
    """Seconds of a whole validation on a link of so many GB/s: what warms up, twice; `rounds` of the cases; what is
    replayed in lock-step."""
    once, each, last = (sum(seconds_of(settings, gbps, expert_bytes)) for settings in (warming, cases, locked))
    return 2 * once + rounds * each + last
