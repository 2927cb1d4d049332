"""A user's own timings of an engine on a machine: which of its constants they tell, and what those come to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim import catalog
from sim.timings.effects import PLATFORMS
from sim.timings.estimate import Estimate, estimate
from sim.timings.judging import EIGHTY
from sim.timings.rows import Timing
from sim.timings.running import Runs
from sim.timings.terms import COMPILED, TERMS, free, with_terms
from traces.progress import counted

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware

Floats = npt.NDArray[np.float64]
STEP = 0.05  # of a logarithm, for difference quotients
NOISE = 0.02  # of the logarithm of a timing, where its row states no uncertainty
LEAST = 0.3  # spread of a term's logarithm on a machine that gave no timing yet
TOLD = 0.5  # of the spread before: a term with less left of it than this was told by the timings
UNTOLD = 0.95  # of which they say nothing, with more left than this
SAME = 0.9  # correlation from which two terms were told together only
ROUNDS, STILL = 8, 1e-3  # of Gauss-Newton, at most; logarithms that move less have arrived


@dataclass(frozen=True)
class Told:
    """A term: its logarithm beside the engine's own value, the standard deviation of that before and after."""

    name: str
    log: float
    before: float
    after: float

    @property
    def told(self) -> bool:
        """Whether the timings say what it is."""
        return self.after < TOLD * self.before

    @property
    def untold(self) -> bool:
        """Whether they say nothing of it."""
        return self.after > UNTOLD * self.before


UNEXPLAINED = 0.2  # of a logarithm, from which timings are of something else


@dataclass(frozen=True)
class Calibrated:
    """seconds [n]: per token, of each timing with the terms found; without [n]: with those found without it, None of a
    single one. together: pairs of terms of which the timings tell one number only."""

    timings: Sequence[Timing]
    terms: Sequence[Told]
    together: Sequence[tuple[str, str]]
    seconds: Sequence[float]
    without: Sequence[float] | None
    sd: Sequence[float]
    hardware: "Hardware"

    @property
    def logs(self) -> dict[str, float]:
        """Of every term of which the timings say anything."""
        return {term.name: term.log for term in self.terms if not term.untold}

    @property
    def off(self) -> float:
        """By how much the timings are off with the terms found: the root mean square of the logarithms."""
        logs = [math.log(row.seconds / each) for row, each in zip(self.timings, self.seconds, strict=True)]
        return math.sqrt(float(np.mean(np.square(logs))))

    @property
    def interval(self) -> tuple[float, float]:
        """Factors on a predicted speed that hold 80 %: by the errors of the timings left out one at a time, else by
        what is left of the terms."""
        sd = float(np.mean(self.sd))
        if self.without is not None:
            off = [math.log(row.seconds / each) for row, each in zip(self.timings, self.without, strict=True)]
            sd = math.sqrt(float(np.mean(np.square(off))))
        factor = math.exp(EIGHTY * max(sd, NOISE))
        return 1 / factor, factor


class Model:
    """Timings of one engine on one machine as functions of the terms."""

    def __init__(self, timings: Sequence[Timing]) -> None:
        """Raises SpecError or CatalogError for a row that cannot run."""
        self.timings, self.runs = timings, Runs()
        engine = catalog.engine(timings[0].fields["engine"])
        self.names, self.dispatch = free(engine), engine.dispatch or COMPILED
        for timing in timings:
            self.runs.setting(timing)

    def logs(self, terms: Floats) -> Floats:
        """Logarithms of the seconds per token [rows] with these logarithms of the terms [terms]."""
        named = dict(zip(self.names, terms.tolist(), strict=True))
        return np.array([math.log(self._seconds(timing, named)) for timing in self.timings])

    def _seconds(self, timing: Timing, named: dict[str, float]) -> float:
        setting = self.runs.setting(timing)
        return self.runs.seconds(timing, *with_terms(setting.hardware, setting.engine, named, start="own"))

    def slopes(self, terms: Floats, here: Floats) -> Floats:
        """float64 [rows, terms]."""
        steps = STEP * np.eye(len(terms))
        each = counted([*steps], "constant", at_once=False)
        return np.stack([(self.logs(terms + step) - here) / STEP for step in each], axis=1)


def calibrate(timings: Sequence[Timing]) -> Calibrated:
    """The terms that timings of one engine and machine tell. Raises SpecError or CatalogError, one line."""
    model = Model(timings)
    terms = np.zeros(len(model.names))
    measured = np.array([math.log(timing.seconds) for timing in timings])
    for _ in counted(range(ROUNDS), "at most, round", at_once=False):
        here = model.logs(terms)
        slopes = model.slopes(terms, here)
        residuals = measured - here + slopes @ terms
        found = _found(model, timings, slopes, residuals)
        moved = np.array([found.of({name: 1.0})[0] for name in model.names])
        arrived = float(np.abs(moved - terms).max()) < STILL
        terms = moved
        if arrived:
            break
    told = [
        Told(name, *found.of({name: 1.0})[:1], _spread(name, model.dispatch), found.of({name: 1.0})[1])
        for name in model.names
    ]
    rows = [dict(zip(model.names, slope.tolist(), strict=True)) for slope in slopes]
    final = [math.exp(log) for log in model.logs(terms)]
    return Calibrated(
        timings, told, _together(found, told), final, _without(model, timings, slopes, residuals),
        [found.of(row)[1] for row in rows], model.runs.setting(timings[0]).hardware,
    )  # fmt: skip


def _spread(term: str, dispatch: str) -> float:
    return max(LEAST, math.log(TERMS[term].factor[dispatch]), PLATFORMS.get((term, dispatch), 0.0))


def _noise(timing: Timing) -> float:
    return max(NOISE, (timing.uncertainty or 0.0) / timing.value)


def _found(model: Model, timings: Sequence[Timing], slopes: Floats, residuals: Floats) -> Estimate:
    design = [dict(zip(model.names, row.tolist(), strict=True)) for row in slopes]
    noise = np.array([_noise(timing) for timing in timings])
    return estimate(design, residuals, {name: _spread(name, model.dispatch) for name in model.names}, noise)


def _without(model: Model, timings: Sequence[Timing], slopes: Floats, residuals: Floats) -> list[float] | None:
    """Each timing by the terms that the others tell, on the lines through all; None of fewer than three."""
    if len(timings) < 3:
        return None
    out, measured = [], [math.log(timing.seconds) for timing in timings]
    for i in range(len(timings)):
        others = [k for k in range(len(timings)) if k != i]
        found = _found(model, [timings[k] for k in others], slopes[others], residuals[others])
        value, _ = found.of(dict(zip(model.names, slopes[i].tolist(), strict=True)))
        out.append(math.exp(measured[i] - residuals[i] + value))
    return out


def _together(found: Estimate, told: Sequence[Told]) -> list[tuple[str, str]]:
    sd = np.sqrt(np.diag(found.covariance))
    related = found.covariance / np.outer(sd, sd)
    at = {name: i for i, name in enumerate(found.names)}
    return [(a.name, b.name) for a, b in combinations(told, 2) if abs(related[at[a.name], at[b.name]]) > SAME]


def changed(found: Calibrated) -> "tuple[Hardware, Engine]":
    """Hardware and engine, as the command line has them, with the terms found."""
    return with_terms(found.hardware, catalog.engine(found.timings[0].fields["engine"]), found.logs, start="own")


def with_defaults(timings: Sequence[Timing], defaults: dict[str, object]) -> list[Timing]:
    """Rows with what the command line says of all of them; a row's own column wins."""
    return [replace(timing, fields={**defaults, **timing.fields}) for timing in timings]
