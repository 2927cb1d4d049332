"""What sums by file say of a figure: intervals and tests where tokens of one file are alike and files are few.

A figure is a function of sums over tokens (a ratio estimator, such as nats by bytes), or another statistic of how often
the text has each file. Files are the clusters: they are drawn, or left out, whole, and one draw serves both models and
all arms, so that differences are paired.

Two intervals are taken, and the wider one, end by end, decides:

- percentile: the bootstrap over clusters (Efron 1979; Cameron, Gelbach & Miller, "Bootstrap-based improvements for
  inference with clustered errors", Review of Economics and Statistics 90(3), 2008, section III: pairs cluster
  bootstrap). It follows a skewed figure, but has no refinement for few clusters, and is then too narrow.
- t: value +- t quantile with G - 1 degrees of freedom x the jackknife's standard error (one file of G left out; CR3 of
  Bell & McCaffrey 2002, as in Cameron, Gelbach & Miller 2008, section II; CV3 of MacKinnon, Nielsen & Webb, Journal of
  Applied Econometrics 38(5), 2023, who advise it where clusters are of unequal size). It is symmetric, and honest
  about how few files there are.

How often the wider one of 95 % held the truth, of 2,000 simulated texts of 17 files of lognormal sizes (sigma 1): 95 %
where the loss of a file is normal, 85 % where it is lognormal like the sizes, which is very skewed (the percentile
interval alone: 92 % and 84 %).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

Float = npt.NDArray[np.float64]
Pair = tuple[float, float]
Figure = Callable[[Mapping[str, Any]], Any]  # of sums, numbers or arrays of one shape, a figure of that shape
LEVEL = 0.95
DRAWS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A figure over all files; draws float64 [D], ascending: of the bootstrap; error: the jackknife's standard error
    (infinite where a single file decides whether there is a figure at all); files: how many there are."""

    value: float
    draws: Float
    error: float
    files: int

    def percentile(self, level: float = LEVEL) -> Pair:
        """The bootstrap's interval."""
        low, high = np.quantile(self.draws, ((1 - level) / 2, (1 + level) / 2))
        return float(low), float(high)

    def t(self, level: float = LEVEL) -> Pair:
        """The interval of Student's t. Of a single file nothing can be said: infinite."""
        half = float(stdtrit(max(self.files - 1, 1), (1 + level) / 2)) * self.error
        return self.value - half, self.value + half

    def wider(self, level: float = LEVEL) -> Pair:
        """The one that decides: the lower of the lower ends to the higher of the higher ones."""
        (a, b), (c, d) = self.percentile(level), self.t(level)
        return min(a, c), max(b, d)

    def p(self, against: float = 0.0) -> float:
        """Two-sided p value of the figure's being `against`: the larger of the two tests', so that what is below 1 -
        level lies outside of the wider interval of that level. Draws are too few for the small p values of a large
        family: where none of them reaches `against`, t tells alone."""
        off = abs(self.value - against)
        t = 2 * float(stdtr(max(self.files - 1, 1), -off / self.error)) if self.error else float(off == 0)
        beyond = min((self.draws <= against).sum(), (self.draws >= against).sum())
        return max(t, min(1.0, 2 * float(beyond) / len(self.draws)))


class Files:
    """One set of draws of `n` files, which serves everything that is compared.

    times float64 [1 + D + n, n]: how often each text has each file: the text as it is, the draws, the text with one
    file left out."""

    def __init__(self, n: int, seed: int, draws: int = DRAWS) -> None:
        self.n = n
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws)
        self.times: Float = np.vstack([np.ones(n), drawn, 1 - np.eye(n)])

    def estimates(self, figures: Mapping[str, Figure], sums: Mapping[str, Float]) -> dict[str, Estimate]:
        """Each figure of sums by file, float64 [n] each."""
        of_texts = {name: self.times @ each for name, each in sums.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: self.of(figure(of_texts)) for name, figure in figures.items()}

    def estimate(self, figure: Figure, sums: Mapping[str, Float]) -> Estimate:
        return self.estimates({"it": figure}, sums)["it"]

    def of(self, statistic: Float) -> Estimate:
        """A statistic [1 + D + n] of the texts of `times`."""
        value, drawn, left = float(statistic[0]), statistic[1 : -self.n], statistic[-self.n :]
        # a file that has all of what is counted leaves 0 / 0 behind; such a draw is none, such an error infinite
        known = np.sort(drawn[np.isfinite(drawn)])
        error = math.sqrt((self.n - 1) / self.n * float(((left - value) ** 2).sum())) if self.n > 1 else math.inf
        return Estimate(value, known, error if math.isfinite(error) else math.inf, self.n)


def effective_number(sizes: Sequence[float] | Float) -> float:
    """Of clusters of these sizes, as many of equal size weigh the same: (sum n)^2 / sum n^2 (Kish 1965)."""
    n = np.asarray(sizes, np.float64)
    return float(n.sum() ** 2 / (n**2).sum())


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values of a family, in its order: compare with the family's error rate (Holm, Scandinavian Journal of
    Statistics 6, 1979: the smallest times m, the next times m - 1, ..., never below the one before)."""
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return [float(each) for each in adjusted]
