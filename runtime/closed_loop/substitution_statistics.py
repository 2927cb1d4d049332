"""What tells the loss of one substitution: rank correlations, fits judged on files left out, means by bin.

Substitutions of one file share its text, so intervals are over files, and `clusters` takes them: one set of texts for
all figures. A statistic is an array [1 + D + n] over `Files.times`: of the sample as it is, of each draw of files, of
each sample with one file left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from runtime.closed_loop.clusters import DRAWS, Estimate, Files, Float

Figure = dict[str, float | None]  # value, low, high, p of its being 0
UNKNOWN: Figure = dict.fromkeys(("value", "low", "high", "p"))
LEAST = 1e-12  # nats: below it a damage is the arithmetic's, and no logarithm is taken of it


def figure(found: Estimate, median: bool = False) -> Figure:
    """An estimate with the interval that decides, the wider one; of a median the percentile interval alone, because the
    jackknife does not tell the error of a median, which is no smooth function of the rows (Miller, Biometrika 61,
    1974). None where the sample has no value, and for the interval where all is of one file."""
    if not math.isfinite(found.value):
        return dict(UNKNOWN)
    if not math.isfinite(found.error):
        return {**UNKNOWN, "value": found.value}
    low, high = found.percentile() if median else found.wider()
    return {"value": found.value, "low": low, "high": high, "p": None if median else found.p()}


@dataclass(frozen=True, eq=False)
class Sample:
    """Statistics of rows of several files. file int64 [S]: which of `files` (0 .. n - 1) each row is of."""

    file: npt.NDArray[np.int64]
    files: Files

    @staticmethod
    def of(file: npt.ArrayLike, seed: int) -> Sample:
        """Of rows whose files have any numbers."""
        places = np.unique(np.asarray(file), return_inverse=True)[1].ravel().astype(np.int64)
        return Sample(places, Files(int(places.max()) + 1, seed, DRAWS))

    def figure(self, statistic: Float) -> Figure:
        return figure(self.files.of(statistic))

    def sums(self, values: Float) -> Float:
        """Of values [S]."""
        out: Float = self.files.times @ np.bincount(self.file, values, self.files.n)
        return out

    def mean(self, values: Float, keep: npt.NDArray[np.bool_] | None = None) -> Float:
        """Mean of values [S] over the rows to keep, a ratio of sums."""
        kept = np.ones(len(values)) if keep is None else keep.astype(np.float64)
        with np.errstate(invalid="ignore"):
            return self.sums(values * kept) / self.sums(kept)

    def median(self, values: Float, keep: npt.NDArray[np.bool_]) -> Figure:
        """The lower median of the rows to keep: the least value that half of them do not exceed."""
        if not keep.any():
            return dict(UNKNOWN)
        order = np.argsort(values[keep], kind="stable")
        up_to = (self.file[keep][order, None] == np.arange(self.files.n)).cumsum(0)  # rows of each file
        total = self.files.times @ up_to[-1]
        first, last = np.zeros_like(total, np.int64), np.full_like(total, len(order) - 1, np.int64)
        for _ in range(len(order).bit_length()):
            middle = (first + last) // 2
            enough = 2 * (self.files.times * up_to[middle]).sum(1) >= total
            first, last = np.where(enough, first, middle + 1), np.where(enough, middle, last)
        found = np.where(total > 0, values[keep][order][last], np.nan)
        return figure(self.files.of(found), median=True)

    def rho(self, x: Float, y: Float) -> Float:
        """Spearman's rank correlation of x, y [S]: Pearson's of their ranks in the sample. Ranks are not taken anew
        in a draw, so that a draw is a sum over files; NaN where either is constant."""
        a, b = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
        n, sa, sb = (self.sums(v) for v in (np.ones(len(a)), a, b))
        with np.errstate(invalid="ignore", divide="ignore"):
            cov, va, vb = (self.sums(v) / n - m for v, m in
                           ((a * b, sa * sb / n**2), (a * a, (sa / n) ** 2), (b * b, (sb / n) ** 2)))  # fmt: skip
            return np.where((va > 1e-9) & (vb > 1e-9), cov / np.sqrt(np.maximum(va * vb, LEAST)), np.nan)

    def only(self, keep: npt.NDArray[np.bool_]) -> Sample:
        """Some of the rows, of the same files."""
        return Sample(self.file[keep], self.files)

    def rho_within(self, x: Float, y: Float, layer: Float, given: Float | None = None) -> Float:
        """Mean over layers of the correlation within each; given: of the partial one, at equal `given` (Kendall 1942,
        10.1093/biomet/32.3-4.277)."""
        each = []
        for at in np.unique(layer):
            here, sample = layer == at, self.only(layer == at)
            rho = sample.rho(x[here], y[here])
            if given is not None:
                rho = _partial(rho, *(sample.rho(v[here], given[here]) for v in (x, y)))
            each.append(rho)
        return np.asarray(np.stack(each).mean(0))


def _partial(xy: Float, xz: Float, yz: Float) -> Float:
    """What is left of a correlation of x and y when both are told by z; NaN where z tells one of them wholly."""
    left = (1 - xz**2) * (1 - yz**2)
    return np.where(left > 1e-9, (xy - xz * yz) / np.sqrt(np.maximum(left, 1e-9)), np.nan)


def log_damage(damage: Float) -> Float:
    return np.asarray(np.log(np.maximum(damage, LEAST)))


@dataclass(frozen=True, eq=False)
class Fit:
    """log damage = constant of the layer (or one for all) + sum of coefficient x term, by least squares; smear: mean of
    the damages over the mean of the exponentials, by which a predicted mean is multiplied (Duan 1983,
    10.1080/01621459.1983.10478017)."""

    constants: dict[str, float]
    coefficients: dict[str, float]
    smear: float


def design(terms: dict[str, Float], layer: Float | None, n: int) -> Float:
    """[S, terms + constants]; layer None: one constant."""
    constants = [np.ones(n)] if layer is None else [layer == at for at in np.unique(layer)]
    return np.stack([*terms.values(), *constants], 1).astype(np.float64)


def fitted(terms: dict[str, Float], layer: Float | None, y: Float) -> Fit:
    """Of all rows."""
    matrix = design(terms, layer, len(y))
    found = np.linalg.lstsq(matrix, y, rcond=None)[0]
    names = ["all"] if layer is None else [f"{at:.0f}" for at in np.unique(layer)]
    smear = np.exp(y).mean() / np.exp(matrix @ found).mean()
    pairs = dict(zip([*terms, *names], map(float, found), strict=True))
    return Fit({name: pairs[name] for name in names}, {name: pairs[name] for name in terms}, float(smear))


def foretold(terms: dict[str, Float], layer: Float | None, y: Float, file: npt.NDArray[np.int64]) -> Float:
    """Each row's log damage [S] as a fit on all other files says it."""
    matrix, out = design(terms, layer, len(y)), np.zeros(len(y))
    for each in np.unique(file):
        away = file == each
        out[away] = matrix[away] @ np.linalg.lstsq(matrix[~away], y[~away], rcond=None)[0]
    return out


def explained(sample: Sample, said: Float, y: Float) -> Float:
    """Share of the variance of y that what was said of it explains; below 0 if the mean says more."""
    mean = sample.mean(y)
    return np.asarray(1 - sample.mean((y - said) ** 2) / (sample.mean(y**2) - mean**2))


def quantile_bins(values: Float, n: int) -> tuple[npt.NDArray[np.int64], Float]:
    """(bin 0 .. n-1 of each value, the n + 1 edges), about as many in each; fewer bins where values are equal."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, n + 1)))
    edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    bins = np.searchsorted(edges[1:-1], values, side="right")
    return bins.astype(np.int64), edges


def doubling_bins(ranks: Sequence[float] | Float) -> tuple[npt.NDArray[np.int64], Float]:
    """Ranks 1, 2, 3-4, 5-8, 9-16 ...: (bin of each, the lower edges and one past the last)."""
    bins = np.ceil(np.log2(np.asarray(ranks))).astype(np.int64)
    lower = [1, *(2**b // 2 + 1 for b in range(1, int(bins.max()) + 1)), int(max(ranks)) + 1]
    return bins, np.array(lower, np.float64)
