"""Constants from timings: least squares of logarithms, with what is thought of each constant beforehand.

A time per token is predicted as e^(p + machine), p the logarithm of the simulated time at the terms' values; the
logarithms of the terms are sums of effects (all engines launched alike, one engine, what is known of the host), each
normal around 0 with its own spread, and so are the machines' own factors: a linear mixed model, fitted by maximum a
posteriori with Gauss-Newton around the simulated times (D. Bates et al. 2015, doi 10.18637/jss.v067.i01, section 2, is
the linear case), and with Huber's weights (P. J. Huber 1964, doi 10.1214/aoms/1177703732) against rows that are
simply wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
HUBER = 1.5  # standard deviations from which a residual counts linearly
REWEIGHTED = 5  # rounds


@dataclass(frozen=True)
class Estimate:
    """Effects [n] by name (`names`), their covariance [n, n] given the timings, and the spread before them [n]."""

    names: tuple[str, ...]
    values: Floats
    covariance: Floats
    spread: Floats

    @staticmethod
    def nothing() -> "Estimate":
        """Of no effect."""
        return Estimate((), np.zeros(0), np.zeros((0, 0)), np.zeros(0))

    @cached_property
    def by_name(self) -> dict[str, float]:
        """The effects."""
        return dict(zip(self.names, self.values.tolist(), strict=True))

    def of(self, effects: Mapping[str, float]) -> tuple[float, float]:
        """(value, standard deviation) of a sum of effects times what each counts; those it does not know are 0, with no
        spread of their own."""
        row = np.array([effects.get(name, 0.0) for name in self.names])
        return float(row @ self.values), float(np.sqrt(row @ self.covariance @ row))


def estimate(
    design: Sequence[Mapping[str, float]], residuals: Floats, spreads: Mapping[str, float], sd: Floats
) -> Estimate:
    """The effects that bring residuals [m] (logarithm of measured over predicted time) down to design @ effects.

    design: of each row, how much each effect counts. spreads: of each effect beforehand. sd [m]: of each row's noise.
    """
    names = tuple(sorted({name for row in design for name in row}))
    x = np.array([[row.get(name, 0.0) for name in names] for row in design]).reshape(len(design), len(names))
    before = np.array([spreads[name] for name in names])
    weight = np.ones(len(design))
    for _ in range(REWEIGHTED):
        scaled = x * (weight / sd**2)[:, None]
        covariance = np.linalg.inv(scaled.T @ x + np.diag(before**-2.0))
        values = covariance @ (scaled.T @ residuals)
        off = np.abs(residuals - x @ values) / sd
        weight = np.minimum(1.0, HUBER / np.maximum(off, 1e-12))
    return Estimate(names, values, covariance, before)
