"""Timings seen as a mixed model: each row's simulated time, what each term of it counts, and whose the terms are.

A term's logarithm is the sum of what all engines of one dispatch have in common, what the engine has, what the GPU has
(of its memory), and what the machine has. A machine that gave no timing has 0 of its own, and the spread of the others.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sim.errors import SpecError
from sim.prepare import Setting
from sim.timings.estimate import Estimate, Floats, estimate
from sim.timings.rows import Timing
from sim.timings.running import Runs
from sim.timings.terms import COMPILED, TERMS, free, with_terms
from traces.errors import UserError
from traces.progress import counted

Job = TypeVar("Job")
Made = TypeVar("Made")
STEP = 0.1  # of a logarithm, for difference quotients
LEAST = 1e-4  # derivative below which a term says nothing of a row
NOISE = {"A": 0.06, "B": 0.1, "C": 0.3}  # of a row's logarithm, by how well its settings are known
ENGINES_OWN = 0.5  # of a term's spread: how far engines of one dispatch are apart
MACHINES_OWN = 0.4  # of it: how far machines are, beside what their rates say
SPREADS = {  # of effects by whom they belong to, whatever the term
    "gpu ": 0.08,
    "mla": 0.1,
    "host measured": 0.03,
    "host nominal": 0.15,
    "host assumed": 0.3,
    "copies from unknown": 0.4,
    "copies from": 0.1,
}
WHOLE = "whole"  # of which a machine has an effect of its own, whatever the term
MACHINES = 0.2  # its spread
# of a machine's own: what an operating system, a driver and a generation of GPUs make of a layer and of attention
PLATFORMS = {("layer", "compiled"): 0.8, ("kv", "compiled"): 0.8}
ASSUMED = 0.2  # noise that a row has beside, of a host that nobody stated or a setting that was assumed
FEW = 4  # rows of one group: more of them do not count more
ROUNDS = 2  # of simulations, each around what the one before told
STEPS = 6  # of Gauss-Newton


@dataclass(frozen=True)
class Observed:
    """A timing as simulated: `simulated_s` per token with the terms at `logs`. slopes: of each term the derivative of
    that time's logarithm; owned: the effects that each term's logarithm is the sum of.

    A time is a sum of parts, each a duration or an amount over a rate, so that a term that is e^x times as large makes
    its part, |slope| of the whole, e^x (of a rate e^-x) times as long: exact but where the longer of two things
    changes.
    """

    timing: Timing
    simulated_s: float
    logs: Mapping[str, float]
    slopes: Mapping[str, float]
    owned: Mapping[str, tuple[str, ...]]

    @property
    def whole(self) -> str:
        """The effect of its machine on all times."""
        return f"{WHOLE}: machine {self.timing.measured_on}"

    def at(self, values: Mapping[str, float]) -> dict[str, float]:
        """The logarithm of each of its terms at these effects."""
        return logs_at(self.owned, values)

    def near(self, values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """(logarithm of the seconds per token, what each effect counts in it) at these effects; others are 0."""
        parts = {}
        logs = self.at(values)
        for term, slope in self.slopes.items():
            moved = logs[term] - self.logs.get(term, 0.0)
            parts[term] = abs(slope) * math.exp(math.copysign(1.0, slope) * moved)
        rest = max(0.0, 1 - sum(map(abs, self.slopes.values())))
        whole = rest + sum(parts.values())
        counts = {self.whole: 1.0}
        for term, part in parts.items():
            share = math.copysign(part / whole, self.slopes[term])
            counts |= dict.fromkeys(self.owned[term], share)
        return math.log(self.simulated_s * whole) + values.get(self.whole, 0.0), counts

    def seconds(self, found: Estimate) -> tuple[float, float]:
        """(per token, standard deviation of its logarithm): effects that nobody has told have their spread."""
        log, counts = self.near(found.by_name)
        sd = found.of(counts)[1]
        unknown = sum((count * spread(name)) ** 2 for name, count in counts.items() if name not in found.by_name)
        return math.exp(log), math.sqrt(sd**2 + unknown)


def owners(term: str, timing: Timing, setting: Setting) -> tuple[str, ...]:
    """The effects that a term's logarithm is the sum of in a row: what engines launched alike have in common, the
    engine's own, what is known of the machine, and the machine's own."""
    hardware, engine, model = setting.hardware, setting.engine, setting.model
    whose = ["all", f"engine {engine.name}"]
    if term == "gpu_memory" and hardware.gpu is not None and hardware.gpu.name and not hardware.on_host:
        whose.append(f"gpu {hardware.gpu.name}")
    if term == "cpu_read":
        whose.append(f"host {timing.host_rate}")
    if term == "link":
        whose.append(f"copies from {timing.copies_from}")
    if term in ("layer", "host_layer", "kv") and model is not None and model.attention == "mla":
        whose.append("mla")
    of = f"{term} {engine.dispatch or COMPILED}"
    return tuple(f"{of}: {owner}" for owner in (*whose, f"machine {timing.measured_on}"))


def spread(effect: str) -> float:
    """Standard deviation of an effect before any timing."""
    of, _, owner = effect.partition(": ")
    if of == WHOLE:
        return MACHINES
    for start, given in SPREADS.items():
        if owner.startswith(start):
            return given
    term, _, dispatch = of.partition(" ")
    whole = math.log(TERMS[term].factor[dispatch])
    if owner.startswith("machine "):
        return PLATFORMS.get((term, dispatch), whole * MACHINES_OWN)
    return whole * ENGINES_OWN if owner.startswith("engine ") else whole


def logs_at(owned: Mapping[str, Sequence[str]], values: Mapping[str, float]) -> dict[str, float]:
    """The logarithm of each term, the sum of its effects; those without a value are 0."""
    return {term: sum(values.get(name, 0.0) for name in names) for term, names in owned.items()}


# --- from rows to a fit ---

_runs: Runs | None = None  # of a worker process: its plans are made once


def _simulated(job: tuple[Timing, Estimate | None]) -> Observed | str:
    """A row at the terms that an estimate has for it; the text of what is wrong where it cannot run."""
    global _runs
    _runs = _runs or Runs()
    timing, found = job
    try:
        setting = _runs.setting(timing)
        hardware, engine = setting.hardware, setting.engine
        owned = {term: owners(term, timing, setting) for term in free(engine)}
        logs = logs_at(owned, (found or Estimate.nothing()).by_name)
        here, *there = (
            math.log(_runs.seconds(timing, *with_terms(hardware, engine, each)))
            for each in (logs, *({**logs, term: logs.get(term, 0.0) + STEP} for term in free(engine)))
        )
    except UserError as error:
        return f"{timing.id or 'row'}: {error}"
    slopes = {term: (log - here) / STEP for term, log in zip(free(engine), there, strict=True)}
    slopes = {term: slope for term, slope in slopes.items() if abs(slope) > LEAST}
    return Observed(timing, math.exp(here), logs, slopes, {term: owned[term] for term in slopes})


def _each(function: Callable[[Job], Made], jobs: Sequence[Job], workers: int | None) -> list[Made]:
    """What a function makes of each job, in as many processes as there are cores; one worker is this process."""
    if workers == 1:
        return [function(job) for job in counted(jobs, "timing", at_once=False)]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        done = pool.map(function, jobs, chunksize=8)
        return [next(done) for _ in counted(jobs, "timing", at_once=False)]


def _at(job: tuple[Timing, Sequence[Mapping[str, float]]]) -> list[float]:
    """A row's seconds per token at some logarithms of its terms."""
    global _runs
    _runs = _runs or Runs()
    timing, points = job
    setting = _runs.setting(timing)
    return [_runs.seconds(timing, *with_terms(setting.hardware, setting.engine, logs)) for logs in points]


