"""What a few steps say of the time: how many steps the replays of a validation have, and what its rounds take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.measuring.cases import Case, replaying
from runtime.measuring.durations import TimedRun
from runtime.measuring.rounds import MARGIN, Budget, Deadline, complete
from runtime.replaying.lockstep import check
from sim.prepare import Setting

FEWEST = 3  # rounds that the steps of a replay are chosen for
LOCKED = 0.25  # of a case's steps are replayed in lock-step
AFTERWARDS = 2  # so often is a case prepared and simulated after the rounds: whole, and for the lock-step


@dataclass(frozen=True)
class ReplaySteps:
    """Of a link's replays, but the chained: how many, and seconds of one."""

    count: int
    each_s: float


def locked_steps(steps: int, warm: int) -> int:
    """How many of a replay's steps are locked; two at least count."""
    return max(warm + 2, int(steps * LOCKED))


@dataclass(frozen=True)
class Probe:
    """What a few steps of some cases said of the time. step_s: of a step; each_s: of a replay beside its steps, such as
    the first residents; long_s: of a replay of a chained case, which always has all its steps; prepared_s: of making a
    setting; check_s: of a step through the core alone."""

    runs: Sequence[TimedRun]
    step_s: float
    each_s: float
    long_s: float
    prepared_s: float
    check_s: float

    def round_s(self, cases: Sequence[Case], steps_s: Callable[[Case], float]) -> float:
        """Seconds of one replay of each case, whose steps take so long where it is not chained."""
        return sum(self.long_s if case.chained else self.each_s + steps_s(case) for case in cases)

    def budget(self, cases: Sequence[Case], of: dict[str, ReplaySteps], warm: int, deadline: Deadline) -> Budget:
        """What rounds of so many steps take, by the link, `warm` of which warm up, and what comes behind them: judged
        cases are checked by the core, and part of their steps (of chained ones all) are locked."""
        judged = [case for case in cases if not case.calibrates]
        own = {case: of[case.link.name] for case in cases}
        round_s = self.round_s(cases, lambda case: own[case].count * own[case].each_s)
        locked_s = self.round_s(judged, lambda case: locked_steps(own[case].count, warm) * own[case].each_s)
        checked_s = self.check_s * sum(own[case].count for case in judged if not case.chained)
        share = (1 + MARGIN) * (locked_s + checked_s) / round_s
        return Budget(deadline, round_s, share, len(cases) * AFTERWARDS * self.prepared_s)

    def replay_s(self, at_most_s: float, cases: Sequence[Case], deadline: Deadline) -> float:
        """Seconds that the steps of a replay may take, so that FEWEST rounds and what comes after them fit into the
        time that is left: for each second of a replay's steps about that of its lock-step and of its check."""
        prepared_s = len(cases) * (1 + AFTERWARDS) * self.prepared_s
        beside_s = (FEWEST + 1) * self.round_s(cases, lambda case: 0.0) + prepared_s
        left_s = (1 - MARGIN) * deadline.left_s - beside_s
        short = sum(not case.chained for case in cases)
        return max(1e-3, min(at_most_s, left_s / short / (FEWEST + LOCKED + self.check_s / self.step_s)))


def probed(bench: Any, make: Callable[[Case], Setting], cases: Sequence[Case], deadline: Deadline) -> Probe:
    """The few steps that `make` gives of every case, twice: first kernels are loaded and tuned and memory is touched,
    then they are timed. Where there is no time for that, the first have to do."""
    began_s = deadline.gone_s
    settings = {case: make(case) for case in cases}
    prepared_s, replay = (deadline.gone_s - began_s) / len(cases), replaying(bench, settings)
    short, long = ([case for case in cases if case.chained is yes] for yes in (False, True))
    runs: list[TimedRun] = []
    short_s = long_s = 0.0
    for _ in range(2):
        if runs and (short_s + long_s) * (1 + FEWEST) > deadline.left_s:
            break
        began_s = deadline.gone_s
        complete(long, replay, deadline, "the warm-up")
        long_s, began_s = deadline.gone_s - began_s, deadline.gone_s
        runs = list(complete(short, replay, deadline, "the warm-up").values())
        short_s = deadline.gone_s - began_s
    steps_s = sum(float(run.record.steps["end_ns"][-1]) for run in runs) / 1e9
    steps = sum(len(run.setting.steps) for run in runs)
    each_s = max(0.0, short_s - steps_s) / len(short)
    one, began_s = runs[0], deadline.gone_s
    check(one.setting.plan, one.record)
    check_s = (deadline.gone_s - began_s) / len(one.setting.steps)
    return Probe(runs, steps_s / steps, each_s, long_s / max(1, len(long)), prepared_s, check_s)
