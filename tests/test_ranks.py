"""Ranks over captures: places by hand, permutation against every permutation and against textbook tests."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from sim.experiments.ranks import Ranked, ranked, ranks


def test_places_by_hand() -> None:
    """The greatest is first; two alike share places 2 and 3, so each has 2.5; less than a billionth is alike."""
    assert ranks([5.0, 9.0, 5.0, 1.0]).tolist() == [2.5, 1.0, 2.5, 4.0]
    assert ranks([1.0, 1.0 + 1e-12]).tolist() == [1.5, 1.5] and ranks([1.0, 1.0 + 1e-6]).tolist() == [2.0, 1.0]
    assert ranks([]).tolist() == []


def test_places_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.integers(1, 6, rng.integers(1, 9)).astype(float)
        assert ranks(values.tolist()).tolist() == rankdata(-values).tolist()


def test_against_every_permutation() -> None:
    """Three policies, three captures, all in one order: mean ranks 1, 2, 3, sum of squares 2, which of the 216 ways to
    order three captures 6 reach (all three alike): p = 1/36. The greatest difference is 2 in those 6, and in 18 of each
    size below; the 95 % quantile of all 216 is what is drawn, too."""
    blocks = np.tile([1.0, 2.0, 3.0], (3, 1))
    means = [np.mean(each, axis=0) for each in product(permutations([1.0, 2.0, 3.0]), repeat=3)]
    as_far = np.mean([((mean - 2) ** 2).sum() >= 2 - 1e-9 for mean in means])
    assert as_far == pytest.approx(6 / 216)
    found = ranked("abc", blocks, 0)
    assert found.mean.tolist() == [1, 2, 3] and found.p == pytest.approx(as_far, abs=0.004)
    assert found.critical == pytest.approx(np.quantile([np.ptp(mean) for mean in means], 0.95), abs=1e-9)


@pytest.mark.parametrize(("n", "k"), [(12, 5), (30, 8)])
def test_of_many_captures_it_is_friedman_and_nemenyi(n: int, k: int) -> None:
    """Whose tables hold for many: Demsar 2006, CD = q sqrt(k (k + 1) / (6 n)), q the studentised range by sqrt 2."""
    values = np.random.default_rng(1).normal(size=(n, k)) + np.linspace(0, 0.6, k)
    found = ranked([str(i) for i in range(k)], np.array([ranks(row.tolist()) for row in values]), 0)
    assert found.p is not None and found.critical is not None
    assert found.p == pytest.approx(friedmanchisquare(*values.T).pvalue, abs=0.01)
    nemenyi = studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * n))
    assert found.critical == pytest.approx(nemenyi, rel=0.03)


def test_capacities_of_one_capture_are_no_captures() -> None:
    """Of five captures that all agree p is small; of one, however many capacities it has, there is none."""
    one = ranked("ab", np.array([[1.0, 2.0]]), 0)
    assert (one.p, one.critical, one.as_the_best()) == (None, None, ["a", "b"])
    assert ranked("a", np.ones((4, 1)), 0).p is None
    many = ranked("ab", np.tile([1.0, 2.0], (8, 1)), 0)
    assert many.p is not None and many.p == pytest.approx(2 / 2**8, abs=0.003)


def test_as_the_best_is_within_the_critical_difference() -> None:
    mean = np.array([3.0, 1.0, 1.9, 2.0])
    assert Ranked("abcd", mean, mean[None], 0.01, 1.0).as_the_best() == ["b", "c"]


def test_equal_seeds_give_equal_figures() -> None:
    blocks = np.random.default_rng(2).random((5, 4))
    assert ranked("abcd", blocks, 3).critical == ranked("abcd", blocks, 3).critical