def simulated(
    jobs: Sequence[tuple[Observed, Sequence[Mapping[str, float]]]], workers: int | None = None
) -> list[list[float]]:
    """Seconds per token of each row at each of its sets of effects, simulated, not on the line."""
    points = [(row.timing, [row.at(values) for values in every]) for row, every in jobs]
    found = _each(_at, points, workers)
    whole = [[math.exp(values.get(row.whole, 0.0)) for values in every] for row, every in jobs]
    return [[s * w for s, w in zip(times, factors, strict=True)] for times, factors in zip(found, whole, strict=True)]


def observe(rows: Sequence[Timing], found: Estimate | None, workers: int | None = None) -> list[Observed]:
    """Every row, around an estimate. Raises SpecError for one that cannot run."""
    jobs = [(row, found) for row in rows]
    out = _each(_simulated, jobs, workers)
    wrong = [each for each in out if isinstance(each, str)]
    if wrong:
        raise SpecError(wrong[0])
    return [each for each in out if isinstance(each, Observed)]


def fit(observed: Iterable[Observed]) -> Estimate:
    """The effects that the rows tell."""
    rows = list(observed)
    per_group = Counter((row.timing.group, row.timing.prefill) for row in rows)
    many = [max(1.0, per_group[row.timing.group, row.timing.prefill] / FEW) for row in rows]
    noise = np.array([_noise(row.timing) * math.sqrt(n) for row, n in zip(rows, many, strict=True)])
    return solved(rows, noise, spread)


def solved(
    rows: Sequence[Observed], noise: Floats, spreads: Callable[[str], float], start: Mapping[str, float] | None = None
) -> Estimate:
    """By Gauss-Newton, what moves the effects from `start` (None: from 0) to where the rows want them."""
    start, moved = start or {}, Estimate.nothing()
    for _ in range(STEPS):
        values = {**start, **{name: start.get(name, 0.0) + by for name, by in moved.by_name.items()}}
        lines = [row.near(values) for row in rows]
        design = [counts for _, counts in lines]
        at = [sum(count * moved.by_name.get(name, 0.0) for name, count in counts.items()) for counts in design]
        off = [math.log(row.timing.seconds) - log + back for row, (log, _), back in zip(rows, lines, at, strict=True)]
        moved = estimate(design, np.array(off), {name: spreads(name) for each in design for name in each}, noise)
    return moved


def _noise(timing: Timing) -> float:
    assumed = bool(timing.assumed) or timing.host_rate == "assumed"
    return math.hypot(NOISE[timing.grade], ASSUMED if assumed else 0.0)


def fitted(rows: Sequence[Timing], workers: int | None = None, rounds: int = ROUNDS) -> tuple[list[Observed], Estimate]:
    """Rows and their effects, each round simulated around what the one before found."""
    found: Estimate | None = None
    for _ in counted(range(rounds), "fitting, round"):
        observed = observe(rows, found, workers)
        found = fit(observed)
    assert found is not None
    return observed, found
