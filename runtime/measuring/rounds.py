"""Rounds of replays under a deadline: what calibration and validation measure with.

Each round replays every case once, in a seeded order of its own, so that whatever else the machine does meets all.
A round begins only when it and what comes after the rounds would fit into the time that is left, by what rounds took so
far. The deadline is looked at before every replay: a round that would not be finished is dropped whole when another one
is complete. What is under way is never cut: by one replay, at most, the rounds miss the deadline.
"""

import sys
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from runtime.device.port import DeviceError
from runtime.measuring.durations import TimedRun
from traces.progress import counted, doing

A = TypeVar("A", bound=Hashable)
MOST = 25  # rounds
MARGIN = 0.1  # of what a round takes: the next one may take longer


@dataclass(frozen=True)
class Deadline:
    """When everything must be done: `seconds` after it was made, by time.monotonic."""

    seconds: float
    began_s: float = field(default_factory=lambda: time.monotonic())

    @property
    def gone_s(self) -> float:
        return time.monotonic() - self.began_s

    @property
    def left_s(self) -> float:
        return self.seconds - self.gone_s

    def __str__(self) -> str:
        return f"{self.gone_s:.0f} s gone, {max(0.0, self.left_s):.0f} s left of {self.seconds:g} s"


@dataclass(frozen=True)
class Budget:
    """What there is time for. round_s: what the first round is expected to take; what comes after the rounds takes
    `share` of what one of them does, and fixed_s."""

    deadline: Deadline
    round_s: float
    share: float = 0.0
    fixed_s: float = 0.0

    def after_s(self, round_s: float) -> float:
        """Seconds of what comes after the rounds."""
        return self.share * round_s + self.fixed_s

    def fits(self, round_s: float) -> bool:
        """Whether another round, and what comes after it, can be done in the time that is left."""
        return (1 + MARGIN) * round_s + self.after_s(round_s) <= self.deadline.left_s


def progress(text: str) -> None:
    """On stderr, also where nobody looks: the log of a rented machine must say where a run was."""
    print(text, file=sys.stderr, flush=True)
    doing("", at_once=False)


def measured(
    cases: Sequence[A], replay: Callable[[A], TimedRun], budget: Budget, repeats: int | None, seed: int
) -> list[dict[A, TimedRun]]:
    """Complete rounds, at least one: `repeats` of them (None: MOST), or as many as the deadline leaves time for.

    Raises DeviceError when the first is not complete by the deadline, or could not be.
    """
    deadline, round_s = budget.deadline, budget.round_s
    rng, began_s = np.random.default_rng(seed), deadline.gone_s
    rounds: list[dict[A, TimedRun]] = []
    while len(rounds) < (repeats or MOST) and (not rounds or budget.fits(round_s)):
        of = "" if repeats is None else f" of {repeats}"
        progress(f"round {len(rounds) + 1}{of}, which takes about {round_s:.0f} s: {deadline}")
        order = [cases[i] for i in rng.permutation(len(cases))]
        if not rounds:
            found = complete(order, replay, deadline, "the first round", round_s)
        else:
            found = sweep(
                order, replay, deadline, f"round {len(rounds) + 1}", round_s / len(cases), budget.after_s(round_s)
            )
        if len(found) < len(cases):
            break
        rounds.append(found)
        round_s = (deadline.gone_s - began_s) / len(rounds)
    progress(f"{len(rounds)} round{'s' * (len(rounds) > 1)} done: {deadline}")
    return rounds


def sweep(
    order: Sequence[A],
    replay: Callable[[A], TimedRun],
    deadline: Deadline,
    what: str,
    each_s: float = 0.0,
    reserved_s: float = 0.0,
) -> dict[A, TimedRun]:
    """One replay of each case, of `what`; those that were done when the time that is left, but for the reserved, does
    not do for the rest at `each_s` (0: is over)."""
    out: dict[A, TimedRun] = {}
    for done, case in enumerate(counted(order, f"{what}: replay", str, at_once=False)):
        if each_s * (len(order) - done) + reserved_s >= deadline.left_s:
            break
        out[case] = replay(case)
    return out


def complete(
    order: Sequence[A], replay: Callable[[A], TimedRun], deadline: Deadline, what: str, expected_s: float = 0.0
) -> dict[A, TimedRun]:
    """One replay of each case. Raises DeviceError, which says how many were done, when the deadline comes before the
    last one, or before it could."""
    found = {} if expected_s > deadline.left_s else sweep(order, replay, deadline, what)
    if len(found) < len(order):
        took = f", which would take about {expected_s:.0f} s" if expected_s else ""
        raise DeviceError(
            f"seconds: {deadline.seconds:g}: over after {len(found)} of the {len(order)} replays of {what}{took}; "
            "fewer --caches, --batches or --steps take less, --seconds N gives more"
        )
    return found
