"""Terms of an engine or a machine fitted to published figures, always without the figures that they predict."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sim.errors import SpecError
from sim.experiments.cases import Figure, Fit

Floats = npt.NDArray[np.float64]
# start, step of the difference quotient, least value. host_read_share stands for its inverse, in which time is linear
START = {"layer_ns": (0.0, 1e6, 0.0), "host_read_share": (2.0, 0.5, 1.0)}
WITHOUT = {"layer_ns": 0.0, "host_read_share": 1.0}  # no engine time; all of the peak
ROUNDS = 6


def anchors_for(figure: Figure, figures: Sequence[Figure]) -> list[Figure]:
    """The figures that a fit for `figure` may look at: the fit's anchors outside the figure's own group."""
    return [other for other in figures if other.fit == figure.fit and other.anchor and other.group != figure.group]


def fit_terms(
    fit: Fit, anchors: Sequence[Figure], seconds: Callable[[Figure, Mapping[str, float]], float]
) -> dict[str, float]:
    """Values of the terms that bring `seconds` (of a figure, per token) closest to the anchors.

    Least squares of relative errors by Gauss-Newton: exact in one round where time is linear in the terms.
    Raises SpecError without anchors.
    """
    if not anchors:
        raise SpecError(f"fit: {', '.join(fit.terms)}: no figure is left to fit to")
    start, step, least = (np.array([START[term][i] for term in fit.terms]) for i in range(3))
    target = np.array([anchor.seconds_per_token(anchor.published) for anchor in anchors])

    def errors(values: Floats) -> Floats:
        terms = dict(zip(fit.terms, values.tolist(), strict=True))
        off: Floats = np.array([seconds(anchor, terms) for anchor in anchors]) / target - 1
        return off

    return dict(zip(fit.terms, least_squares(errors, start, step, least).tolist(), strict=True))


def least_squares(errors: Callable[[Floats], Floats], start: Floats, step: Floats, least: Floats) -> Floats:
    """float64 [n]: the values, none below `least`, at which the sum of squares of the errors [m] is least.

    Gauss-Newton with difference quotients of size `step`, float64 [n].
    """
    values: Floats = start
    for _ in range(ROUNDS):
        here = errors(values)
        columns = [errors(values + step * unit) - here for unit in np.eye(len(values))]
        move: Floats = np.linalg.lstsq(np.stack(columns, axis=1), -here, rcond=None)[0] * step
        moved: Floats = np.maximum(values + move, least)
        if np.all(np.abs(moved - values) <= 1e-4 * step):
            return moved
        values = moved
    return values
