"""What is said of many substitutions: means, medians and rank correlations over files, fits, bins; worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy", reason="scipy is not installed (extra: runtime)")

from scipy.stats import spearmanr

from runtime.closed_loop.clusters import Files
from runtime.closed_loop.substitution_statistics import (
    UNKNOWN,
    Sample,
    doubling_bins,
    explained,
    fitted,
    foretold,
    quantile_bins,
)


def test_means_medians_and_intervals_by_hand() -> None:
    """Two files: 1 and 3, and 8. A draw has (2, 0), (1, 1) or (0, 2) of them: means 2, 4, 8, lower medians 1, 3, 8. One
    file left out the mean is 8 or 2, so that its error is sqrt(1/2 (4^2 + 2^2)) = sqrt 10, and t with 1 degree of
    freedom is 12.706."""
    sample, values, every = Sample(np.array([0, 0, 1]), Files(2, 0, 400)), np.array([1.0, 3, 8]), np.ones(3, bool)
    mean = sample.mean(values)
    assert [mean[0], *mean[-2:]] == [4, 8, 2] and set(mean) == {2, 4, 8}
    half = 12.7062 * np.sqrt(10)
    assert sample.figure(mean) == {
        "value": 4, "low": pytest.approx(4 - half), "high": pytest.approx(4 + half),
        "p": pytest.approx(1 - 2 / np.pi * np.arctan(4 / np.sqrt(10))),  # t with 1 degree of freedom is Cauchy's
    }  # fmt: skip
    median = sample.median(values, every)
    assert median == {"value": 3, "low": 1, "high": 8, "p": None}  # of these 1/4, 1/2, 1/4 of the draws
    few = np.array([True, True, False])
    assert sample.mean(values, few)[0] == 2 and np.isnan(sample.mean(values, few)).any()
    for one_file in (sample.figure(sample.mean(values, few)), sample.median(values, ~few)):
        assert one_file == {**UNKNOWN, "value": one_file["value"]} != UNKNOWN
    nobody = np.zeros(3, bool)
    assert sample.figure(sample.mean(values, nobody)) == sample.median(values, nobody) == UNKNOWN


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=25), st.integers(0, 9))
def test_the_median_is_that_of_the_rows_written_out(rows: list[tuple[int, int]], seed: int) -> None:
    """Each row as often as its file is drawn, sorted: the lower one of the middle."""
    values, file = (np.array(column) for column in zip(*rows, strict=True))
    sample = Sample(file, Files(4, seed, 30))
    drawn = [np.sort(np.repeat(values, times[file].astype(int))) for times in sample.files.times[:-4]]
    medians = [float(each[(len(each) - 1) // 2]) for each in drawn if len(each)]
    found = sample.median(values.astype(float), np.ones(len(values), bool))
    assert found["value"] == medians[0]
    if found["low"] is not None:
        assert (found["low"], found["high"]) == pytest.approx(np.quantile(medians[1:], (0.025, 0.975)))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=30))
def test_rank_correlation_is_spearmans(values: list[tuple[int, int]]) -> None:
    x, y = (np.array(v, float) for v in zip(*values, strict=True))
    sample = Sample.of(np.arange(len(x)) % 3, 0)
    rho = sample.rho(x, y)
    if np.ptp(x) and np.ptp(y):
        assert rho[0] == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)
        twice = Sample(sample.file, Files(3, 1, 5))  # other draws are of the same rows
        assert twice.rho(x, y)[0] == rho[0] and len(twice.rho(x, y)) == 1 + 5 + 3
    else:
        assert np.isnan(rho[0])


def test_at_equal_weight_a_copy_of_the_weight_tells_nothing() -> None:
    rng = np.random.default_rng(0)
    w, noise = rng.random(400), rng.random(400)
    damage, layer = w + 0.2 * noise, np.repeat([0.0, 1.0], 200)
    sample = Sample.of(np.arange(400) % 10, 0)
    shadow = w + rng.random(400)
    assert sample.rho_within(shadow, damage, layer)[0] > 0.5
    assert abs(sample.rho_within(shadow, damage, layer, w)[0]) < 0.12
    assert sample.rho_within(noise, damage, layer, w)[0] > 0.8
    rho = [spearmanr(a[:200], b[:200]).statistic for a, b in ((noise, damage), (noise, w), (damage, w))]
    by_hand = (rho[0] - rho[1] * rho[2]) / np.sqrt((1 - rho[1] ** 2) * (1 - rho[2] ** 2))
    first = Sample.of(np.arange(200) % 10, 0).rho_within(noise[:200], damage[:200], layer[:200], w[:200])
    assert first[0] == pytest.approx(by_hand)


def test_a_file_is_foretold_from_the_others_alone() -> None:
    rng = np.random.default_rng(3)
    x, layer, file = rng.random(60), np.arange(60) % 2.0, np.arange(60) % 5
    y = 2 * x + 3 * layer - 1
    sample = Sample.of(file, 0)
    fit = fitted({"x": x}, layer, y)
    assert fit.coefficients == {"x": pytest.approx(2)} and fit.smear == pytest.approx(1)
    assert fit.constants == {"0": pytest.approx(-1), "1": pytest.approx(2)}
    said = foretold({"x": x}, layer, y, file)
    assert said == pytest.approx(y) and explained(sample, said, y)[0] == pytest.approx(1)
    other = np.where(file == 2, 100.0, y)  # what is in a file changes what is said of the others, not of itself
    assert foretold({"x": x}, layer, other, file)[file == 2] == pytest.approx(y[file == 2])
    assert explained(sample, np.full(60, y.mean()), y)[0] == pytest.approx(0)


def test_bins_by_hand() -> None:
    found, edges = doubling_bins(np.arange(1.0, 10))
    assert found.tolist() == [0, 1, 2, 2, 3, 3, 3, 3, 4] and edges.tolist() == [1, 2, 3, 5, 9, 10]
    found, edges = quantile_bins(np.array([5.0, 1, 2, 3, 4]), 2)
    assert found.tolist() == [1, 0, 0, 1, 1] and edges.tolist() == [1, 3, 5]
    assert set(quantile_bins(np.array([1.0] * 9 + [2]), 4)[0]) == {0}  # equal values are in one bin
