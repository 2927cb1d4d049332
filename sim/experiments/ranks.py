"""Ranks of policies over captures, and which differences are more than chance.

Theory. Demsar 2006 ("Statistical Comparisons of Classifiers over Multiple Data Sets"): rank the k policies on each
data set, average, and ask by Friedman's test whether they differ at all, then by a critical difference (Nemenyi) which
do. Data sets must be independent of each other. Capacities of one capture are not: the same requests run at each. So a
*block* is a capture, with the mean over its capacities of the rank that a policy has there. Captures are few, and
textbook tables hold for many: so both figures are found by permutation. Were all policies alike, each order of a
block's k mean ranks would be as likely as any other; of DRAWS such shuffles of every block

    p         is the share in which the k averages lie at least as far apart as they do: sum of squares, Friedman's
    critical  is what the greatest difference of two averages exceeds in 5 % of the shuffles: Nemenyi's question, so one
              figure holds for all pairs at once.

With one block nothing can be said, with two hardly anything: 1 / k! shuffles give the same order again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
DRAWS = 20_000
LEVEL = 0.95
ALIKE = 1e-9  # share of a figure below which two are the same


@dataclass(frozen=True)
class Ranked:
    """k policies over n blocks. mean [k]; by_block [n, k]; p, critical: None of fewer than two policies or blocks."""

    names: Sequence[str]
    mean: Float
    by_block: Float
    p: float | None
    critical: float | None

    def as_the_best(self) -> list[str]:
        """Those that cannot be told from the one with the least mean rank, that one first; all, where nothing can."""
        order = np.argsort(self.mean, kind="stable")
        near = self.mean - self.mean.min() < (np.inf if self.critical is None else self.critical)
        return [self.names[i] for i in order if near[i]]


def ranks(values: Sequence[float]) -> Float:
    """[k]: 1 for the greatest; those alike share the mean of their places."""
    value = np.asarray(values, np.float64)
    near = ALIKE * np.abs(value).max(initial=0.0)
    above = (value[None] > value[:, None] + near).sum(axis=1)
    same = (np.abs(value[None] - value[:, None]) <= near).sum(axis=1)
    return np.asarray(above + (same + 1) / 2)


def ranked(names: Sequence[str], by_block: Float, seed: int) -> Ranked:
    """by_block [n, k]: each block's mean ranks."""
    n, k = by_block.shape
    if n < 2 or k < 2:
        return Ranked(names, by_block.mean(axis=0), by_block, None, None)
    drawn = np.random.default_rng(seed).permuted(np.broadcast_to(by_block, (DRAWS, n, k)), axis=2).mean(axis=1)
    mean = by_block.mean(axis=0)
    apart = ((drawn - by_block.mean()) ** 2).sum(axis=1)
    seen = ((mean - by_block.mean()) ** 2).sum()
    p = (1 + int((apart >= seen * (1 - ALIKE)).sum())) / (1 + DRAWS)
    return Ranked(names, mean, by_block, p, float(np.quantile(np.ptp(drawn, axis=1), LEVEL)))
