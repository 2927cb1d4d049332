"""From measured durations to terms of a hardware file: robust regression, levels, and how well each is known.

Theory of operation. A run's time is a *sum* of durations, so a term must be right on average: a median alone leaves
out the jitter that every run pays. One disturbed replay must not carry a term either. So

* the **shape** of a term (its times at some numbers of tokens) is fitted over all observations with a loss that grows
  linearly for outliers (soft L1: sum of 2 (sqrt(1 + (r / s)^2) - 1), s from the median absolute residual), under the
  law that more tokens never cost less;
* the **level** is what makes the fitted durations of one round of replays add up to the measured ones; of all rounds'
  levels the median is taken.

Nothing is discarded: the spread of the levels and the residuals are reported beside each term.
Sources: soft L1 as in scipy.optimize.least_squares; Huber, Robust Statistics (1981), for the scale from the median.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

Float = npt.NDArray[np.float64]
Curves = Sequence[tuple[int, int]]
MAX_KNOTS = 8
MOST = 4000  # observations that a shape is fitted on; the levels use all
EVENLY = 1e-4
SCALE = 1.4826  # median absolute deviation to standard deviation of a normal distribution


@dataclass(frozen=True)
class Term:
    """A fitted term. coefficients float64 [k], ns; spread: (largest - smallest) / median of the rounds' levels;
    residual: median |measured - fitted| / fitted; shift: how far the mean lies above the robust fit, as a share."""

    coefficients: Float
    spread: float
    residual: float
    shift: float
    rounds: int
    samples: int


@dataclass(frozen=True)
class Observations:
    """What one round of replays says of a term: `design` float64 [n, k], `ns` float64 [n]: ns = design @ coefficients
    + noise."""

    design: Float
    ns: Float


def knots_of(tokens: npt.ArrayLike, most: int = MAX_KNOTS) -> list[int]:
    """Knots for a curve over observed numbers of tokens [n]: 1 (in the place of the smallest), and of the others that
    were seen three times or more as many as are allowed, even on a logarithmic scale, the largest among them."""
    seen, counts = np.unique(np.asarray(tokens, np.int64), return_counts=True)
    seen = seen[(counts >= 3) & (seen > 0)][1:]
    if len(seen) > most - 1:
        wanted = np.geomspace(seen[0], seen[-1], most - 1)
        seen = np.unique([seen[np.argmin(np.abs(np.log(seen / w)))] for w in wanted])
    return [1, *seen.tolist()]


def hats(tokens: npt.ArrayLike, knots: Sequence[int]) -> Float:
    """float64 [n, k]: the weights with which the times at the knots add up to the time at each of `tokens` [n]: on
    straight lines between knots and on the last line beyond the last one; 0 tokens: nothing."""
    at, x = np.asarray(tokens, np.float64), np.asarray(knots, np.float64)
    out = np.stack([np.interp(at, x, unit) for unit in np.eye(len(x))], axis=1)
    if len(x) > 1:
        beyond = np.maximum(at - x[-1], 0) / (x[-1] - x[-2])
        out[:, -1] += beyond
        out[:, -2] -= beyond
    out[at < 1] = 0.0
    return out


def _rising(width: int, curves: Curves) -> Float:
    """float64 [width, width]: turns steps between the knots of a curve, and whatever is no curve, into coefficients;
    with steps >= 0 the times at the knots never fall."""
    out = np.eye(width)
    for first, end in curves:
        out[first:end, first:end] = np.tri(end - first)
    return out


def robust(design: Float, ns: Float, curves: Curves = ()) -> Float:
    """Coefficients >= 0, float64 [k], of ns [n] ~ design [n, k]; those of each curve [first, end) rise.

    Raises ValueError when there is nothing to fit.
    """
    if len(ns) == 0:
        raise ValueError("nothing was observed")
    turn = _rising(design.shape[1], curves)
    columns = design @ turn
    size = np.sqrt((columns**2).mean(axis=0))
    used = size > 0
    columns = columns[:, used] / size[used]
    # what the observations leave open (columns that always come together) is shared evenly
    columns = np.concatenate([columns, EVENLY * np.eye(columns.shape[1])])
    ns = np.concatenate([ns, np.zeros(columns.shape[1])])
    unit = float(np.median(np.abs(ns))) or 1.0
    start = np.full(columns.shape[1], 1.0 / max(1, columns.shape[1]))
    scale = 1.0
    miss: Callable[[Float], Float] = lambda x: columns @ x - ns / unit  # noqa: E731 - the residual, in units
    slope: Callable[[Float], Float] = lambda x: columns  # noqa: E731 - and what it changes by
    for _ in range(3):  # the scale of the residuals and the fit find each other
        found = least_squares(miss, start, jac=slope, bounds=(0, np.inf), loss="soft_l1", f_scale=scale)
        start = found.x + 1e-12
        rest = np.abs(miss(found.x))
        scale = max(SCALE * float(np.median(rest)), 1e-6)
    steps = np.zeros(design.shape[1])
    steps[used] = found.x * unit / size[used]
    return np.asarray(turn @ steps)


def fit(rounds: Sequence[Observations], curves: Curves = ()) -> Term:
    """A term from at least one round; see the module's text and `robust`.

    Raises ValueError when no round has an observation.
    """
    rounds = [r for r in rounds if len(r.ns)]
    if not rounds:
        raise ValueError("nothing was observed")
    design, ns = np.concatenate([r.design for r in rounds]), np.concatenate([r.ns for r in rounds])
    every = slice(None, None, -(-len(ns) // MOST))
    shape = robust(design[every], ns[every], curves)
    sums = [(r.ns.sum(), (r.design @ shape).sum()) for r in rounds]
    levels = np.array([measured / fitted if fitted > 0 else 1.0 for measured, fitted in sums])  # 1: both are nothing
    level = float(np.median(levels))
    coefficients = shape * level
    return Term(
        coefficients=coefficients,
        spread=float(np.ptp(levels)) / level if level else 0.0,
        residual=residual(ns, design @ coefficients),
        shift=level - 1.0,
        rounds=len(rounds),
        samples=len(ns),
    )


def residual(ns: Float, fitted: Float) -> float:
    """Median |measured - fitted| / fitted over observations whose fitted time is not zero; 0 where all are."""
    where = fitted > 0
    return float(np.median(np.abs(ns[where] - fitted[where]) / fitted[where])) if where.any() else 0.0


def constant(rounds: Sequence[Float]) -> Term:
    """A term that is one number, from the durations ns [n] of each round."""
    return fit([Observations(np.ones((len(ns), 1)), np.asarray(ns, np.float64)) for ns in rounds])
